"""A folder of labelled pictures: one folder a class, in `train`, `val` and `test`, or not split at all."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import torch
from PIL import Image
from timm.data import create_transform, resolve_data_config
from torch import Tensor

from vimoe.data.decode import SUFFIXES, read_picture
from vimoe.data.splits import Pictures, Splits, generator
from vimoe.errors import UserError

TRAIN_NAMES, VAL_NAMES, TEST_NAMES = ("train", "training"), ("val", "validation", "valid"), ("test", "testing")


class PictureForm(NamedTuple):
    """How a model wants its pictures.

    Attributes:
        shape: C, H, W.
        mean: By channel, taken off pixel values between 0 and 1.
        std: By channel, what they are then divided by.
        interpolation: timm's name of the resampling filter.
        crop_pct: Share of the picture's shorter side that evaluation looks at.
    """

    shape: tuple[int, int, int]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    interpolation: str
    crop_pct: float


def picture_form(pretrained_cfg: dict[str, Any], img_size: int | None = None) -> PictureForm:
    """What a timm `pretrained_cfg` says about pictures, with another size where one is given."""
    wanted = resolve_data_config(pretrained_cfg=pretrained_cfg)
    channels, height, width = wanted["input_size"]
    shape = (channels, img_size or height, img_size or width)
    return PictureForm(shape, tuple(wanted["mean"]), tuple(wanted["std"]), wanted["interpolation"], wanted["crop_pct"])


class Variation(NamedTuple):
    """How training pictures are varied, in timm's terms.

    Attributes:
        scale: Share of the picture's area that a random crop shows, at least.
        hflip: Chance of a mirrored picture.
        color_jitter: Strength of random brightness, contrast and saturation.
        aa: timm's auto-augment policy, such as `rand-m9-mstd0.5-inc1`; empty for none.
        reprob: Chance of an erased rectangle.
    """

    scale: float = 0.08
    hflip: float = 0.5
    color_jitter: float = 0.4
    aa: str = ""
    reprob: float = 0.0


class PictureFiles(Pictures):
    """Picture files with labels, decoded and transformed when asked for."""

    from_files = True

    def __init__(self, samples: Sequence[tuple[Path, int]], transform: Callable[[Image.Image], Tensor]) -> None:
        self.samples = samples
        self.transform = transform

    def __len__(self) -> int:
        return len(self.samples)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        path, label = self.samples[index]
        return self.transform(read_picture(path)), label


def open_folder(root: Path, form: PictureForm, variation: Variation | None, val_share: float, seed: int) -> Splits:
    """Find the splits and classes of a picture folder.

    `train`, `val` and `test` are found by name. Without `val`, `test` decides; without either, `val_share` of each
    class is set aside, drawn with `seed`. What is missing beyond that is taken from `val`.

    Args:
        root: The folder.
        form: How the model wants its pictures.
        variation: How training pictures are varied; None shows them as evaluation does.
        val_share: Share of each class to set aside where there is no `val` and no `test`.
        seed: The run's seed.

    Raises:
        UserError: The folder is missing or empty, a class folder is empty, or the splits have different classes.
    """
    if not root.is_dir():
        raise UserError(f"data_dir {root} is not a folder")
    train_root = _find(root, TRAIN_NAMES) or root
    class_names = _class_names(train_root)
    train = _samples(train_root, class_names)
    held = {name: _find(root, names) for name, names in (("val", VAL_NAMES), ("test", TEST_NAMES))}
    parts = {name: _samples(folder, class_names) for name, folder in held.items() if folder and folder != train_root}
    if not parts:
        train, parts["val"] = _set_aside(train, len(class_names), val_share, seed)
    val = parts.get("val") or parts["test"]
    evaluation = evaluation_transform(form)
    return Splits(
        train=PictureFiles(train, training_transform(form, variation)),
        val=PictureFiles(val, evaluation),
        test=PictureFiles(parts.get("test") or val, evaluation),
        class_names=class_names,
        image_shape=form.shape,
        mean=form.mean,
        std=form.std,
        interpolation=form.interpolation,
        crop_pct=form.crop_pct,
    )


def _find(root: Path, names: Sequence[str]) -> Path | None:
    return next((root / name for name in names if (root / name).is_dir()), None)


def _class_names(root: Path) -> tuple[str, ...]:
    names = sorted(entry.name for entry in root.iterdir() if entry.is_dir() and not entry.name.startswith("."))
    if not names:
        raise UserError(f"{root} holds no class folders: it needs one folder of pictures for each class")
    return tuple(names)


def _samples(root: Path, class_names: tuple[str, ...]) -> list[tuple[Path, int]]:
    found = _class_names(root)
    if found != class_names:
        odd = sorted(set(found) ^ set(class_names))[0]
        where = "only" if odd in found else "no"
        raise UserError(f"{root} has other classes than the training pictures: {where} {odd!r} here")
    samples = []
    for label, name in enumerate(class_names):
        paths = sorted(
            Path(folder) / file
            for folder, _, files in os.walk(root / name, followlinks=True)
            for file in files
            if file.lower().endswith(SUFFIXES) and not file.startswith(".")
        )
        if not paths:
            raise UserError(f"the class folder {root / name} holds no pictures")
        samples += [(path, label) for path in paths]
    return samples


def _set_aside(
    samples: list[tuple[Path, int]], num_classes: int, share: float, seed: int
) -> tuple[list[tuple[Path, int]], list[tuple[Path, int]]]:
    """The same share of every class, at least one picture, in the samples' own order."""
    kept, aside = [], []
    for label in range(num_classes):
        members = [sample for sample in samples if sample[1] == label]
        order = torch.randperm(len(members), generator=generator("set aside", seed, label)).tolist()
        taken = set(order[: max(1, round(share * len(members)))])
        if len(taken) == len(members):
            raise UserError(f"the class folder {members[0][0].parent} has too few pictures to set some aside")
        kept += [sample for i, sample in enumerate(members) if i not in taken]
        aside += [sample for i, sample in enumerate(members) if i in taken]
    return kept, aside


def evaluation_transform(form: PictureForm) -> Callable[[Image.Image], Tensor]:
    """Resize, centre crop, normalise."""
    return _in_channels(form, create_transform(**_common(form), is_training=False))


def training_transform(form: PictureForm, variation: Variation | None) -> Callable[[Image.Image], Tensor]:
    """Vary and normalise; as evaluation does without a variation.

    Raises:
        UserError: timm does not know the auto-augment policy.
    """
    if variation is None:
        return evaluation_transform(form)
    try:
        transform = create_transform(
            **_common(form),
            is_training=True,
            scale=(variation.scale, 1.0),
            hflip=variation.hflip,
            color_jitter=variation.color_jitter,
            auto_augment=variation.aa or None,
            re_prob=variation.reprob,
            re_mode="pixel",
        )
    except (AssertionError, ValueError, KeyError, NotImplementedError) as error:
        raise UserError(f"timm cannot vary pictures as {variation}: {error}") from error
    return _in_channels(form, transform)


def _common(form: PictureForm) -> dict[str, Any]:
    return {
        "input_size": form.shape,
        "mean": form.mean,
        "std": form.std,
        "interpolation": form.interpolation,
        "crop_pct": form.crop_pct,
    }


def _in_channels(form: PictureForm, transform: Any) -> Callable[[Image.Image], Tensor]:
    """Pictures come in RGB; a model of one channel gets their brightness."""
    return transform if form.shape[0] == 3 else partial(_brightness, transform=transform)


def _brightness(picture: Image.Image, transform: Callable[[Image.Image], Tensor]) -> Tensor:
    return transform(picture.convert("L"))
