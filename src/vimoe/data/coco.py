"""Images with annotations in COCO's JSON, which become masks.

    annotations/instances_train2017.json    a file for each split: its name holds the split's
    train2017/*.jpg                         the images: here, in images/train2017, in images, or beside `annotations`

The first class is `background`, of pixels without an annotation; the categories follow in the order of their numbers.
Where annotations overlap, the later one of the file lies on top. Crowds (`iscrowd`) are unlabelled where nothing else
lies. A segmentation is a list of polygons or run lengths, plain or compressed; one that is neither, or of another size
than its image, makes the image a broken one: told and left out when it is read.
"""

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from vimoe.data.decode import BrokenImageError, read_image
from vimoe.data.masks import IGNORE
from vimoe.data.splits import AS_USUAL, USUAL, USUAL_NAMES, Found, Wanted
from vimoe.errors import UserError, first_line

BACKGROUND = "background"


@dataclass(frozen=True)
class Shapes:
    """What is annotated in an image: by layer, from below, a label and COCO's `segmentation`."""

    height: int
    width: int
    layers: Sequence[tuple[int, Any]]


def find_coco(root: Path, wanted: Wanted = AS_USUAL) -> Found:
    """The splits and classes of a folder with COCO's annotations.

    A test split without annotations is no split, unless it is wanted by its name.

    Raises UserError if a file is no such JSON, splits have other categories, a split, its annotations or all of its
    images are missing.
    """
    files = _files(root)
    notes, parts = list[str](), dict[str, list[tuple[Path, Shapes]]]()
    tests = dict[str, dict[str, Any]]()
    for split in USUAL["test"]:
        if split not in wanted and split in wanted.choose(sorted(files), str(root)).values():
            tests[split] = _read(files[split])
            if not tests[split].get("annotations"):
                notes.append(f"{files.pop(split)} holds no annotations and is not used")
    class_names: tuple[str, ...] = ()
    for role, split in wanted.choose(sorted(files), str(root)).items():
        content = tests.pop(split, None) or _read(files[split])
        if split in USUAL["test"] and not content.get("annotations"):
            raise UserError(f"{files[split]} holds no annotations: name another split")
        try:
            names, samples = _samples(content, _images(root, files[split], split, content))
        except UserError:
            raise
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            what = f"{type(error).__name__}: {first_line(error)}"
            raise UserError(f"{files[split]} is not in COCO's form: {what}") from error
        if class_names and names != class_names:
            raise UserError(f"{files[split]} has other categories than the files before it")
        parts[role], class_names = samples, names
    return Found(parts, class_names, read_shapes, notes=tuple(notes))


def read_shapes(image_file: Path, shapes: Shapes) -> tuple[Image.Image, Tensor]:
    """The image in RGB and its mask `[H, W]` int64. Raises BrokenImageError if one is unusable, or sizes differ."""
    image = read_image(image_file)
    if image.size != (shapes.width, shapes.height):
        raise BrokenImageError(
            f"{image_file} is {image.width} x {image.height} pixels, its annotations say {shapes.width} x "
            f"{shapes.height}"
        )
    try:
        return image, torch.from_numpy(drawn(shapes))
    except (KeyError, TypeError, ValueError, OverflowError) as error:
        raise BrokenImageError(f"{image_file} has an annotation that is none: {first_line(error)}") from error


def drawn(shapes: Shapes) -> NDArray[np.int64]:
    """`[H, W]` labels, `IGNORE` for crowds, 0 where nothing lies. Raises ValueError if a segmentation is none."""
    labels = np.zeros((shapes.height, shapes.width), dtype=np.int64)
    for label, segmentation in sorted(shapes.layers, key=lambda layer: layer[0] != IGNORE):
        if isinstance(segmentation, Mapping):
            labels[decoded_runs(segmentation["counts"], shapes.height, shapes.width)] = label
            continue
        for polygon in segmentation:
            labels[inside(polygon, shapes.height, shapes.width)] = label
    return labels


