"""Image classification."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.nn import functional as F


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
        """`top1` in percent, `nll` (mean cross-entropy without smoothing) and `pictures`."""
        correct = nll = count = 0.0
        with evaluating(model):
            for pictures, labels in batches:
                logits = model(pictures.to(device)).float().cpu()
                correct += (logits.argmax(-1) == labels).sum().item()
                nll += F.cross_entropy(logits, labels, reduction="sum").item()
                count += len(labels)
        return {"top1": 100 * correct / max(count, 1), "nll": nll / max(count, 1), "pictures": count}


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
