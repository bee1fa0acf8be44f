"""Data sets that other libraries define, by timm's names: `torch/NAME`, `hfds/NAME`, `hfids/NAME`, `wds/NAME`.

timm reads the last two as streams. A stream can be taken up again only by reading all that came before, its order
depends on the number of workers and processes, and a broken image has no name. Here every data set is read by
position: a run that was killed goes on exactly where it was, whatever the machine.

- `torch/NAME`: torchvision's, through timm, from where it was downloaded to.
- `hfds/NAME`: a data set of the Hugging Face Hub (`NAME` is its name), or a local one (`NAME` is its folder), prepared
  by the library on disk.
- `hfids/NAME`: the same for a local folder; nothing is streamed from the Hub.
- `wds/NAME`: webdataset's shards on a local disk; they are plain tars, and an index of their members is made at the
  start. `NAME` only says which one it is.
"""

from __future__ import annotations

import json
import operator
import re
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from itertools import groupby
from pathlib import Path
from typing import Any, NamedTuple

from PIL import Image
from timm.data import create_dataset

from vimoe.data.archive import SHARD, Member, NamedBytes, find_archives, members, read_bytes, read_member
from vimoe.data.decode import SUFFIXES, BrokenImageError, read_image
from vimoe.data.splits import TEST_NAMES, TRAIN_NAMES, VAL_NAMES, Found, Samples, choose_splits
from vimoe.errors import UserError, first_line

Wanted = tuple[str, str, str]


class Row(NamedTuple):
    """A place in a table."""

    part: str
    number: int

    def __str__(self) -> str:
        return f"{self.number} of {self.part}"


# The splits that timm knows of each torchvision data set.
_TORCHVISION = {
    **dict.fromkeys(("cifar10", "cifar100", "mnist", "kmnist", "fashion_mnist"), ("train", "test")),
    **dict.fromkeys(("imagenet", "places365", "inaturalist"), ("train", "val")),
}


def find_torchvision(name: str, root: Path, wanted: Wanted = ("", "", "")) -> Found:
    """A data set of torchvision's.

    Args:
        name: timm's name of it, without `torch/`.
        root: Where torchvision keeps it.
        wanted: Names of the splits `train`, `val` and `test`; where one is empty, a usual name is looked for.

    Raises:
        UserError: The name is not known, or the data set is not there or damaged.
    """
    name = name.lower()
    if name not in _TORCHVISION:
        raise UserError(f"unknown torchvision data set {name!r}; there is {', '.join(_TORCHVISION)}")
    sets = {}
    for part, split in choose_splits(_TORCHVISION[name], wanted, f"torch/{name}").items():
        try:
            sets[part] = create_dataset(f"torch/{name}", root=str(root), split=split)
        except Exception as error:  # torchvision raises whatever its files make it
            raise UserError(
                f"torchvision cannot open {name} in {root}, and nothing is downloaded: {first_line(error)}"
            ) from error
    class_names = tuple(", ".join(n) if isinstance(n, tuple) else str(n) for n in _class_names(sets["train"]))
    if all(hasattr(found, "samples") for found in sets.values()):
        files = {part: [(Path(path), label) for path, label in found.samples] for part, found in sets.items()}
        return Found(files, class_names, read_image)
    parts = {part: [(Row(part, i), label) for i, label in enumerate(_labels(found))] for part, found in sets.items()}
    return Found(parts, class_names, partial(_read_torchvision, name, sets))


def _class_names(found: Any) -> Sequence[Any]:
    return found.classes if hasattr(found, "classes") else found.all_categories


def _labels(found: Any) -> list[int]:
    if hasattr(found, "targets"):
        return [int(label) for label in found.targets]
    return [label for label, _ in found.index]


