"""Batches of images: in an order, with random augmentation, and broken files told of."""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Iterable, Iterator

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset
from torch.utils.data import default_collate as stack

from vimoe.data.decode import BrokenImageError
from vimoe.data.splits import EpochOrder, Images, generator
from vimoe.distributed import rank, world_size
from vimoe.errors import UserError

OnBroken = Callable[[str], None]
Item = tuple[tuple[Tensor, int] | None, list[str]]

# The label of an image that is not to be counted, and of all its pixels where these are labelled.
NOBODY = -1
# So many unreadable images in a row are no accident: the disk is gone, or the data set is no data set.
_PATIENCE = 32


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
) -> Iterator[tuple[Tensor, Tensor]]:
    """The batches of one epoch from number `first` on.

    What an image's augmentation draws depends on seed, epoch, image and view alone: neither the number of workers or
    processes nor where the epoch was taken up again changes it. The next image that can be read stands in for a
    broken one, so that every process has the same number of batches, all of the same size.

    Args:
        images: The training images.
        batch_size: Images a batch, over all processes.
        seed: The run's seed.
        epoch: The epoch, from 0.
        first: The first batch to give.
        workers: Processes that decode.
        on_broken: Told of every broken image, one line each.
        repeats: Views of each image (see `EpochOrder`).
        part: This process's number and how many there are.

    Raises:
        UserError: Dozens of images in a row cannot be read.
    """
    order = EpochOrder(len(images), batch_size, seed, epoch, repeats, part).batches[first:]
    for batch in _load(_Augmented(images, seed, epoch), workers, on_broken, batch_sampler=order):
        if batch is None or len(batch[1]) < len(order[0]):
            raise UserError(f"{min(len(images), _PATIENCE)} training images in a row cannot be read: are they there?")
        yield batch


def batches(
    images: Images, batch_size: int = 256, workers: int = 0, on_broken: OnBroken | None = None
) -> Iterable[tuple[Tensor, Tensor]]:
    """All images once, in their own order, for evaluation; broken ones are left out.

    With several processes each gets every so manieth image, so that together they see each one once. Where the
    images do not come out even, some get one more that is labelled `NOBODY`, so that all take as many steps.
    """
    everyone = math.ceil(len(images) / world_size()) * world_size()
    mine = range(rank(), everyone, world_size())
    loaded = _load(_Told(images), workers, on_broken, batch_size=batch_size, sampler=mine)
    return (batch for batch in loaded if batch is not None)


class _Told(Dataset[Item]):
    """Images whose broken ones are a line of text, so that a worker process can tell of them."""

    def __init__(self, images: Images) -> None:
        self.images = images

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> Item:
        try:
            if index >= len(self.images):
                image, label = self.images[index % len(self.images)]
                return (image, torch.full_like(label, NOBODY) if isinstance(label, Tensor) else NOBODY), []
            return self.images[index], []
        except BrokenImageError as error:
            return None, [_line(error)]


class _Augmented(_Told):
    """One epoch's views of training images, by the numbers of `EpochOrder`."""

    def __init__(self, images: Images, seed: int, epoch: int) -> None:
        super().__init__(images)
        self.seed, self.epoch = seed, epoch

    def __getitem__(self, index: int) -> Item:
        if self.images.from_files:
            drawn = generator("image", self.seed, self.epoch, index).initial_seed()
            torch.default_generator.manual_seed(drawn)  # torch.manual_seed would take a fifth of a millisecond
            random.seed(drawn)
            np.random.seed(drawn)
        size, broken = len(self.images), list[str]()
        for following in range(min(size, _PATIENCE)):
            item, lines = super().__getitem__((index + following) % size)
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


def _load(
    told: _Told, workers: int, on_broken: OnBroken | None, **batching: object
) -> Iterator[tuple[Tensor, Tensor] | None]:
    """The batches, None for one of which nothing could be read."""
    workers = workers if told.images.from_files else 0
    loader = DataLoader(told, num_workers=workers, collate_fn=_collate, **batching)  # type: ignore[arg-type]
    for batch, broken in loader:
        for line in broken:
            if on_broken is not None:
                on_broken(line)
        yield None if batch is None else (batch[0], batch[1])
