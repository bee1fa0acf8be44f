"""From a data set's name to its images, in the form a model wants them."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from vimoe.data.ade20k import open_ade20k
from vimoe.data.archive import find_tar
from vimoe.data.digits import digits
from vimoe.data.folder import (
    Augmentation,
    ImageFiles,
    ImageForm,
    evaluation_transform,
    find_folder,
    training_transform,
)
from vimoe.data.glyphs import open_glyphs
from vimoe.data.mask_augmentation import JointAugmentation
from vimoe.data.scenes import digit_scenes
from vimoe.data.splits import Found, Samples, Splits, generator
from vimoe.data.streams import find_hugging_face, find_torchvision, find_webdataset
from vimoe.errors import UserError

EMBEDDED = ("digits", "glyphs", "digit_scenes")
NAMES = ("digits", "glyphs", "folder", "tar", "torch/NAME", "wds/NAME", "hfds/NAME", "hfids/NAME")


def open_dataset(
    name: str,
    data_dir: str | None = None,
    form: ImageForm | None = None,
    augmentation: Augmentation | None = None,
    val_share: float = 0.1,
    seed: int = 0,
    splits: tuple[str, str, str] = ("", "", ""),
    per_class: int | None = None,
    dataset_args: Mapping[str, Any] | None = None,
) -> Splits:
    """The images behind a recipe's `dataset`.

    Splits are found by their usual names where they are not told. Without `val`, `val_share` of each class is set
    aside from the training images, drawn with `seed`; without `test`, `val` is reported.

    Args:
        name: `digits` or `glyphs` (embedded; take nothing else but `dataset_args`), `folder` and `tar` (one folder a
            class), or, as timm has them, `torch/NAME` (torchvision), `wds/NAME` (webdataset), `hfds/NAME` and
            `hfids/NAME` (Hugging Face).
        data_dir: The folder or archive; for `hfds/NAME` where downloads are kept, the library's own place if None.
        form: How the model wants its images.
        augmentation: How training images are augmented; None shows them as evaluation does.
        val_share: Share of each class to set aside where there is no `val` and no `test`.
        seed: The run's seed.
        splits: Names of the splits for `train`, `val` and `test`; empty ones are found by the usual names.
        per_class: So many training images of each class, drawn with `seed`; all of them if None.
        dataset_args: Arguments of `vimoe.data.glyphs.glyphs`; other data sets take none.

    Raises:
        UserError: The name is not known, or the data set cannot be used.
    """
    if name == "glyphs":
        return open_glyphs(dataset_args or {})
    if dataset_args:
        raise UserError(f"dataset {name!r} takes no dataset_args, got {', '.join(dataset_args)}")
    if name == "digits":
        return digits()
    found = _find(name, data_dir, splits)
    if form is None:
        raise UserError(f"dataset {name!r} needs a model that says in what form it wants its images")
    for part, samples in found.parts.items():
        _check(samples, part, found.class_names)
    if "val" not in found.parts:
        found = found._replace(parts={**found.parts, **_set_aside(found, val_share, seed)})
    train = found.parts["train"]
    if per_class is not None:
        train = _draw(train, len(found.class_names), per_class, seed)
    evaluation = evaluation_transform(form)
    val = found.parts["val"]
    return Splits(
        train=ImageFiles(train, training_transform(form, augmentation), found.read),
        val=ImageFiles(val, evaluation, found.read),
        test=ImageFiles(found.parts.get("test") or val, evaluation, found.read),
        class_names=found.class_names,
        image_shape=form.shape,
        mean=form.mean,
        std=form.std,
        interpolation=form.interpolation,
        crop_pct=form.crop_pct,
    )


def open_masks(
    name: str,
    data_dir: str | None = None,
    form: ImageForm | None = None,
    augmentation: JointAugmentation | None = None,
    reduce_zero_label: bool = True,
    splits: tuple[str, str, str] = ("", "", ""),
    short_side: int | None = None,
) -> Splits:
    """The images with masks behind a segmentation recipe's `dataset`.

    Args:
        name: `digit_scenes` (embedded; takes nothing else) or `ade20k` (see `vimoe.data.ade20k.open_ade20k`).
        data_dir: The folder.
        form: How the model wants its images.
        augmentation: How training images are augmented together with their masks.
        reduce_zero_label: Whether masks say 0 for unlabelled.
        splits: Names of the splits for `train`, `val` and `test`; empty ones are found by the usual names.
        short_side: Pixels that the shorter side is brought to first.

    Raises:
        UserError: The name is not known, or the data set cannot be used.
    """
    if name == "digit_scenes":
        return digit_scenes()
    if name != "ade20k":
        raise UserError(f"dataset {name!r} has no masks; for segmentation there is digit_scenes, ade20k")
    if data_dir is None or form is None:
        raise UserError("dataset 'ade20k' needs data_dir, the folder of images and annotations")
    return open_ade20k(Path(data_dir), form, augmentation, reduce_zero_label, splits, short_side)


def _find(name: str, data_dir: str | None, splits: tuple[str, str, str]) -> Found:
    kind, _, rest = name.partition("/")
    if kind == "hfids" and not Path(rest).is_dir():
        raise UserError(f"{name} would be streamed, which cannot be resumed exactly: hfds/{rest} is prepared on disk")
    if kind in ("hfds", "hfids") and rest:
        return find_hugging_face(rest, data_dir, splits)
    if not (name in ("folder", "tar") or kind == "wds" or (kind == "torch" and rest)):
        raise UserError(f"unknown dataset {name!r}; there is {', '.join(NAMES)}")
    if data_dir is None:
        raise UserError(f"dataset {name!r} needs data_dir, the folder of images or archives")
    root = Path(data_dir)
    if kind == "torch":
        return find_torchvision(rest, root, splits)
    return {"folder": find_folder, "tar": find_tar, "wds": find_webdataset}[kind](root, splits)


def _check(samples: Samples, part: str, class_names: tuple[str, ...]) -> None:
    if not samples:
        raise UserError(f"the {part} split holds no images")
    for where, label in samples:
        if not 0 <= label < len(class_names):
            raise UserError(
                f"label {label} of image {where} is out of range: there are {len(class_names)} classes, from 0"
            )


def _shuffled(samples: Samples, num_classes: int, purpose: str, seed: int) -> list[list[int]]:
    """By class, the places of its samples, in an order drawn for this purpose and seed."""
    members: list[list[int]] = [[] for _ in range(num_classes)]
    for place, (_, label) in enumerate(samples):
        members[label].append(place)
    orders = (torch.randperm(len(m), generator=generator(purpose, seed, label)) for label, m in enumerate(members))
    return [[places[i] for i in order.tolist()] for places, order in zip(members, orders, strict=True)]


def _draw(samples: Samples, num_classes: int, per_class: int, seed: int) -> Samples:
    """So many samples of each class (fewer where there are fewer), in their own order."""
    if per_class < 1:
        raise UserError(f"per_class must be at least 1, got {per_class}")
    by_class = _shuffled(samples, num_classes, "per class", seed)
    return [samples[place] for place in sorted(place for places in by_class for place in places[:per_class])]


def _set_aside(found: Found, share: float, seed: int) -> Mapping[str, Samples]:
    """The same share of every class, at least one image, in the samples' own order."""
    samples, aside = found.parts["train"], set[int]()
    for label, places in enumerate(_shuffled(samples, len(found.class_names), "set aside", seed)):
        taken = places[: max(1, round(share * len(places)))]
        if places and len(taken) == len(places):
            raise UserError(f"the class {found.class_names[label]!r} has too few images to set some aside")
        aside |= set(taken)
    return {
        "train": [sample for i, sample in enumerate(samples) if i not in aside],
        "val": [sample for i, sample in enumerate(samples) if i in aside],
    }
