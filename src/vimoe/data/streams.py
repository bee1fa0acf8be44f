"""Data sets that other libraries define, by timm's names: `torch/NAME`, `hfds/NAME`, `hfids/NAME`, `wds/NAME`.

timm reads the last two as streams. A stream can be resumed only by reading all that came before, its order depends on
the number of workers and processes, and a broken image has no name. Here every data set is read by position.

- `torch/NAME`: torchvision's, through timm, from where it was downloaded to.
- `hfds/NAME`: a data set of the Hugging Face Hub (`NAME` is its name), or a local one (`NAME` is its folder), prepared
  by the library on disk.
- `hfids/NAME`: the same for a local folder; nothing is streamed from the Hub.
- `wds/NAME`: webdataset's shards on a local disk; they are plain tars, and an index of their members is made at the
  start. `NAME` only says which one it is.
"""

import io
import json
import operator
import re
from collections.abc import Iterable, Iterator, Mapping
from functools import partial
from itertools import groupby, islice
from pathlib import Path
from typing import Any, NamedTuple

from PIL import Image
from timm.data import create_dataset

from vimoe.data.archive import SHARD, Member, find_archives, members, read_bytes, read_member
from vimoe.data.decode import SUFFIXES, BrokenImageError, read_image
from vimoe.data.images import Samples, labelled
from vimoe.data.splits import AS_USUAL, USUAL_NAMES, Found, Wanted
from vimoe.errors import UserError, first_line


class Row(NamedTuple):
    """A place in a table."""

    split: str
    number: int

    def __str__(self) -> str:
        return f"{self.number} of {self.split}"


# The splits that timm knows of each torchvision data set.
_TORCHVISION = {
    **dict.fromkeys(("cifar10", "cifar100", "mnist", "kmnist", "fashion_mnist"), ("train", "test")),
    **dict.fromkeys(("imagenet", "places365", "inaturalist"), ("train", "val")),
}


def find_torchvision(name: str, root: Path, wanted: Wanted = AS_USUAL) -> Found:
    """A data set of torchvision's, by timm's name of it without `torch/`, from where torchvision keeps it.

    Raises UserError if the name is not known, or the data set is not there or damaged.
    """
    name = name.lower()
    if name not in _TORCHVISION:
        raise UserError(f"unknown torchvision data set {name!r}; there is {', '.join(_TORCHVISION)}")
    sets = {}
    for part, split in wanted.choose(_TORCHVISION[name], f"torch/{name}").items():
        try:
            sets[part] = create_dataset(f"torch/{name}", root=str(root), split=split)
        except Exception as error:  # torchvision raises whatever its files make it
            raise UserError(
                f"torchvision cannot open {name} in {root}, and nothing is downloaded: {first_line(error)}"
            ) from error
    first = next(iter(sets.values()))
    names = first.classes if hasattr(first, "classes") else first.all_categories
    class_names = tuple(", ".join(name) if isinstance(name, tuple) else str(name) for name in names)
    if all(hasattr(found, "samples") for found in sets.values()):
        files = {part: [(Path(path), label) for path, label in found.samples] for part, found in sets.items()}
        return Found(files, class_names, partial(labelled, read_image))
    parts = {part: [(Row(part, i), label) for i, label in enumerate(_labels(found))] for part, found in sets.items()}
    return Found(parts, class_names, partial(labelled, partial(_read_torchvision, name, sets)))


def _labels(found: Any) -> list[int]:
    if hasattr(found, "targets"):
        return [int(label) for label in found.targets]
    return [label for label, _ in found.index]


def _read_torchvision(name: str, sets: Mapping[str, Any], row: Row) -> Image.Image:
    try:
        image: Image.Image = sets[row.split][row.number][0]
        return image.convert("RGB")
    except Exception as error:  # a damaged file makes decoders raise anything
        raise BrokenImageError(f"image {row} in {name} cannot be read: {first_line(error)}") from error


