"""The interface every task offers to training and evaluation."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar, Protocol

from torch import Tensor, nn

from vimoe.data.images import Images
from vimoe.data.loaders import OnBroken
from vimoe.data.splits import Splits
from vimoe.errors import UserError


class Metrics(Protocol):
    """What was counted over the images of an evaluation, by all processes together."""

    @property
    def columns(self) -> tuple[str, ...]:
        """What the values by class are."""
        ...

    def summary(self) -> dict[str, float]:
        """All metrics of the whole, and `images`, how many there were."""
        ...

    def per_class(self) -> Sequence[tuple[Any, ...]]:
        """By class, its values under `columns`: how many there are of it, then percentages."""
        ...


class Task(ABC):
    """A task: how wrong an output is, how good a model is, and how a finished model is kept.

    Attributes:
        metric: The name of the metric that says which model is better (higher is).
    """

    metric: ClassVar[str]

    @abstractmethod
    def loss(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """A scalar with gradient, from what the model answered and what was right."""

    @abstractmethod
    def measure(
        self,
        model: nn.Module,
        images: Images,
        device: str,
        workers: int = 0,
        on_broken: OnBroken | None = None,
        batch_size: int = 256,
    ) -> Metrics:
        """Send all images through the model and count; the model is left in the mode it came in.

        With several processes each looks at its own share of the images, every image is counted once, and all
        get the same metrics.

        Raises:
            UserError: The model's outputs are not finite.
        """

    @abstractmethod
    def save(self, model: nn.Module, folder: Path, splits: Splits) -> None:
        """Write a finished model's folder; what `splits` says of classes is kept with it."""

    def evaluate(
        self,
        model: nn.Module,
        images: Images,
        device: str,
        workers: int = 0,
        on_broken: OnBroken | None = None,
        max_broken: float = 1.0,
    ) -> dict[str, float]:
        """The summary of `measure`.

        Raises:
            UserError: As `measure`; or no image can be read, or more than the share `max_broken` cannot.
        """
        lines: list[str] = []

        def note(line: str) -> None:
            lines.append(line)
            if on_broken is not None:
                on_broken(line)

        summary = self.measure(model, images, device, workers, note).summary()
        broken = len(images) - int(summary["images"])
        if broken > max_broken * len(images) or broken == len(images):
            raise UserError(
                f"{broken} of the {len(images)} images to evaluate on are broken, more than max_broken "
                f"{max_broken:g} allows{''.join(f': {line}' for line in lines[:1])}"
            )
        return summary


def finite(outputs: Tensor) -> Tensor:
    """A model's outputs, as they are.

    Raises:
        UserError: One of them is infinite or no number.
    """
    if not outputs.isfinite().all():
        raise UserError("the model's outputs are not finite numbers: its weights are damaged, or its training diverged")
    return outputs
