"""Metrics of a segmentation, from one table of label and prediction gathered pixel by pixel."""

import torch
from torch import Tensor

from vimoe.data.masks import IGNORE
from vimoe.distributed import all_reduce_sum
from vimoe.errors import UserError


class ConfusionMatrix:
    """Pixels by label and prediction, `[label, prediction]` on the CPU, those labelled `IGNORE` left out.

    Whoever adds images counts them in `images`.
    """

    columns = ("pixels", "IoU %", "accuracy %")

    def __init__(self, num_classes: int) -> None:
        self.counts = torch.zeros(num_classes, num_classes, dtype=torch.int64)
        self.images = torch.zeros((), dtype=torch.int64)

    def add(self, prediction: Tensor, target: Tensor) -> None:
        """Count the pixels of some images: classes and labels (or `IGNORE`), int64 of any shape, on any device.

        Raises UserError if the shapes differ, or a labelled pixel's value is no class.
        """
        classes = len(self.counts)
        if prediction.shape != target.shape:
            raise UserError(f"predictions are {tuple(prediction.shape)} where labels are {tuple(target.shape)}")
        labelled = target != IGNORE
        prediction, target = prediction[labelled], target[labelled]
        for name, values in (("prediction", prediction), ("label", target)):
            if values.numel() and not 0 <= int(values.min()) <= int(values.max()) < classes:
                worst = int(values.min()) if int(values.min()) < 0 else int(values.max())
                raise UserError(f"the {name} {worst} is none of the {classes} classes")
        cells = torch.bincount(target * classes + prediction, minlength=classes**2)
        self.counts += cells.view(classes, classes).cpu()

    def all_reduce_sum(self) -> None:
        """Make the counts those of all processes together."""
        all_reduce_sum(self.counts, self.images)

    def summary(self) -> dict[str, float]:
        """The metrics, and the number of images."""
        return self.metrics() | {"images": int(self.images)}

    def metrics(self) -> dict[str, float]:
        """The field's three metrics in percent, 0 where no pixel was counted.

        `miou` and `macc` are means of the classes' own metrics, `aacc` is the share of right pixels. Absent classes
        count as in MMSegmentation's `IoUMetric`: each mean leaves out the classes whose metric is nan, so that a
        class which was predicted but never labelled lowers `miou` and does not touch `macc`.
        """
        iou, acc = self._iou_and_acc()
        right = self.counts.diag().sum() / self.counts.sum()
        values = {"miou": iou.nanmean(), "aacc": right.double(), "macc": acc.nanmean()}
        return {name: 100 * value.nan_to_num(0).item() for name, value in values.items()}

    def per_class(self) -> list[tuple[int, float, float]]:
        """By class, its labelled pixels, its IoU and the share of its pixels that were found, in percent.

        The IoU is nan for a class neither labelled nor predicted and 0 for one predicted in vain; the share is nan
        for a class that is not labelled.
        """
        iou, acc = self._iou_and_acc()
        return list(zip(self.counts.sum(1).tolist(), (100 * iou).tolist(), (100 * acc).tolist(), strict=True))

    def _iou_and_acc(self) -> tuple[Tensor, Tensor]:
        """`[classes]` fp64 each, between 0 and 1 or nan."""
        counts = self.counts.double()
        right, labelled, predicted = counts.diag(), counts.sum(1), counts.sum(0)
        return right / (labelled + predicted - right), right / labelled
