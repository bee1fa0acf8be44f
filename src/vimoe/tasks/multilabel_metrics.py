"""Metrics of a classifier that gives an image any number of labels."""

import torch
from torch import Tensor
from torch.nn import functional as F

from vimoe.distributed import all_gather
from vimoe.tasks.task import finite


def average_precision(scores: Tensor, right: Tensor) -> Tensor:
    """Of each row, the mean over its right ones of the precision down to their score; NaN for a row without any.

    The sum over thresholds of precision times the step in recall (sklearn's `average_precision_score`); equal scores
    share a threshold. For rows of labels it is the precision by image of sklearn's
    `label_ranking_average_precision_score`.

    Args:
        scores: `[rows, n]` of any scale.
        right: `[rows, n]` of 0 and 1.

    Returns:
        `[rows]` fp64.
    """
    ranked, order = (-scores.double()).sort()
    hits = right.gather(1, order).double()
    as_high = torch.searchsorted(ranked, ranked, right=True)  # how many have this score or more
    precision = hits.cumsum(1).gather(1, as_high - 1) / as_high
    return (precision * hits).sum(1) / hits.sum(1)


def label_ranking(logits: Tensor, targets: Tensor) -> Tensor:
    """How well each image's own labels stand before the others, 0 to 1: `[B, classes]` each to `[B]` fp32.

    1 where there is nothing to rank: an image without labels.
    """
    return average_precision(logits.cpu(), targets.cpu()).nan_to_num(1.0).float()


class MultilabelMetrics:
    """All logits and labels of an evaluation, since average precision ranks them all."""

    columns = ("images", "precision %", "recall %", "F1 %", "average precision %")

    def __init__(self, num_classes: int) -> None:
        self.logits, self.targets = torch.zeros(0, num_classes), torch.zeros(0, num_classes, dtype=torch.int64)
        self._parts: list[tuple[Tensor, Tensor]] = []

    def add(self, logits: Tensor, targets: Tensor) -> None:
        """Take CPU logits and labels `[B, classes]` (-1: none). Raises UserError if a logit is not finite."""
        counted = targets[:, 0] >= 0
        self._parts.append((finite(logits)[counted], targets[counted]))

    def gather(self) -> None:
        """Bring those of all processes together."""
        parts = [(self.logits, self.targets), *(part for parts in all_gather(self._parts) for part in parts)]
        self.logits, self.targets = (torch.cat(which) for which in zip(*parts, strict=True))

    def summary(self) -> dict[str, float]:
        """All metrics of the whole, in percent but for `bce` and `images`.

        `map`, the mean average precision, and `f1` are means over labels that occur; `micro_f1` counts all labels of
        all images together. A label is given where its probability is above a half. `bce` is the mean binary
        cross-entropy of a label in nats.
        """
        rows = torch.tensor([row for row in self.per_class() if row[0]], dtype=torch.float64)
        _, _, _, f1, precision = rows.mean(0).tolist() if len(rows) else [0.0] * 5
        found, given, there = (counts.sum() for counts in self._counts())
        return {
            "map": precision,
            "f1": f1,
            "micro_f1": 100 * float(2 * found / (given + there).clamp(min=1)),
            "bce": F.binary_cross_entropy_with_logits(self.logits, self.targets.float()).item(),
            "images": len(self.targets),
        }

    def per_class(self) -> list[tuple[int, float, float, float, float]]:
        """For each label its images, and in percent precision, recall, F1 and average precision (0 without images)."""
        found, given, there = self._counts()
        shares = torch.stack([found / given.clamp(min=1), found / there.clamp(min=1), 2 * found / (given + there)])
        ranked = average_precision(self.logits.T.contiguous(), self.targets.T.contiguous())
        values = (100 * torch.cat([shares, ranked[None]])).nan_to_num(0.0).T.tolist()
        return [(count, *row) for count, row in zip(there.int().tolist(), values, strict=True)]

    def _counts(self) -> tuple[Tensor, Tensor, Tensor]:
        """By label `[classes]` fp64: images that have it and are given it, that are given it, that have it."""
        given = (self.logits > 0).double()
        return (given * self.targets).sum(0), given.sum(0), self.targets.double().sum(0)
