"""Batches of pictures: in an order, with random variation, and broken files left out but told."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable, Iterator

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset
from torch.utils.data import default_collate as stack

from vimoe.data.decode import BrokenPictureError
from vimoe.data.splits import EpochOrder, Pictures, generator
from vimoe.processes import rank, world_size

OnBroken = Callable[[str], None]
Item = tuple[Tensor, int] | str


def training_batches(
    pictures: Pictures,
    batch_size: int,
    seed: int,
    epoch: int,
    first: int = 0,
    workers: int = 0,
    on_broken: OnBroken | None = None,
) -> Iterator[tuple[Tensor, Tensor]]:
    """The batches of one epoch from number `first` on.

    What a picture's variation draws depends on seed, epoch and picture alone: neither the number of workers nor
    where the epoch was taken up again changes it.

    Args:
        pictures: The training pictures.
        batch_size: Pictures a batch; broken ones are missing from theirs.
        seed: The run's seed.
        epoch: The epoch, from 0.
        first: The first batch to give.
        workers: Processes that decode.
        on_broken: Told of every broken picture, one line each.
    """
    order = EpochOrder(len(pictures), batch_size, seed, epoch).batches[first:]
    return _load(_Told(pictures, (seed, epoch)), workers, on_broken, batch_sampler=order)


def batches(
    pictures: Pictures, batch_size: int = 256, workers: int = 0, on_broken: OnBroken | None = None
) -> Iterable[tuple[Tensor, Tensor]]:
    """All pictures once, in their own order, for evaluation; broken ones are left out.

    With several processes each gets every so manieth picture, so that together they see each one once.
    """
    mine = range(rank(), len(pictures), world_size())
    return _load(_Told(pictures, None), workers, on_broken, batch_size=batch_size, sampler=mine)


class _Told(Dataset[Item]):
    """Pictures whose broken ones are a line of text, so that a worker process can tell of them."""

    def __init__(self, pictures: Pictures, seed: tuple[int, int] | None) -> None:
        self.pictures = pictures
        self.seed = seed

    def __len__(self) -> int:
        return len(self.pictures)

    def __getitem__(self, index: int) -> Item:
        if self.seed is not None and self.pictures.from_files:
            drawn = generator("picture", *self.seed, index).initial_seed()
            torch.manual_seed(drawn)
            random.seed(drawn)
            np.random.seed(drawn)
        try:
            return self.pictures[index]
        except BrokenPictureError as error:
            return str(error)


def _collate(items: list[Item]) -> tuple[Tensor | None, Tensor | None, list[str]]:
    whole = [item for item in items if not isinstance(item, str)]
    broken = [item for item in items if isinstance(item, str)]
    pictures, labels = stack(whole) if whole else (None, None)
    return pictures, labels, broken


def _load(told: _Told, workers: int, on_broken: OnBroken | None, **batching: object) -> Iterator[tuple[Tensor, Tensor]]:
    workers = workers if told.pictures.from_files else 0
    loader = DataLoader(told, num_workers=workers, collate_fn=_collate, **batching)  # type: ignore[arg-type]
    for pictures, labels, broken in loader:
        for line in broken:
            if on_broken is not None:
                on_broken(line)
        if pictures is not None:
            yield pictures, labels
