"""Batches of images: in an order, with random augmentation, and broken files listed."""

import contextlib
import math
import random
import sys
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset
from torch.utils.data import default_collate as stack

from vimoe.data.decode import BrokenImageError
from vimoe.data.epoch_order import epoch_order, generator
from vimoe.data.images import Images
from vimoe.distributed import rank, world_size
from vimoe.errors import UserError

OnBroken = Callable[[str], None]
Item = tuple[tuple[Tensor, Any] | None, list[str]]
Batch = tuple[Tensor, Tensor]

# The label of an image that is not to be counted, and of all its pixels where these are labelled.
NOBODY = -1
# So many unreadable images in a row are no accident: the disk is gone, or the data set is no data set.
_PATIENCE = 32
# Workers are forked where that is safe: spawned ones import torch anew, which takes longer than many an epoch.
_CONTEXT = "fork" if sys.platform == "linux" else None


# One view of a training image, by everything that its augmentation depends on: seed, epoch and number.
_View = tuple[int, int, int]
# What is asked of the images, batch by batch: by number, or as a view.
_Keys = Sequence[Sequence[int | _View]]


def training_batches(
    images: Images,
    batch_size: int,
    seed: int,
    epoch: int,
    first: int = 0,
    workers: int = 0,
    on_broken: OnBroken | None = None,
    repeats: int = 1,
    part: tuple[int, int] = (0, 1),
    weights: Tensor | None = None,
) -> Iterator[Batch]:
    """The batches of one epoch from number `first` on.

    What an image's augmentation draws depends on seed, epoch, image and view alone: neither the number of workers or
    processes nor where the epoch was resumed changes it. A broken image is replaced by the next one that can be read,
    so that every process has the same number of batches, all of the same size.

    Args:
        batch_size: Images a batch, over all processes.
        epoch: The epoch, from 0.
        first: The first batch to give.
        workers: Processes that decode; they are kept for the next epoch.
        on_broken: Called with one line for every broken image.
        repeats: Views of each image (see `epoch_order`).
        part: This process's rank and the world size.

    Raises UserError if dozens of images in a row cannot be read, or a worker was killed.
    """
    images = images.at_epoch(epoch)
    order = epoch_order(len(images), batch_size, seed, epoch, repeats, part, weights)[first:]
    views = [[(seed, epoch, number) for number in numbers] for numbers in order]
    for batch in _load(images, views, workers, on_broken):
        if batch is None or len(batch[1]) < len(order[0]):
            raise UserError(f"{min(len(images), _PATIENCE)} training images in a row cannot be read: are they there?")
        yield batch


def batches(
    images: Images, batch_size: int = 256, workers: int = 0, on_broken: OnBroken | None = None
) -> Iterator[Batch]:
    """All images once, in their own order, for evaluation; broken ones are left out.

    With several processes each gets its share, so that together they see each image once. Where the images do not
    divide evenly, some processes get one more that is labelled `NOBODY`, so that all take as many steps; so does one
    that can read no image of a batch.

    Raises UserError if there are several processes and dozens of images in a row cannot be read.
    """
    mine = range(rank(), math.ceil(len(images) / world_size()) * world_size(), world_size())
    order = [list(mine[start : start + batch_size]) for start in range(0, len(mine), batch_size)]
    for numbers, batch in zip(order, _load(images, order, workers, on_broken), strict=True):
        if batch is None and world_size() > 1:
            batch = _nobody(images, numbers[-1])
        if batch is not None:
            yield batch


def _nobody(images: Images, number: int) -> Batch:
    """A batch of the next image that can be read, labelled `NOBODY`."""
    size, items = len(images), _Items(images)
    for following in range(number, number + min(size, _PATIENCE)):
        item, _ = items[size + following % size]
        if item is not None:
            image, label = stack([item])
            return image, label
    raise UserError(f"{min(size, _PATIENCE)} images in a row cannot be read: are they there?")


