"""Image classification."""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from vimoe.data.loaders import Batch
from vimoe.data.splits import Splits
from vimoe.tasks.classification_metrics import ClassificationMetrics
from vimoe.tasks.task import Task, Watch
from vimoe.vit.checkpoint import save


class Classification(Task):
    """One label an image: cross-entropy, and top-1 accuracy; `class_weights` `[classes]` weigh the loss."""

    metric = "top1"

    def __init__(self, num_classes: int, smoothing: float = 0.0, class_weights: Tensor | None = None) -> None:
        self.num_classes = num_classes
        self.class_weights = class_weights
        self.smoothing = smoothing

    def loss(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """Cross-entropy of logits `[B, classes]` and labels `[B]`."""
        weights = None if self.class_weights is None else self.class_weights.to(outputs.device)
        return F.cross_entropy(outputs.float(), targets, weights, label_smoothing=self.smoothing)

    def measure(
        self, model: nn.Module, labelled: Iterable[Batch], device: str, watch: Watch | None = None
    ) -> ClassificationMetrics:
        metrics = ClassificationMetrics(self.num_classes)
        classify(model, labelled, device, metrics.add, *filter(None, [watch]))
        metrics.all_reduce_sum()
        return metrics

    def save(self, model: nn.Module, folder: Path, splits: Splits) -> None:
        """A model folder in timm's format, with the names of the classes."""
        save(model, folder, extra={"label_names": list(splits.class_names)})


def classify(model: nn.Module, labelled: Iterable[Batch], device: str, *watches: Watch) -> None:
    """Show each watch the logits `[B, classes]` of every batch, in fp32 on the CPU, and its targets."""
    with evaluating(model):
        for images, targets in labelled:
            logits = model(images.to(device)).float().cpu()
            for watch in watches:
                watch(logits, targets)


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Eval mode without gradients inside the block, the mode from before after it."""
    was_training = model.training
    model.eval()
    try:
        with torch.no_grad():
            yield
    finally:
        model.train(was_training)
