"""What every data set offers, and the order in which a run sees it."""

from __future__ import annotations

import zlib
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import Dataset, Sampler

from vimoe.errors import UserError

Augment = Callable[[Tensor, torch.Generator], Tensor]
Samples = Sequence[tuple[Any, int]]

TRAIN_NAMES, VAL_NAMES, TEST_NAMES = ("train", "training"), ("val", "validation", "valid"), ("test", "testing")


class Images(Dataset[tuple[Tensor, int]]):
    """Labelled images that can be counted; an item is (image `[C, H, W]`, label).

    Attributes:
        from_files: Whether an item has to be read and decoded, which is work for other processes.
    """

    from_files = False

    def __len__(self) -> int:
        raise NotImplementedError


@dataclass(frozen=True)
class Splits:
    """Labelled images, split.

    Attributes:
        train: What is learned from; augmented by `augment`.
        val: What decisions are made on (which layers to keep).
        test: What is reported; never decides anything.
        class_names: By label.
        image_shape: C, H, W.
        mean: By channel, what was taken off pixel values between 0 and 1.
        std: By channel, what they were then divided by.
        interpolation: timm's name of the filter they were resized with.
        crop_pct: Share of the shorter side that evaluation looks at.
        augment: Augments a batch `[B, C, H, W]` of training images, None for no augmentation.
        super_classes: By label, the larger class that it belongs to (the script of a letter); empty without such.
    """

    train: Images
    val: Images
    test: Images
    class_names: tuple[str, ...]
    image_shape: tuple[int, int, int]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    interpolation: str = "bicubic"
    crop_pct: float = 1.0
    augment: Augment | None = None
    super_classes: tuple[str, ...] = ()


class Found(NamedTuple):
    """What a data set holds, before a model says in what form it wants it.

    Attributes:
        parts: Under `train`, and `val` and `test` where there are such: where each image is, and its label.
        class_names: By label.
        read: From where an image is to the image, in RGB.
    """

    parts: Mapping[str, Samples]
    class_names: tuple[str, ...]
    read: Callable[[Any], Image.Image]


def is_split(inside: Collection[str], wanted: tuple[str, str, str]) -> bool:
    """Whether a folder is split: a split is wanted by name, or what is `inside` has one of the usual names."""
    return any(wanted) or not {*TRAIN_NAMES, *VAL_NAMES, *TEST_NAMES}.isdisjoint(inside)


def choose_splits(there: Collection[str], wanted: tuple[str, str, str], where: str) -> dict[str, str]:
    """Which of the splits that are `there` to learn from (`train`), to decide on (`val`) and to report (`test`).

    Args:
        there: The names of the splits.
        wanted: The names for `train`, `val` and `test`; where one is empty, a usual name is looked for.
        where: The data set, for the message.

    Raises:
        UserError: A split that is wanted is not there, or none is there to learn from.
    """
    chosen = dict[str, str]()
    listed = ", ".join(list(there)[:10]) or "none"
    for role, name, usual in zip(("train", "val", "test"), wanted, (TRAIN_NAMES, VAL_NAMES, TEST_NAMES), strict=True):
        if name and name not in there:
            raise UserError(f"{where} has no split {name!r}; there is {listed}")
        taken = () if role == "train" else (*chosen.values(), *wanted)
        if found := name or next((n for n in usual if n in there and n not in taken), ""):
            chosen[role] = found
    if "train" not in chosen:
        raise UserError(f"{where} has no training split; name one with train_split: there is {listed}")
    return chosen


def check_classes(found: Sequence[str], expected: Sequence[str], whose: str) -> None:
    """Make sure that a data set has the classes that a model learned, in their order.

    Args:
        found: The data set's.
        expected: The model's.
        whose: How the message begins, such as `the images have other classes than the model`.

    Raises:
        UserError: They differ; the line names the first class that only one of them has.
    """
    if tuple(found) == tuple(expected):
        return
    odd = sorted(set(expected) ^ set(found))
    told = f", the first that differs is {odd[0]!r}" if odd else ", in another order"
    raise UserError(f"{whose}: {len(found)} against {len(expected)}{told}")


def generator(*key: int | str) -> torch.Generator:
    """A generator that depends on nothing but `key`: what a step draws does not depend on how it was reached."""
    seed = zlib.crc32(repr(key).encode())
    return torch.Generator().manual_seed(seed)


class EpochOrder(Sampler[list[int]]):
    """The batches of one epoch: a permutation that depends on seed and epoch alone, the incomplete batch dropped.

    With repeats (repeated augmentation, Berman et al. 2019, MultiGrain) an epoch has the same number of batches of
    fewer images, the views of an image side by side. Number `i + size * r` stands for view r of image i.

    Args:
        size: Number of images.
        batch_size: Images a batch, over all processes.
        seed: The run's seed.
        epoch: The epoch, from 0.
        repeats: Views of each image.
        part: This process's number and how many there are; each gets its share of every batch.
    """

    def __init__(
        self, size: int, batch_size: int, seed: int, epoch: int, repeats: int = 1, part: tuple[int, int] = (0, 1)
    ) -> None:
        order = torch.randperm(size, generator=generator("order", seed, epoch))
        place = torch.arange(size - size % batch_size)
        numbers = order[place // repeats] + size * (place % repeats)
        rank, world = part
        self.batches = numbers.view(size // batch_size, batch_size)[:, rank::world].tolist()

    def __iter__(self) -> Iterator[list[int]]:
        return iter(self.batches)

    def __len__(self) -> int:
        return len(self.batches)