def _read_torchvision(name: str, sets: Mapping[str, Any], row: Row) -> Image.Image:
    try:
        image: Image.Image = sets[row.part][row.number][0]
        return image.convert("RGB")
    except Exception as error:  # a damaged file makes decoders raise anything
        raise BrokenImageError(f"image {row} in {name} cannot be read: {first_line(error)}") from error


def find_hugging_face(name: str, cache: str | None, wanted: Wanted = ("", "", "")) -> Found:
    """A data set of the Hugging Face Hub, or a folder that its library can read or has saved.

    The images are the first column of images; the labels the column `label`, or the first one of class labels.

    Args:
        name: Its name on the Hub, or a folder.
        cache: Where the library keeps what it prepares; None for its own place.
        wanted: Names of the splits `train`, `val` and `test`; where one is empty, a usual name is looked for.

    Raises:
        UserError: The library is not installed, or the data set is not there or has no such columns.
    """
    try:
        import datasets  # optional, and slow to import
    except ImportError as error:
        raise UserError(f"{name} needs Hugging Face's library: pip install datasets") from error
    try:
        if (Path(name) / "dataset_dict.json").exists() or (Path(name) / "state.json").exists():
            loaded = datasets.load_from_disk(name)
        else:
            loaded = datasets.load_dataset(name, cache_dir=cache)
    except Exception as error:  # the library raises whatever its readers raise
        raise UserError(f"the data set {name} cannot be opened: {first_line(error)}") from error
    tables: Mapping[str, Any] = loaded if isinstance(loaded, dict) else {"train": loaded}
    chosen = choose_splits(list(tables), wanted, name)
    features = tables[chosen["train"]].features
    images = next((key for key, kind in features.items() if isinstance(kind, datasets.Image)), None)
    named = [key for key, kind in features.items() if isinstance(kind, datasets.ClassLabel)]
    labels = "label" if "label" in features else next(iter(named), None)
    if images is None or labels is None:
        raise UserError(f"{name} needs a column of images and one of labels; there is {', '.join(features)}")
    encoded, parts = {}, dict[str, Samples]()
    for part, split in chosen.items():
        values = tables[split].with_format(None)[labels][:]
        parts[part] = [(Row(part, i), _whole(label, f"row {i} of {split} in {name}")) for i, label in enumerate(values)]
        encoded[part] = tables[split].select_columns(images).cast_column(images, datasets.Image(decode=False))
    class_names = tuple(features[labels].names) if labels in named else number_classes(parts["train"])
    return Found(parts, class_names, partial(_read_row, name, encoded))


def _read_row(name: str, tables: Mapping[str, Any], row: Row) -> Image.Image:
    (cell,) = tables[row.part][row.number].values()
    if cell and cell["bytes"]:
        return read_image(NamedBytes(cell["bytes"], f"row {row} in {name}"))  # type: ignore[arg-type]
    if cell and cell["path"]:
        return read_image(Path(cell["path"]))
    raise BrokenImageError(f"row {row} in {name} has no image")


def find_webdataset(root: Path, wanted: Wanted = ("", "", "")) -> Found:
    """Shards of webdataset's format: images, each with a label in `.cls`, or as `label` in `.json`.

    Splits are those of timm's `_info.json`, or what the shards' names begin with (`train-0000.tar`). The classes' names
    are the lines of `classes.txt` where there is one.

    Args:
        root: The folder of shards.
        wanted: Names of the splits `train`, `val` and `test`, or shards with braces (`train-{000..003}.tar`); where one
            is empty, a usual name is looked for.

    Raises:
        UserError: A shard cannot be used, a split is missing, or a label is no number.
    """
    splits = _shards(root)
    splits |= {name: [root / shard for shard in expand(name)] for name in wanted if ".tar" in name}
    chosen = choose_splits(list(splits), wanted, str(root))
    parts = {part: [sample for shard in splits[name] for sample in _samples(shard)] for part, name in chosen.items()}
    if not any(not member.lost for member, _ in parts["train"]):
        raise UserError(f"{root} holds no training images with a label in .cls, or as 'label' in .json")
    names = root / "classes.txt"
    if not names.is_file():
        return Found(parts, number_classes(parts["train"]), read_member)
    lines = (line.strip() for line in names.read_text(errors="replace").split("\n"))
    return Found(parts, tuple(filter(None, lines)), read_member)


