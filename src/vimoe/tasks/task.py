"""The interface every task offers to the training loop."""

from __future__ import annotations

from pathlib import Path
from typing import Protocol

from torch import Tensor, nn

from vimoe.data.splits import Images, Splits


class Task(Protocol):
    """A task: how wrong an output is, how good a model is, and how a finished model is kept."""

    @property
    def metric(self) -> str:
        """The name of the metric that says which model is better (higher is)."""
        ...

    def loss(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """A scalar with gradient, from what the model answered and what was right."""
        ...

    def evaluate(self, model: nn.Module, images: Images, device: str, workers: int = 0) -> dict[str, float]:
        """All metrics over `images`; the model is left in the mode it came in.

        With several processes each looks at its own share of the images, every image is counted once, and all
        get the same metrics.
        """
        ...

    def save(self, model: nn.Module, folder: Path, splits: Splits) -> None:
        """Write a finished model's folder; what `splits` says of classes is kept with it."""
        ...
