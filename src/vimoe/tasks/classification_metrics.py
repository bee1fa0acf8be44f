"""Metrics of a classifier, gathered batch by batch in memory that does not grow."""

import torch
from torch import Tensor
from torch.nn import functional as F

from vimoe.distributed import all_reduce_sum
from vimoe.tasks.task import finite


class ClassificationMetrics:
    """Counts from which accuracy, its mean over classes, likelihood and calibration (in equal bins) are made."""

    columns = ("images", "top-1 %")

    def __init__(self, num_classes: int, bins: int = 15) -> None:
        self.images = torch.zeros(num_classes, dtype=torch.int64)
        self.right = torch.zeros(num_classes, dtype=torch.int64)
        self._right_in_5 = torch.zeros((), dtype=torch.int64)
        self._nll = torch.zeros((), dtype=torch.float64)
        self._confidence = torch.zeros(bins, dtype=torch.float64)
        self._hits = torch.zeros(bins, dtype=torch.float64)

    def add(self, logits: Tensor, labels: Tensor) -> None:
        """Count CPU logits `[B, classes]` and labels `[B]` (-1: none). Raises UserError if a logit is not finite."""
        logits, labels = finite(logits)[labels >= 0], labels[labels >= 0]
        classes, bins = len(self.images), len(self._hits)
        top = logits.topk(min(5, classes), dim=-1).indices
        hit = top[:, 0] == labels
        self.images += torch.bincount(labels, minlength=classes)
        self.right += torch.bincount(labels[hit], minlength=classes)
        self._right_in_5 += (top == labels[:, None]).any(-1).sum()
        self._nll += F.cross_entropy(logits, labels, reduction="sum")
        confidence = logits.softmax(-1).max(-1).values.double()
        place = (confidence * bins).long().clamp(max=bins - 1)
        self._confidence.index_add_(0, place, confidence)
        self._hits.index_add_(0, place, hit.double())

    def all_reduce_sum(self) -> None:
        """Make the counts those of all processes together."""
        all_reduce_sum(self.images, self.right, self._right_in_5, self._nll, self._confidence, self._hits)

    def summary(self) -> dict[str, float]:
        """All metrics of the whole.

        `top1` and `top5` in percent; `mean_class` the mean of the classes' own top-1, over classes that occur;
        `nll` mean cross-entropy in nats; `ece` the expected calibration error in percentage points (Guo et al. 2017);
        `images`.
        """
        count = max(1, int(self.images.sum()))
        seen = self.images > 0
        per_class = self.right[seen].double() / self.images[seen]
        return {
            "top1": 100 * int(self.right.sum()) / count,
            "top5": 100 * int(self._right_in_5) / count,
            "mean_class": 100 * per_class.mean().item() if len(per_class) else 0.0,
            "nll": self._nll.item() / count,
            "ece": 100 * (self._confidence - self._hits).abs().sum().item() / count,
            "images": int(self.images.sum()),
        }

    def per_class(self) -> list[tuple[int, float]]:
        """For each class its images and its top-1 in percent (0 where it has none)."""
        pairs = zip(self.images.tolist(), self.right.tolist(), strict=True)
        return [(images, 100 * right / max(1, images)) for images, right in pairs]