def find_hugging_face(name: str, cache: str | None, wanted: Wanted = AS_USUAL) -> Found:
    """A data set of the Hugging Face Hub, or a folder that its library can read or has saved.

    The images are the first column of images; the labels the column `label`, or the first one of class labels. What
    the library prepares is kept in `cache`, None for its own place.

    Raises UserError if the library is not installed, or the data set is not there or has no such columns.
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
    chosen = wanted.choose(list(tables), name)
    features = tables[next(iter(chosen.values()))].features
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
    class_names = tuple(features[labels].names) if labels in named else None
    return Found(parts, class_names, partial(labelled, partial(_read_row, name, encoded)))


def _read_row(name: str, tables: Mapping[str, Any], row: Row) -> Image.Image:
    (cell,) = tables[row.split][row.number].values()
    if cell and cell["bytes"]:
        return read_image(f"row {row} in {name}", io.BytesIO(cell["bytes"]))
    if cell and cell["path"]:
        return read_image(cell["path"])
    raise BrokenImageError(f"row {row} in {name} has no image")


# What braces in a shard's name may stand for: far more than there are files in a folder is a slip of the keyboard.
MOST_SHARDS = 100_000


def find_webdataset(root: Path, wanted: Wanted = AS_USUAL) -> Found:
    """Shards of webdataset's format: images, each with a label in `.cls`, or as `label` in `.json`.

    Splits are those of timm's `_info.json`, or what the shards' names begin with (`train-0000.tar`). The classes' names
    are the lines of `classes.txt` where there is one. Shards with braces (`train-{000..003}.tar`) are a split too.

    Raises UserError if a shard cannot be used, a split is missing, or a label is no number.
    """
    splits = _shards(root)
    splits |= {name: [root / shard for shard in expand(name)] for name in wanted if ".tar" in name}
    chosen = wanted.choose(list(splits), str(root))
    parts = {part: [sample for shard in splits[name] for sample in _samples(shard)] for part, name in chosen.items()}
    for part, samples in parts.items():
        if all(member.lost for member, _ in samples):
            raise UserError(f"{root} holds no {part or 'labelled'} images with a label in .cls, or as 'label' in .json")
    try:
        lines = (root / "classes.txt").read_text(errors="replace").split("\n")
    except OSError:
        return Found(parts, None, partial(labelled, read_member))
    return Found(parts, tuple(filter(None, map(str.strip, lines))), partial(labelled, read_member))


def _shards(root: Path) -> dict[str, list[Path]]:
    """The shards in a folder, by split."""
    try:
        info = json.loads((root / "_info.json").read_text())
        return {name: [root / shard for shard in split["filenames"]] for name, split in info["splits"].items()}
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError):
        pass  # there is none, or none that says so
    splits: dict[str, list[Path]] = {}
    for path, shard in find_archives(root).items():
        prefix = next((stem for part in reversed(path) if (stem := SHARD.sub("", part))), "train")
        last = re.split("[-_.]", prefix)[-1]
        splits.setdefault(last if last in USUAL_NAMES else prefix, []).append(shard)
    return splits


def expand(pattern: str) -> list[str]:
    """The names that braces stand for: `{00..02}` for numbers of that many digits, `{a,b}` for either.

    Several patterns may be joined by `::`; timm's number of images behind a `|` is not needed.

    Raises UserError if there are more than `MOST_SHARDS`.
    """
    too_many = UserError(f"{pattern!r} stands for more than {MOST_SHARDS:,} shards")
    if any(one.count("{") > 20 for one in pattern.split("::")) or re.search(r"\d{10}\.\.|\.\.\d{10}", pattern):
        raise too_many
    names = list(
        islice((name for one in pattern.split("::") for name in _names(one.partition("|")[0])), MOST_SHARDS + 1)
    )
    if len(names) > MOST_SHARDS:
        raise too_many
    return names


def _names(pattern: str) -> Iterator[str]:
    braces = re.search(r"\{([^{}]*)\}", pattern)
    if not braces:
        yield pattern
        return
    first, dots, last = braces[1].partition("..")
    choices: Iterable[str] = braces[1].split(",")
    if dots and first.isdecimal() and last.isdecimal():
        choices = (str(number).zfill(len(first)) for number in range(int(first), int(last) + 1))
    for choice in choices:
        yield from _names(pattern[: braces.start()] + choice + pattern[braces.end() :])


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
        except (ValueError, RecursionError):
            return None
        if isinstance(described, dict) and "label" in described:
            return _whole(described["label"], str(parts[".json"]))
    return None


def _whole(label: Any, where: str) -> int:
    try:
        return int(label) if isinstance(label, str) else operator.index(label)
    except (TypeError, ValueError) as error:
        raise UserError(f"the label of {where} is {label!r}, and no whole number") from error
