"""Image files as a model wants them; a folder of them: one folder a class, in `train`, `val`, `test` or unsplit."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

from PIL import Image
from timm.data import create_transform, resolve_data_config
from torch import Tensor

from vimoe.data.decode import SUFFIXES, read_image
from vimoe.data.splits import Found, Images, Samples, choose_splits, is_split
from vimoe.errors import UserError


class ImageForm(NamedTuple):
    """How a model wants its images.

    Attributes:
        shape: C, H, W.
        mean: By channel, taken off pixel values between 0 and 1.
        std: By channel, what they are then divided by.
        interpolation: timm's name of the resampling filter.
        crop_pct: Share of the image's shorter side that evaluation looks at.
    """

    shape: tuple[int, int, int]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    interpolation: str
    crop_pct: float


def image_form(pretrained_cfg: dict[str, Any], img_size: int | None = None) -> ImageForm:
    """What a timm `pretrained_cfg` says about images, with another size where one is given."""
    wanted = resolve_data_config(pretrained_cfg=pretrained_cfg)
    channels, height, width = wanted["input_size"]
    shape = (channels, img_size or height, img_size or width)
    return ImageForm(shape, tuple(wanted["mean"]), tuple(wanted["std"]), wanted["interpolation"], wanted["crop_pct"])


class Augmentation(NamedTuple):
    """How training images are augmented, in timm's terms.

    Attributes:
        scale: Share of the image's area that a random crop shows, at least.
        hflip: Chance of a mirrored image.
        color_jitter: Strength of random brightness, contrast and saturation.
        aa: timm's auto-augment policy, such as `rand-m9-mstd0.5-inc1`; empty for none.
        reprob: Chance of an erased rectangle.
    """

    scale: float = 0.08
    hflip: float = 0.5
    color_jitter: float = 0.4
    aa: str = ""
    reprob: float = 0.0


class ImageFiles(Images):
    """Images with labels, read and transformed when asked for.

    Args:
        samples: Where each image is, and its label.
        transform: From an image in RGB to what the model sees.
        read: From where an image is to the image in RGB.
    """

    from_files = True

    def __init__(
        self,
        samples: Samples,
        transform: Callable[[Image.Image], Tensor],
        read: Callable[[Any], Image.Image] = read_image,
    ) -> None:
        self.samples = samples
        self.transform = transform
        self.read = read

    def __len__(self) -> int:
        return len(self.samples)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        where, label = self.samples[index]
        return self.transform(self.read(where)), label


def find_folder(root: Path, wanted: tuple[str, str, str] = ("", "", "")) -> Found:
    """Find the splits and classes of a folder of images.

    Args:
        root: The folder: one folder a class, in a folder for each split or not split at all.
        wanted: Names of the splits `train`, `val` and `test`; where one is empty, a usual name is looked for.

    Raises:
        UserError: The folder is missing or empty, a split is missing, a class folder is empty, or the splits have
            different classes.
    """
    if not root.is_dir():
        raise UserError(f"data_dir {root} is not a folder")
    inside = _folders(root)
    chosen = choose_splits(inside, wanted, str(root)) if is_split(inside, wanted) else {"train": ""}
    tree = {
        role: {name: _images(root / split / name) for name in _classes(root / split)} for role, split in chosen.items()
    }
    parts, class_names = label_by_class(tree, root)
    return Found(parts, class_names, read_image)


def _classes(root: Path) -> list[str]:
    if names := _folders(root):
        return names
    raise UserError(f"{root} holds no class folders: it needs one folder of images for each class")


def _folders(root: Path) -> list[str]:
    try:
        return sorted(entry.name for entry in root.iterdir() if entry.is_dir() and not entry.name.startswith("."))
    except OSError as error:
        raise UserError(f"{root} cannot be read: {error.strerror}") from error


def _images(root: Path) -> list[Path]:
    if paths := files_below(root, SUFFIXES):
        return paths
    raise UserError(f"the class folder {root} holds no images")


def files_below(root: Path, suffixes: tuple[str, ...]) -> list[Path]:
    """The files of these kinds in a folder and all below it, links followed and hidden ones left out, in order."""
    return sorted(
        Path(folder) / file
        for folder, _, files in os.walk(root, followlinks=True)
        for file in files
        if file.lower().endswith(suffixes) and not file.startswith(".")
    )


def label_by_class(
    tree: Mapping[str, Mapping[str, Sequence[Any]]], root: Path
) -> tuple[dict[str, Samples], tuple[str, ...]]:
    """Number the classes of a data set in their order.

    Args:
        tree: By split and class, where the images are.
        root: The data set, for the message.

    Returns:
        The same, as labelled samples by split, and the names of the classes.

    Raises:
        UserError: The splits have different classes.
    """
    class_names = tuple(sorted(tree["train"]))
    for split, classes in tree.items():
        if odd := sorted(set(classes) ^ set(class_names)):
            where = "only" if odd[0] in classes else "not"
            raise UserError(f"the {split} images in {root} have other classes than train: {odd[0]!r} is {where} there")
    labels = {name: label for label, name in enumerate(class_names)}
    parts: dict[str, Samples] = {
        split: [(where, labels[name]) for name in class_names for where in classes[name]]
        for split, classes in tree.items()
    }
    return parts, class_names


def evaluation_transform(form: ImageForm) -> Callable[[Image.Image], Tensor]:
    """Resize, centre crop, normalise."""
    return _in_channels(form, create_transform(**_common(form), is_training=False))


def training_transform(form: ImageForm, augmentation: Augmentation | None) -> Callable[[Image.Image], Tensor]:
    """Augment and normalise; as evaluation does without an augmentation.

    Raises:
        UserError: timm does not know the auto-augment policy.
    """
    if augmentation is None:
        return evaluation_transform(form)
    try:
        transform = create_transform(
            **_common(form),
            is_training=True,
            scale=(augmentation.scale, 1.0),
            hflip=augmentation.hflip,
            color_jitter=augmentation.color_jitter,
            auto_augment=augmentation.aa or None,
            re_prob=augmentation.reprob,
            re_mode="pixel",
        )
    except (AssertionError, ValueError, KeyError, NotImplementedError) as error:
        raise UserError(f"timm cannot augment images as {augmentation}: {error}") from error
    return _in_channels(form, transform)


def _common(form: ImageForm) -> dict[str, Any]:
    return {
        "input_size": form.shape,
        "mean": form.mean,
        "std": form.std,
        "interpolation": form.interpolation,
        "crop_pct": form.crop_pct,
    }


def _in_channels(form: ImageForm, transform: Any) -> Callable[[Image.Image], Tensor]:
    """Images come in RGB; a model of one channel gets their brightness."""
    return transform if form.shape[0] == 3 else partial(_brightness, transform=transform)


def _brightness(image: Image.Image, transform: Callable[[Image.Image], Tensor]) -> Tensor:
    return transform(image.convert("L"))