def _shards(root: Path) -> dict[str, list[Path]]:
    """The shards in a folder, by split."""
    try:
        info = json.loads((root / "_info.json").read_text())
        return {name: [root / shard for shard in split["filenames"]] for name, split in info["splits"].items()}
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        pass  # there is none, or none that tells
    splits: dict[str, list[Path]] = {}
    for path, shard in find_archives(root).items():
        prefix = next((stem for part in reversed(path) if (stem := SHARD.sub("", part))), "train")
        last = re.split("[-_.]", prefix)[-1]
        name = last if last in (*TRAIN_NAMES, *VAL_NAMES, *TEST_NAMES) else prefix
        splits.setdefault(name, []).append(shard)
    return splits


def expand(pattern: str) -> list[str]:
    """The names that braces stand for: `{00..02}` for numbers of that many digits, `{a,b}` for either.

    Several patterns may be joined by `::`; timm's number of images behind a `|` is not needed.
    """
    if "::" in pattern:
        return [name for one in pattern.split("::") for name in expand(one)]
    pattern = pattern.partition("|")[0]
    braces = re.search(r"\{([^{}]*)\}", pattern)
    if not braces:
        return [pattern]
    first, dots, last = braces[1].partition("..")
    if dots and first.isdecimal() and last.isdecimal():
        choices = [str(n).zfill(len(first)) for n in range(int(first), int(last) + 1)]
    else:
        choices = braces[1].split(",")
    return [name for c in choices for name in expand(pattern[: braces.start()] + c + pattern[braces.end() :])]


def _samples(shard: Path) -> Iterator[tuple[Member, int]]:
    """A shard's samples: neighbours whose names are the same up to the first dot; what lacks a part is lost."""
    whole = (member for member in members(shard) if not member.lost)
    for key, group in groupby(whole, key=lambda member: _split_name(member.name)[0]):
        parts = {_split_name(member.name)[1]: member for member in group}
        image = next((member for kind, member in parts.items() if kind in SUFFIXES), None)
        label = _label(parts)
        if image is None and label is None:
            continue  # not about an image
        if image is None or label is None:
            lost = "has no image" if image is None else "has no label in .cls, or as 'label' in .json"
            yield Member(shard, key, lost=lost), label or 0
        else:
            yield image, label


def _split_name(name: str) -> tuple[str, str]:
    folder, slash, file = name.rpartition("/")
    stem, dot, kind = file.partition(".")
    return folder + slash + stem, (dot + kind).lower()


def _label(parts: Mapping[str, Member]) -> int | None:
    if ".cls" in parts:
        return _whole(read_bytes(parts[".cls"]).decode(errors="replace").strip(), str(parts[".cls"]))
    if ".json" in parts:
        try:
            described = json.loads(read_bytes(parts[".json"]))
        except ValueError:
            return None
        if isinstance(described, dict) and "label" in described:
            return _whole(described["label"], str(parts[".json"]))
    return None


def _whole(label: Any, where: str) -> int:
    try:
        return int(label) if isinstance(label, str) else operator.index(label)
    except (TypeError, ValueError) as error:
        raise UserError(f"the label of {where} is {label!r}, and no whole number") from error


def number_classes(samples: Samples) -> tuple[str, ...]:
    """Classes without names, as many as the labels tell.

    Raises:
        UserError: A label is larger than the number of images, which no real one is.
    """
    where, highest = max(samples, key=lambda sample: sample[1])
    if highest >= len(samples):
        raise UserError(f"label {highest} of image {where} is out of range: there are {len(samples)} images")
    return tuple(str(label) for label in range(highest + 1))
