"""Semantic segmentation: one label a pixel."""

from collections.abc import Iterable
from pathlib import Path

from torch import Tensor, nn
from torch.nn import functional as F

from vimoe.data.images import Images
from vimoe.data.loaders import NOBODY, Batch
from vimoe.data.masks import IGNORE
from vimoe.data.splits import Splits
from vimoe.errors import UserError
from vimoe.tasks.classification import evaluating
from vimoe.tasks.confusion_matrix import ConfusionMatrix
from vimoe.tasks.segmenter_folder import save_segmenter
from vimoe.tasks.task import Task, Watch
from vimoe.tasks.windows import View, probabilities


class Segmentation(Task):
    """Cross-entropy over labelled pixels, and mean intersection over union.

    Evaluation looks at images as `view` says. Its `short_side` and `reduce_zero_label` (whether masks in files say 0
    for unlabelled) are kept with the model.

    Raises UserError if there are so many classes that one would have the number of unlabelled pixels.
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

    def measure(
        self, model: nn.Module, labelled: Iterable[Batch], device: str, watch: Watch | None = None
    ) -> ConfusionMatrix:
        """At the resolution of the masks, which have the images' size."""
        confusion = ConfusionMatrix(self.num_classes)
        with evaluating(model):
            for images, masks in labelled:
                answers = probabilities(model, images.to(device), self.view).argmax(1).cpu()
                real = masks[:, 0, 0] != NOBODY
                confusion.add(answers[real], masks[real])
                confusion.images += real.sum()
                if watch is not None:
                    watch(answers, masks)
        confusion.all_reduce_sum()
        return confusion

    def batch_size(self, images: Images, wanted: int = 64) -> int:
        """Images in memory have one size and are small; those from files may have any size and go one by one."""
        return 1 if images.from_files else wanted

    def save(self, model: nn.Module, folder: Path, splits: Splits) -> None:
        """The folder of a segmentation model, with the names of the classes."""
        save_segmenter(model, folder, splits.class_names, self.reduce_zero_label, self.view.short_side)
