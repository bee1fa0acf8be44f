"""Image classification."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from vimoe.tasks.figures import ClassificationFigures


class Classification:
    """One label a picture: cross-entropy, and top-1 accuracy.

    Args:
        smoothing: Label smoothing.
    """

    metric = "top1"

    def __init__(self, smoothing: float = 0.0) -> None:
        self.smoothing = smoothing

    def loss(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """Cross-entropy of logits `[B, classes]` and labels `[B]`."""
        return F.cross_entropy(outputs.float(), targets, label_smoothing=self.smoothing)

    def evaluate(self, model: nn.Module, batches: Iterable[tuple[Tensor, Tensor]], device: str) -> dict[str, float]:
        """See `ClassificationFigures.summary`."""
        figures = classify(model, batches, device)
        return figures.summary() if figures else {"top1": 0.0, "pictures": 0}


def classify(model: nn.Module, batches: Iterable[tuple[Tensor, Tensor]], device: str) -> ClassificationFigures | None:
    """Send labelled pictures through the model and count; None where there was no picture."""
    figures: ClassificationFigures | None = None
    with evaluating(model):
        for pictures, labels in batches:
            logits = model(pictures.to(device)).float().cpu()
            figures = figures or ClassificationFigures(logits.shape[-1])
            figures.add(logits, labels)
    return figures


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
