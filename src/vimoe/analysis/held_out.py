"""Held-out images in the form that a model of their task is measured on, and a sample of them."""

from collections.abc import Callable, Iterable, Iterator
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from vimoe.analysis.ablation_scores import Score, share_of_right_labels, share_of_right_pixels
from vimoe.analysis.patches import patch_classes, resized_masks
from vimoe.data.epoch_order import generator
from vimoe.data.images import Images, image_labels
from vimoe.data.loaders import OnBroken, batches
from vimoe.tasks.multilabel_metrics import label_ranking
from vimoe.tasks.segmenter import Segmenter
from vimoe.tasks.windows import resized, view_size


class HeldOut(NamedTuple):
    """Images, the same ones in the same order whenever `batches` is called, and how right an answer to them is."""

    batches: Callable[[], Iterable[tuple[Tensor, Tensor]]]
    metric: str = "top1"  # what the score is called: `top1`, `lrap` or `pixels`
    score: Score = share_of_right_labels  # how right an answer is, 0 to 1 an image
    # Targets to the class of each image `[B]`, or of each patch `[B, P]` with -1 for none; or to bool `[B, classes]`.
    classes: Callable[[Tensor], Tensor] = lambda labels: labels


def held_out(
    model: nn.Module,
    images: Images,
    num_classes: int,
    workers: int = 0,
    short_side: int | None = None,
    batch_size: int = 64,
    on_broken: OnBroken | None = None,
) -> HeldOut:
    """Images for a classifier (of one label or several), or images with masks for a segmentation model.

    They come without augmentation. Images with masks are looked at whole, their shorter side brought to `short_side`
    pixels first (None for its own); those from files may have any size and go one by one.
    """
    if not isinstance(model, Segmenter):
        whole = HeldOut(partial(batches, images, batch_size, workers, on_broken))
        if images.label_sets:
            return whole._replace(metric="lrap", score=label_ranking, classes=Tensor.bool)
        return whole

    def sized() -> Iterator[tuple[Tensor, Tensor]]:
        for seen, masks in batches(images, 1 if images.from_files else batch_size, workers, on_broken):
            height, width = seen.shape[-2:]
            size = view_size(height, width, short_side)
            yield resized(seen, *size), resized_masks(masks, *size)

    def classes(masks: Tensor) -> Tensor:
        return patch_classes(masks, model.patch_size, num_classes).flatten(1)

    return HeldOut(sized, "pixels", share_of_right_pixels, classes)


class Sample(Images):
    """The images of a split at some places."""

    def __init__(self, images: Images, places: list[int]) -> None:
        self.images, self.places = images, places
        self.from_files, self.label_sets = images.from_files, images.label_sets

    def __len__(self) -> int:
        return len(self.places)

    def __getitem__(self, index: int) -> tuple[Tensor, Any]:
        return self.images[self.places[index]]


def draw(images: Images, number: int, seed: int = 0) -> Sample:
    """Draw images from a split, each class in its share as far as that can be.

    All images in the order of their classes, within a class at random, are counted off evenly from a random start.
    Masks have no class of the image: there the draw is simply random. All are drawn if there are not so many.
    """
    size, drawn = len(images), generator("sample", seed)
    order = torch.randperm(size, generator=drawn)
    if (labels := image_labels(images)) is not None:
        order = order[labels[order].argsort(stable=True)]
    number = min(number, size)
    start = torch.rand(1, generator=drawn)
    places = ((torch.arange(number, dtype=torch.float64) + start) * size / max(1, number)).long()
    return Sample(images, order[places].sort().values.tolist())
