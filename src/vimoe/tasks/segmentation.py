"""Semantic segmentation: one label a pixel."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from vimoe.data.loading import NOBODY, batches
from vimoe.data.masks import IGNORE
from vimoe.data.splits import Pictures, Splits
from vimoe.errors import UserError
from vimoe.processes import sum_over_processes
from vimoe.tasks.classification import evaluating
from vimoe.tasks.confusion import ConfusionMatrix
from vimoe.tasks.segmenter_folder import save_segmenter
from vimoe.tasks.windows import View, probabilities

# Pictures in memory have one size and are small; those from files may have any size and go one by one.
IN_MEMORY_BATCH = 64


class Segmentation:
    """Cross-entropy over labelled pixels, and mean intersection over union.

    Args:
        num_classes: Number of classes.
        smoothing: Label smoothing.
        view: How pictures are looked at in evaluation; its `short_side` is kept with the model.
        reduce_zero_label: Whether masks in files say 0 for unlabelled; kept with the model.

    Raises:
        UserError: There are so many classes that one would have the number of unlabelled pixels.
    """

    metric = "miou"

    def __init__(
        self, num_classes: int, smoothing: float = 0.0, view: View | None = None, reduce_zero_label: bool = False
    ) -> None:
        if num_classes > IGNORE:
            raise UserError(f"there are {num_classes} classes; masks can tell at most {IGNORE} apart")
        self.num_classes = num_classes
        self.smoothing = smoothing
        self.view = view or View()
        self.reduce_zero_label = reduce_zero_label

    def loss(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """Mean cross-entropy of logits `[B, classes, H, W]` over the labelled pixels of masks `[B, H, W]`.

        A batch without a labelled pixel gives 0, with gradient 0.
        """
        total = F.cross_entropy(
            outputs.float(), targets, ignore_index=IGNORE, label_smoothing=self.smoothing, reduction="sum"
        )
        return total / (targets != IGNORE).sum().clamp(min=1)

    def evaluate(self, model: nn.Module, pictures: Pictures, device: str, workers: int = 0) -> dict[str, float]:
        """See `ConfusionMatrix.figures`; and `pictures`, how many were looked at."""
        labelled = batches(pictures, 1 if pictures.from_files else IN_MEMORY_BATCH, workers)
        confusion, count = segment(model, labelled, self.num_classes, device, self.view)
        return confusion.figures() | {"pictures": count}

    def save(self, model: nn.Module, folder: Path, splits: Splits) -> None:
        """The folder of a segmentation model, with the names of the classes."""
        save_segmenter(model, folder, splits.class_names, self.reduce_zero_label, self.view.short_side)


def segment(
    model: nn.Module, labelled: Iterable[tuple[Tensor, Tensor]], num_classes: int, device: str, view: View
) -> tuple[ConfusionMatrix, int]:
    """Send batches of pictures with masks through the model and count, over all processes, at the masks' resolution.

    Args:
        model: A segmentation model.
        labelled: Pictures `[B, C, H, W]` and masks `[B, H, W]` of the same size.
        num_classes: Number of classes.
        device: Where the model is.
        view: How to look at the pictures.

    Returns:
        The confusion matrix, and the number of pictures.
    """
    confusion, count = ConfusionMatrix(num_classes), torch.zeros((), dtype=torch.int64)
    with evaluating(model):
        for pictures, masks in labelled:
            answers, real = probabilities(model, pictures.to(device), view).argmax(1).cpu(), masks[:, 0, 0] != NOBODY
            confusion.add(answers[real], masks[real])
            count += real.sum()
    confusion.sum_over_processes()
    sum_over_processes(count)
    return confusion, int(count)
