"""What every data set offers, and the order in which a run sees it."""

from __future__ import annotations

import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.utils.data import Dataset, Sampler

Augment = Callable[[Tensor, torch.Generator], Tensor]


class Pictures(Dataset[tuple[Tensor, int]]):
    """Labelled pictures that can be counted; an item is (picture `[C, H, W]`, label).

    Attributes:
        from_files: Whether an item has to be read and decoded, which is work for other processes.
    """

    from_files = False

    def __len__(self) -> int:
        raise NotImplementedError


@dataclass(frozen=True)
class Splits:
    """Labelled pictures, split.

    Attributes:
        train: What is learned from; varied by `augment`.
        val: What decisions are made on (which layers to keep).
        test: What is reported; never decides anything.
        class_names: By label.
        image_shape: C, H, W.
        mean: By channel, what was taken off pixel values between 0 and 1.
        std: By channel, what they were then divided by.
        interpolation: timm's name of the filter they were resized with.
        crop_pct: Share of the shorter side that evaluation looks at.
        augment: Varies a batch `[B, C, H, W]` of training pictures, None for no variation.
    """

    train: Pictures
    val: Pictures
    test: Pictures
    class_names: tuple[str, ...]
    image_shape: tuple[int, int, int]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    interpolation: str = "bicubic"
    crop_pct: float = 1.0
    augment: Augment | None = None


def generator(*key: int | str) -> torch.Generator:
    """A generator that depends on nothing but `key`: what a step draws does not depend on how it was reached."""
    seed = zlib.crc32(repr(key).encode())
    return torch.Generator().manual_seed(seed)


class EpochOrder(Sampler[list[int]]):
    """The batches of one epoch: a permutation that depends on seed and epoch alone, the incomplete batch dropped.

    Args:
        size: Number of pictures.
        batch_size: Pictures a batch.
        seed: The run's seed.
        epoch: The epoch, from 0.
    """

    def __init__(self, size: int, batch_size: int, seed: int, epoch: int) -> None:
        order = torch.randperm(size, generator=generator("order", seed, epoch))
        self.batches = [batch.tolist() for batch in order.split(batch_size) if len(batch) == batch_size]

    def __iter__(self) -> Iterator[list[int]]:
        return iter(self.batches)

    def __len__(self) -> int:
        return len(self.batches)
