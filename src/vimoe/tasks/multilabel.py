"""Image classification with any number of labels an image."""

from collections.abc import Iterable
from pathlib import Path

from torch import Tensor, nn
from torch.nn import functional as F

from vimoe.data.loaders import Batch
from vimoe.data.splits import Splits
from vimoe.tasks.classification import classify
from vimoe.tasks.multilabel_metrics import MultilabelMetrics
from vimoe.tasks.task import Task, Watch
from vimoe.vit.checkpoint import save


class Multilabel(Task):
    """Binary cross-entropy of each label by itself, and mean average precision over labels.

    `smoothing` draws both targets of a label to the middle: `smoothing` / 2 and 1 - `smoothing` / 2.
    """

    metric = "map"

    def __init__(self, num_classes: int, smoothing: float = 0.0) -> None:
        self.num_classes = num_classes
        self.smoothing = smoothing

    def loss(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """Mean binary cross-entropy of logits and labels, both `[B, classes]`."""
        wanted = targets.float() * (1 - self.smoothing) + self.smoothing / 2
        return F.binary_cross_entropy_with_logits(outputs.float(), wanted)

    def measure(
        self, model: nn.Module, labelled: Iterable[Batch], device: str, watch: Watch | None = None
    ) -> MultilabelMetrics:
        metrics = MultilabelMetrics(self.num_classes)
        classify(model, labelled, device, metrics.add, *filter(None, [watch]))
        metrics.gather()
        return metrics

    def save(self, model: nn.Module, folder: Path, splits: Splits) -> None:
        """A model folder in timm's format, with the names of the labels; `task` says how its outputs are meant."""
        save(model, folder, extra={"label_names": list(splits.class_names), "task": "multilabel"})
