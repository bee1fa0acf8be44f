"""From a data set's name to its images, in the form a model wants them."""

from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

import torch

from vimoe.data.ade20k import find_ade20k
from vimoe.data.archive import find_tar
from vimoe.data.coco import find_coco
from vimoe.data.decode import read_image
from vimoe.data.digits import digits
from vimoe.data.epoch_order import generator
from vimoe.data.folder import find_folder
from vimoe.data.glyphs import open_glyphs
from vimoe.data.images import ImageFiles, Images, Samples
from vimoe.data.label_sets import find_label_sets, set_aside, with_label_set
from vimoe.data.label_table import find_label_table
from vimoe.data.mask_augmentation import JointAugmentation, evaluation_pair, training_pair
from vimoe.data.scenes import digit_scenes
from vimoe.data.splits import Found, OneSplit, RunSplits, Splits, Wanted
from vimoe.data.streams import find_hugging_face, find_torchvision, find_webdataset
from vimoe.data.transforms import Augmentation, ImageForm, evaluation_transform, training_transform
from vimoe.errors import UserError, suggest

EMBEDDED = ("digits", "glyphs", "digit_scenes")
WITH_MASKS = ("digit_scenes", "ade20k", "coco")
NAMES = (
    "digits",
    "glyphs",
    "folder",
    "csv",
    "ade20k",
    "coco",
    "tar",
    "torch/NAME",
    "wds/NAME",
    "hfds/NAME",
    "hfids/NAME",
)


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
    super_classes: bool | None = None,
) -> Splits:
    """The labelled images behind a recipe's `dataset`.

    Without a `val` split, `val_share` of each class is set aside from the training images, drawn with `seed`; without
    `test`, `val` is reported.

    Args:
        name: `digits` or `glyphs` (embedded; take nothing else but `dataset_args`), `folder` and `tar` (one folder a
            class), `csv` (a table of paths and labels), or, as timm has them, `torch/NAME` (torchvision), `wds/NAME`
            (webdataset), `hfds/NAME` and `hfids/NAME` (Hugging Face).
        data_dir: The folder or archive; for `hfds/NAME` where downloads are kept, the library's own place if None.
        augmentation: How training images are augmented; None shows them as evaluation does.
        val_share: Share of each class to set aside where there is no `val`.
        splits: Names of the splits for `train`, `val` and `test`; empty ones are found by the usual names.
        per_class: So many training images of each class, drawn with `seed`; all of them if None.
        dataset_args: Arguments of `vimoe.data.glyphs.glyphs`; other data sets take none.
        super_classes: See `find_folder`.

    Raises UserError if the name is not known, or the data set cannot be used.
    """
    if name in EMBEDDED and name not in WITH_MASKS:
        return _embedded(name, dataset_args, data_dir=data_dir, per_class=per_class, splits=any(splits))
    if dataset_args:
        raise UserError(f"dataset {name!r} takes no dataset_args, got {', '.join(dataset_args)}")
    if name in WITH_MASKS:
        raise UserError(f"dataset {name!r} has masks, no labels: it is for segmentation")
    found = _find(name, data_dir, RunSplits(*splits), super_classes=super_classes)
    class_names = found.class_names or _number_classes(found.parts["train"])
    for part, samples in found.parts.items():
        _check(samples, part, class_names)
    parts = dict(found.parts)
    if "val" not in parts:
        parts |= _set_aside(parts["train"], class_names, val_share, seed)
    if per_class is not None:
        parts["train"] = _draw(parts["train"], len(class_names), per_class, seed)
    form = _needed(form)
    training, evaluation = training_transform(form, augmentation), evaluation_transform(form)
    return _splits(found._replace(parts=parts, class_names=class_names), form, training, evaluation)