def inside(polygon: Sequence[float], height: int, width: int) -> NDArray[np.bool_]:
    """`[H, W]` pixels whose middle lies in a polygon x, y, x, y, ...: left of it lie an odd number of borders.

    Raises ValueError if there are no three points.
    """
    points = np.asarray(polygon, dtype=np.float64)
    if points.ndim != 1 or len(points) < 6 or len(points) % 2 or not np.isfinite(points).all():
        raise ValueError("a polygon needs x and y of three points or more")
    x, y = points.reshape(-1, 2).T
    to_x, to_y = np.roll(x, -1), np.roll(y, -1)
    middles = np.arange(height) + 0.5
    row, edge = np.nonzero((y <= middles[:, None]) != (to_y <= middles[:, None]))
    crossing = x[edge] + (middles[row] - y[edge]) / (to_y - y)[edge] * (to_x - x)[edge]
    borders = np.zeros((height, width + 1), dtype=np.int64)
    np.add.at(borders, (row, np.ceil(crossing - 0.5).clip(0, width).astype(np.int64)), 1)
    return borders[:, :width].cumsum(1) % 2 == 1


def decoded_runs(counts: Sequence[int] | str, height: int, width: int) -> NDArray[np.bool_]:
    """`[H, W]` from run lengths down the columns, outside first. Raises ValueError if they do not fill the image."""
    runs = uncompressed(counts) if isinstance(counts, str) else list(counts)
    if any(type(run) is not int or run < 0 for run in runs) or sum(runs) != height * width:
        raise ValueError(f"run lengths do not fill {width} x {height} pixels")
    return np.repeat(np.arange(len(runs)) % 2 == 1, runs).reshape(width, height).T


def uncompressed(text: str) -> list[int]:
    """Run lengths from COCO's text; from the fourth on it holds differences to the last but one.

    A number is signed and stands in five bits a character, from 48 on, the lowest first; 32 says that more come.
    """
    runs, value, shift = list[int](), 0, 0
    for character in text:
        bits = ord(character) - 48
        if not 0 <= bits < 64:
            raise ValueError(f"{character!r} is no character of compressed run lengths")
        value |= (bits & 31) << shift
        shift += 5
        if not bits & 32:
            value -= (bits & 16) << (shift - 4)  # the sign
            runs.append(value + (runs[-2] if len(runs) > 2 else 0))
            value, shift = 0, 0
    return runs


def _files(root: Path) -> dict[str, Path]:
    """By split, the file of its annotations; of several `instances_...` is taken."""
    found = dict[str, Path]()
    for file in sorted((root / "annotations").glob("*.json"), key=lambda file: not file.name.startswith("instances")):
        words = re.findall("[a-z]+", file.stem.lower())
        split = next((word for word in words if word in USUAL_NAMES), file.stem)
        first = found.setdefault(split, file)
        if first != file and not first.name.startswith("instances"):
            raise UserError(f"{first} and {file.name} are both of {split!r}: leave one there")
    if not found:
        raise UserError(f"{root} holds no annotations/*.json")
    return found


def _read(file: Path) -> dict[str, Any]:
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise UserError(f"cannot read {file}: {first_line(error)}") from error
    if not isinstance(content, dict) or not {"images", "categories"} <= content.keys():
        raise UserError(f"{file} is not in COCO's form: it holds no images and categories")
    return content


def _images(root: Path, file: Path, split: str, content: Mapping[str, Any]) -> Path:
    """The folder that the names of a file's images are relative to."""
    names = [str(image["file_name"]) for image in content["images"]]
    folders = dict.fromkeys((file.stem.rpartition("_")[2], split))
    places = [*(root / "images" / one for one in folders), *(root / one for one in folders), root / "images", root]
    base = next((place for place in places if any((place / name).is_file() for name in names)), None)
    if base is None:
        raise UserError(f"none of the {len(names)} images of {file} is there, in {places[0]} or {places[-3]}")
    return base


def _samples(content: Mapping[str, Any], base: Path) -> tuple[tuple[str, ...], list[tuple[Path, Shapes]]]:
    """The names of the classes, and each image with what is annotated in it."""
    categories = sorted((int(one["id"]), str(one["name"])) for one in content["categories"])
    others = [name for _, name in categories if name != BACKGROUND]
    if len(set(others)) < len(others) or not others:
        raise ValueError("categories have no names of their own")
    class_names = (BACKGROUND, *others)
    labels = {number: class_names.index(name) for number, name in categories}
    layers: dict[Any, list[tuple[int, Any]]] = {image["id"]: [] for image in content["images"]}
    for one in content.get("annotations", ()):
        label = IGNORE if one.get("iscrowd") else labels[one["category_id"]]
        layers[one["image_id"]].append((label, one["segmentation"]))
    return class_names, [
        (base / str(image["file_name"]), Shapes(int(image["height"]), int(image["width"]), layers[image["id"]]))
        for image in content["images"]
    ]