def every_image(
    images: Images, view: int | None = None, batch_size: int = 256, workers: int = 0, on_broken: OnBroken | None = None
) -> Iterator[tuple[Tensor, Tensor, dict[int, str]]]:
    """All images once, in their own order, on this process alone; none is left out.

    Args:
        view: Which augmented view of training images; None for images as evaluation sees them.

    Returns:
        Batches of images, labels, and by number what is wrong with images that cannot be read: they are blank under a
        label of `NOBODY` in evaluation, while in training they are the next one and `on_broken` is called with a line.

    Raises UserError if no image of a batch can be read.
    """
    numbers = [list(range(first, min(first + batch_size, len(images)))) for first in range(0, len(images), batch_size)]
    keys: _Keys = numbers if view is None else [[(0, view, number) for number in batch] for batch in numbers]
    for wanted, batch in zip(numbers, _load(images, keys, workers, on_broken), strict=True):
        if batch is None:
            raise UserError(f"{len(wanted)} images in a row cannot be read: are they there?")
        if len(batch[1]) == len(wanted):
            yield *batch, {}
            continue
        items = {number: _Items(images)[number] for number in wanted}
        broken = {number: lines[0] for number, (item, lines) in items.items() if item is None}
        blank = torch.zeros_like(batch[0][0]), NOBODY
        yield *stack([item or blank for item, _ in items.values()]), broken


class _Items(Dataset[Item]):
    """Images by number or by view; broken ones are lines of text, which a worker can send."""

    def __init__(self, images: Images) -> None:
        self.images = images

    def __getitem__(self, key: int | _View) -> Item:
        if isinstance(key, tuple):
            return self._augmented(key)
        try:
            if key < len(self.images):
                return self.images[key], []
            image, label = self.images[key % len(self.images)]
            return (image, torch.full_like(label, NOBODY) if isinstance(label, Tensor) else NOBODY), []
        except BrokenImageError as error:
            return None, [_line(error)]

    def _augmented(self, view: _View) -> Item:
        if self.images.from_files:
            drawn = generator("image", *view).initial_seed()
            torch.default_generator.manual_seed(drawn)  # torch.manual_seed would take a fifth of a millisecond
            random.seed(drawn)
            np.random.seed(drawn)
        size, broken = len(self.images), list[str]()
        for following in range(min(size, _PATIENCE)):
            item, lines = self[(view[-1] + following) % size]
            broken += lines
            if item is not None:
                return item, broken
        return None, broken


def _line(error: BrokenImageError) -> str:
    """What is wrong in one line that can be written, whatever bytes the file's name is made of."""
    return str(error).encode(errors="backslashreplace").decode().replace("\n", "\\n")


def _collate(items: list[Item]) -> tuple[list[Tensor] | None, list[str]]:
    whole = [item for item, _ in items if item is not None]
    return stack(whole) if whole else None, [line for _, lines in items for line in lines]


# Loaders whose workers wait for the next pass: of a run's training and validation split, and one more.
_idle: list[DataLoader[Item]] = []
_MOST_IDLE = 3


def _load(images: Images, order: _Keys, workers: int, on_broken: OnBroken | None) -> Iterator[Batch | None]:
    """The batches, None for one of which nothing could be read."""
    loader = _take_loader(images, workers if images.from_files else 0)
    loader.batch_sampler[:] = order  # type: ignore[index]
    with contextlib.suppress(GeneratorExit):  # a pass that is broken off leaves the loader as good as new
        try:
            for batch, broken in loader:
                for line in broken:
                    if on_broken is not None:
                        on_broken(line)
                yield None if batch is None else (batch[0], batch[1])
        except RuntimeError as error:
            if "DataLoader worker" not in str(error):
                raise
            raise UserError("a process that decodes images was killed: is memory short? try fewer workers") from error
    if loader.num_workers:
        _idle.insert(0, loader)
        del _idle[_MOST_IDLE:]


def _take_loader(images: Images, workers: int) -> DataLoader[Item]:
    """A loader that no other pass uses."""
    for i, loader in enumerate(_idle):
        if loader.dataset.images is images and loader.num_workers == workers:  # type: ignore[attr-defined]
            return _idle.pop(i)
    return DataLoader(
        _Items(images),
        batch_sampler=[],
        num_workers=workers,
        collate_fn=_collate,
        pin_memory=torch.cuda.is_initialized(),
        persistent_workers=workers > 0,
        multiprocessing_context=_CONTEXT if workers else None,
    )