def open_label_sets(
    name: str,
    data_dir: str | None = None,
    form: ImageForm | None = None,
    augmentation: Augmentation | None = None,
    val_share: float = 0.1,
    seed: int = 0,
    splits: tuple[str, str, str] = ("", "", ""),
) -> Splits:
    """The images with any number of labels each behind a recipe's `dataset`, `folder` or `csv`: see `open_dataset`."""
    found = _find_sets(name, data_dir, RunSplits(*splits))
    parts = dict(found.parts)
    if "val" not in parts:
        parts |= set_aside(parts["train"], val_share, seed)
    form = _needed(form)
    return _splits(
        found._replace(parts=parts), form, training_transform(form, augmentation), evaluation_transform(form)
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

    Without a split to report on (`test`) it is the one that decides (`val`), and the reverse.

    Args:
        name: `digit_scenes` (embedded; the other arguments are for files), `ade20k` or `coco` (see the modules).
        form: How the model wants its images; training crops have its height and width.
        augmentation: How training images are augmented together with their masks; None shows their middle.
        splits: Names of the splits for `train`, `val` and `test`; empty ones are found by the usual names.
        short_side: Pixels that the shorter side is brought to first.

    Raises UserError if the name is not known, or the data set cannot be used.
    """
    if name == "digit_scenes":
        return _embedded(name, None, data_dir=data_dir, splits=any(splits))
    if name not in WITH_MASKS:
        raise UserError(f"dataset {name!r} has no masks; for segmentation there is {', '.join(WITH_MASKS)}")
    found = _find(name, data_dir, RunSplits(*splits), reduce_zero_label)
    if found.parts.keys() == {"train"}:
        raise UserError(f"{data_dir} has no split to decide on; name one with val_split")
    form = _needed(form)
    training = partial(training_pair, form=form, augmentation=augmentation, short_side=short_side)
    return _splits(found, form, training, partial(evaluation_pair, form=form))


def open_one_split(
    name: str,
    data_dir: str | None,
    form: ImageForm,
    split: str = "",
    class_names: tuple[str, ...] | None = None,
    reduce_zero_label: bool = True,
    dataset_args: Mapping[str, Any] | None = None,
    label_sets: bool = False,
) -> tuple[Images, tuple[str, ...], str]:
    """All images of one split, or of a data set that is not split, as evaluation sees them.

    Args:
        name: As of `open_dataset` or `open_masks`.
        split: See `OneSplit`.
        class_names: The model's: the labels are theirs where the data set has only some of them, or numbers alone.
        dataset_args: See `open_dataset`.
        label_sets: Whether images have any number of labels each.

    Returns:
        The images, the names of the classes by label, and the split's name, empty where there is but one.

    Raises UserError if the name is not known, or the data set or the split cannot be used.
    """
    if label_sets:
        return _one_split_of_sets(name, data_dir, form, split, class_names)
    if name in EMBEDDED:
        whole = _embedded(name, dataset_args, data_dir=data_dir)
        (role,) = OneSplit(split).choose(("train", "val", "test"), f"dataset {name!r}")
        return getattr(whole, role), whole.class_names, role
    larger = all("/" in name for name in class_names) if class_names else None
    found = _find(name, data_dir, OneSplit(split), reduce_zero_label, larger)
    ((part, samples),) = found.parts.items()
    if found.class_names and class_names and set(found.class_names) < set(class_names) and name not in WITH_MASKS:
        places = [class_names.index(one) for one in found.class_names]
        samples, found = [(where, places[label]) for where, label in samples], found._replace(class_names=class_names)
    class_names = found.class_names or class_names or _number_classes(samples)
    if name in WITH_MASKS:
        return ImageFiles(samples, found.read, partial(evaluation_pair, form=form)), class_names, part
    _check(samples, part, class_names)
    return ImageFiles(samples, found.read, evaluation_transform(form)), class_names, part


def _one_split_of_sets(
    name: str, data_dir: str | None, form: ImageForm, split: str, class_names: tuple[str, ...] | None
) -> tuple[Images, tuple[str, ...], str]:
    found = _find_sets(name, data_dir, OneSplit(split))
    ((part, samples),), names = found.parts.items(), found.class_names or ()
    if class_names and set(names) <= set(class_names):
        places, names = [class_names.index(one) for one in names], class_names
        samples = [(where, tuple(places[label] for label in labels)) for where, labels in samples]
    read = partial(with_label_set, read_image, len(names))
    return ImageFiles(samples, read, evaluation_transform(form)), names, part


def _find_sets(name: str, data_dir: str | None, wanted: Wanted) -> Found:
    if name not in ("folder", "csv") or not data_dir:
        raise UserError(f"several labels an image stand in a table: set data_dir to it (dataset {name!r} holds none)")
    return find_label_sets(Path(data_dir), wanted)


def _find(
    name: str, data_dir: str | None, wanted: Wanted, reduce_zero_label: bool = True, super_classes: bool | None = None
) -> Found:
    kind, _, rest = name.partition("/")
    if kind == "hfids" and not Path(rest).is_dir():
        raise UserError(f"{name} would be streamed, which cannot be resumed exactly: hfds/{rest} is prepared on disk")
    if kind in ("hfds", "hfids") and rest:
        return find_hugging_face(rest, data_dir, wanted)
    if not (name in ("folder", "csv", "tar", "ade20k", "coco") or kind == "wds" or (kind == "torch" and rest)):
        raise UserError(f"unknown dataset {name!r}{suggest(name, NAMES)}")
    if not data_dir:
        raise UserError(f"dataset {name!r} needs data_dir, the folder of images or archives")
    root = Path(data_dir)
    if kind == "torch":
        return find_torchvision(rest, root, wanted)
    if kind == "ade20k":
        return find_ade20k(root, wanted, reduce_zero_label)
    if kind in ("folder", "tar"):
        return (find_folder if kind == "folder" else find_tar)(root, wanted, super_classes)
    return {"csv": find_label_table, "coco": find_coco, "wds": find_webdataset}[kind](root, wanted)


def _embedded(name: str, arguments: Mapping[str, Any] | None, **given: object) -> Splits:
    for key, value in {**given, "dataset_args": arguments and name != "glyphs"}.items():
        if value:
            raise UserError(f"dataset {name!r} is embedded and takes no {key}: leave it out, or name another dataset")
    if name == "glyphs":
        return open_glyphs(arguments or {})
    return digits() if name == "digits" else digit_scenes()


def _needed(form: ImageForm | None) -> ImageForm:
    if form is None:
        raise UserError("a data set that is not embedded needs a model that says in what form it wants its images")
    return form


def _splits(found: Found, form: ImageForm, training: Any, evaluation: Any) -> Splits:
    """What is missing of `val` and `test` is the other one."""
    train, *rest = (
        ImageFiles(found.parts[part], found.read, training if part == "train" else evaluation)
        for part in ("train", "val", "test")
        if part in found.parts
    )
    assert found.class_names is not None
    return Splits(train, rest[0], rest[-1], found.class_names, form, None, found.super_classes, found.notes)


def _number_classes(samples: Samples) -> tuple[str, ...]:
    """Names for labels without names, as many as are needed."""
    where, highest = max(samples, key=lambda sample: sample[1])
    if highest >= len(samples):
        raise UserError(f"label {highest} of image {where} is out of range: there are {len(samples)} images")
    return tuple(str(label) for label in range(highest + 1))


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


def _set_aside(samples: Samples, class_names: tuple[str, ...], share: float, seed: int) -> Mapping[str, Samples]:
    """The same share of every class, at least one image, in the samples' own order."""
    aside = set[int]()
    for label, places in enumerate(_shuffled(samples, len(class_names), "set aside", seed)):
        taken = places[: max(1, round(share * len(places)))]
        if places and len(taken) == len(places):
            raise UserError(f"the class {class_names[label]!r} has too few images to set some aside")
        aside |= set(taken)
    return {
        "train": [sample for i, sample in enumerate(samples) if i not in aside],
        "val": [sample for i, sample in enumerate(samples) if i in aside],
    }
