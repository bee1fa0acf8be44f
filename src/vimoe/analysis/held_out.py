"""Held-out images in the form that a model of their task is measured on."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from functools import partial
from typing import NamedTuple

from torch import Tensor, nn

from vimoe.analysis.ablation_scores import Score, share_of_right_labels, share_of_right_pixels
from vimoe.analysis.patches import patch_classes, resized_masks
from vimoe.data.images import Images
from vimoe.data.loaders import OnBroken, batches
from vimoe.tasks.segmenter import Segmenter
from vimoe.tasks.windows import resized, view_size


class HeldOut(NamedTuple):
    """Images, and how right an answer to them is.

    Attributes:
        batches: Gives the images with their targets, the same ones in the same order at every call.
        metric: What the score is called: `top1`, or `pixels`.
        score: How right an answer is, 0 to 1 an image.
        classes: Targets to the class of each image `[B]`, or of each patch `[B, P]` with -1 for none.
    """

    batches: Callable[[], Iterable[tuple[Tensor, Tensor]]]
    metric: str
    score: Score
    classes: Callable[[Tensor], Tensor]


def held_out(
    model: nn.Module,
    images: Images,
    num_classes: int,
    batch_size: int = 64,
    workers: int = 0,
    short_side: int | None = None,
    on_broken: OnBroken | None = None,
) -> HeldOut:
    """Images for a classifier, or images with masks for a segmentation model.

    Images with masks are looked at whole; those from files may have any size and go one by one.

    Args:
        model: The model that is to be measured.
        images: Its images, without variation.
        num_classes: Number of classes.
        batch_size: Images at once.
        workers: Processes that decode.
        short_side: Pixels that the shorter side of images with masks is brought to first; None for its own.
        on_broken: Told of every broken image.
    """
    if not isinstance(model, Segmenter):
        load = partial(batches, images, batch_size, workers, on_broken)
        return HeldOut(load, "top1", share_of_right_labels, lambda labels: labels)

    def sized() -> Iterator[tuple[Tensor, Tensor]]:
        for seen, masks in batches(images, 1 if images.from_files else batch_size, workers, on_broken):
            height, width = seen.shape[-2:]
            size = view_size(height, width, short_side)
            yield resized(seen, *size), resized_masks(masks, *size)

    def classes(masks: Tensor) -> Tensor:
        return patch_classes(masks, model.patch_size, num_classes).flatten(1)

    return HeldOut(sized, "pixels", share_of_right_pixels, classes)
