"""The interface every task offers to training and evaluation."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, ClassVar, Protocol

from torch import Tensor, nn

from vimoe.data.images import Images
from vimoe.data.loaders import Batch, OnBroken, batches
from vimoe.data.splits import Splits
from vimoe.errors import UserError

Watch = Callable[[Tensor, Tensor], None]


class Metrics(Protocol):
    """What was counted over the images of an evaluation."""

    @property
    def columns(self) -> tuple[str, ...]:
        """What the values by class are: how many there are of it, then percentages."""
        ...

    def per_class(self) -> Sequence[tuple[Any, ...]]:
        """By class, its values."""
        ...

    def summary(self) -> dict[str, float]:
        """All metrics of the whole, and `images`, how many there were."""
        ...


class Task(ABC):
    """A task: how wrong an output is, how good a model is, and how a finished model is kept."""

    metric: ClassVar[str]  # the name of the metric that says which model is better (higher is)

    @abstractmethod
    def loss(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """A scalar with gradient, from what the model answered and what was right."""

    @abstractmethod
    def measure(self, model: nn.Module, labelled: Iterable[Batch], device: str, watch: Watch | None = None) -> Metrics:
        """Send batches of images and targets through the model and count, over all processes; its mode is kept.

        `watch` is called with the model's answers to each batch, logits `[B, classes]` or masks `[B, H, W]`, and its
        targets, all on the CPU.

        Raises UserError if an output of the model is not finite.
        """

    @abstractmethod
    def save(self, model: nn.Module, folder: Path, splits: Splits) -> None:
        """Write a finished model's folder; what `splits` says of classes is kept with it."""

    def batch_size(self, images: Images, wanted: int = 256) -> int:
        """How many of these images can be evaluated at once, `wanted` at most."""
        return wanted

    def evaluate(
        self,
        model: nn.Module,
        images: Images,
        device: str,
        workers: int = 0,
        on_broken: OnBroken = lambda _: None,
        max_broken: float = 1.0,
        watch: Watch | None = None,
    ) -> dict[str, float]:
        """All metrics over `images`, the same for all processes: each looks at its own share.

        Raises UserError as `measure`, or if no image can be read, or more than the share `max_broken` cannot.
        """
        lines: list[str] = []
        labelled = batches(images, self.batch_size(images), workers, lines.append)
        summary = self.measure(model, labelled, device, watch).summary()
        for line in lines:
            on_broken(line)
        broken = len(images) - int(summary["images"])
        if broken > max_broken * len(images) or broken == len(images):
            raise UserError(
                f"{broken} of the {len(images)} images to evaluate on are broken, more than max_broken "
                f"{max_broken:g} allows{''.join(f': {line}' for line in lines[:1])}"
            )
        return summary


def finite(outputs: Tensor) -> Tensor:
    """A model's outputs, as they are. Raises UserError if one of them is infinite or no number."""
    if not outputs.isfinite().all():
        raise UserError("the model's outputs are not finite numbers: its weights are damaged, or its training diverged")
    return outputs
