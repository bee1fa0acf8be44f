"""From a model to the class probabilities of an image: whole or by windows, at several sizes, mirrored or not."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from vimoe.data.mask_augmentation import size_factor
from vimoe.errors import UserError
from vimoe.tasks.task import finite

Model = Callable[[Tensor], Tensor]  # `[n, C, h, w]` to logits `[n, classes, h, w]`


@dataclass(frozen=True)
class View:
    """How an image is looked at. Raises UserError if a number is out of range."""

    # Pixels that the shorter side is brought to first, the ratio kept (see `view_size`); None for the image's own.
    short_side: int | None = None
    window: int | None = None  # side of the windows in pixels; None looks at the whole image at once
    stride: int = 341  # pixels from one window to the next. 341 for windows of 512 is DINOv2's protocol.
    batch: int = 8  # windows that go through the model together
    scales: tuple[float, ...] = (1.0,)  # sizes relative to `short_side` that are looked at in turn
    flips: bool = False  # whether each is also looked at mirrored

    def __post_init__(self) -> None:
        for name in ("short_side", "window", "stride", "batch"):
            if (value := getattr(self, name)) is not None and value < 1:
                raise UserError(f"{name} must be at least 1, got {value}")
        if self.window is not None and self.stride > self.window:
            raise UserError(f"stride {self.stride} leaves gaps between windows of {self.window} pixels")
        if not self.scales or min(self.scales) <= 0:
            raise UserError(f"scales must be one or more positive numbers, got {list(self.scales)}")


def probabilities(model: Model, images: Tensor, view: View) -> Tensor:
    """Class probabilities of images of one size, at that size.

    From `[B, C, H, W]` to `[B, classes, H, W]` fp32. Several scales and flips are averaged after the softmax, as
    mmsegmentation does.

    Raises UserError if the logits are not finite.
    """
    height, width = images.shape[-2:]
    total: Tensor | None = None
    for scale in view.scales:
        sized = resized(images, *view_size(height, width, view.short_side, scale))
        for mirrored in (False, True) if view.flips else (False,):
            seen = sized.flip(-1) if mirrored else sized
            logits = model(seen) if view.window is None else sliding_window(model, seen, view)
            logits = logits.float().flip(-1) if mirrored else logits.float()
            probs = resized(finite(logits), height, width).softmax(1)
            total = probs if total is None else total.add_(probs)
    assert total is not None
    return total.div_(len(view.scales) * (1 + view.flips))


def sliding_window(model: Model, images: Tensor, view: View) -> Tensor:
    """Logits of overlapping windows, averaged where they overlap.

    The last window of each axis ends at the border, as in mmsegmentation; an image smaller than a window is one
    window of its own size. From `[B, C, H, W]` to `[B, classes, H, W]` fp32.
    """
    height, width = images.shape[-2:]
    window = view.window or max(height, width)
    rows, columns = min(window, height), min(window, width)
    places = [
        (i, top, left)
        for i in range(len(images))
        for top in window_starts(height, window, view.stride)
        for left in window_starts(width, window, view.stride)
    ]
    total: Tensor | None = None
    counts = images.new_zeros(len(images), 1, height, width, dtype=torch.float32)
    for first in range(0, len(places), view.batch):
        group = places[first : first + view.batch]
        logits = model(torch.stack([images[i, :, y : y + rows, x : x + columns] for i, y, x in group]))
        if total is None:
            total = logits.new_zeros(len(images), logits.shape[1], height, width, dtype=torch.float32)
        for (i, y, x), piece in zip(group, logits, strict=True):
            total[i, :, y : y + rows, x : x + columns] += piece
            counts[i, :, y : y + rows, x : x + columns] += 1
    assert total is not None
    return total.div_(counts)


def window_starts(size: int, window: int, stride: int) -> list[int]:
    """Where the windows along an axis of `size` pixels start: every `stride`, the last flush with the end."""
    last = max(0, size - window)
    return [*range(0, last, stride), last]


def view_size(height: int, width: int, short_side: int | None, scale: float = 1.0) -> tuple[int, int]:
    """Height and width at which an image is looked at, at least one pixel each; see `size_factor`."""
    factor = scale * size_factor(width, height, short_side)
    return max(1, round(factor * height)), max(1, round(factor * width))


def resized(x: Tensor, height: int, width: int) -> Tensor:
    """`[B, C, h, w]` at another size, bilinear and smoothed before it shrinks; itself where the size is right."""
    if x.shape[-2:] == (height, width):
        return x
    shrinks = height < x.shape[-2]
    return F.interpolate(x, size=(height, width), mode="bilinear", align_corners=False, antialias=shrinks)
