"""Images with any number of labels each, from a table of labels: targets are `[classes]` of 0 and 1."""

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from vimoe.data.decode import read_image
from vimoe.data.epoch_order import generator
from vimoe.data.images import Samples
from vimoe.data.label_table import by_number, read_label_table
from vimoe.data.splits import AS_USUAL, Found, Wanted
from vimoe.errors import UserError


def with_label_set(
    read: Callable[[Any], Image.Image], num_classes: int, where: Any, labels: tuple[int, ...]
) -> tuple[Image.Image, Tensor]:
    """A `Read` of images with a set of labels each, from what reads the images; the target is int64."""
    return read(where), multi_hot([labels], num_classes)[0]


def multi_hot(sets: list[tuple[int, ...]], num_classes: int) -> Tensor:
    """`[sets, classes]` int64, 1 where a set has the label."""
    target = torch.zeros(len(sets), num_classes, dtype=torch.int64)
    for row, labels in zip(target, sets, strict=True):
        row[list(labels)] = 1
    return target


def find_label_sets(root: Path, wanted: Wanted = AS_USUAL) -> Found:
    """The splits and labels of a table (see `vimoe.data.label_table`); an image may have none.

    Raises UserError if it cannot be read, no training image has a label, or a split has a label that training has not.
    """
    table = read_label_table(root, wanted)
    first = next(iter(table.splits))
    names = {split: {label for labels in images.values() for label in labels} for split, images in table.splits.items()}
    class_names = tuple(sorted(names[first], key=by_number))
    if not class_names:
        raise UserError(f"{root} gives no image a label")
    for split, there in names.items():
        if odd := sorted(there - names[first]):
            raise UserError(f"the {split} images in {root} have other labels than {first}: {odd[0]!r} is only there")
    number = {name: label for label, name in enumerate(class_names)}
    parts: dict[str, Samples] = {
        split: [(path, tuple(sorted(number[label] for label in labels))) for path, labels in images.items()]
        for split, images in table.splits.items()
    }
    return Found(parts, class_names, partial(with_label_set, read_image, len(class_names)), notes=table.notes)


def set_aside(samples: Samples, share: float, seed: int) -> dict[str, Samples]:
    """`train` without the share that becomes `val`, each in the samples' own order.

    Images are drawn by the rarest of their labels, the same share of each, so that a rare label is in both parts as far
    as that can be; none is lost to training.

    Raises UserError if there are too few images.
    """
    counts = _counted(samples)
    rarest: dict[int, list[int]] = {}
    for place, (_, labels) in enumerate(samples):
        rarest.setdefault(min(labels, key=lambda label: int(counts[label]), default=-1), []).append(place)
    aside = set[int]()
    for label, places in sorted(rarest.items()):
        order = torch.randperm(len(places), generator=generator("set aside", seed, label)).tolist()
        aside |= {places[i] for i in order[: min(len(places) - 1, max(1, round(share * len(places))))]}
    left = counts - _counted([samples[place] for place in aside], len(counts))
    for place in sorted(aside):
        labels = list(samples[place][1])
        if (left[labels] == 0).any():
            aside.remove(place)
            left[labels] += 1
    if not aside:
        raise UserError(f"{len(samples)} images are too few to set some aside: give a val split")
    return {
        "train": [sample for place, sample in enumerate(samples) if place not in aside],
        "val": [sample for place, sample in enumerate(samples) if place in aside],
    }


def _counted(samples: Samples, least: int = 0) -> Tensor:
    """How many samples have each label."""
    labels = [label for _, labels in samples for label in labels]
    return torch.tensor(labels, dtype=torch.int64).bincount(minlength=least)
