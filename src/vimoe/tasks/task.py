"""The interface every task offers to the training loop."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Protocol

from torch import Tensor, nn


class Task(Protocol):
    """A task: how wrong an output is, and how good a model is."""

    @property
    def metric(self) -> str:
        """The name of the figure that says which model is better (higher is)."""
        ...

    def loss(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """A scalar with gradient, from what the model answered and what was right."""
        ...

    def evaluate(self, model: nn.Module, batches: Iterable[tuple[Tensor, Tensor]], device: str) -> dict[str, float]:
        """All figures of merit over `batches`; the model is left in the mode it came in."""
        ...
