"""Images whose labels stand in a table: `path,label` in a CSV or Parquet file, with a column `split` if one likes.

    labels.csv                        all images
    train.csv, val.csv, test.csv      or a file for each split

Paths are relative to the table, or to a folder `images` beside it.
"""

import csv
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from importlib import import_module
from pathlib import Path
from typing import Any

from vimoe.data.decode import read_image
from vimoe.data.images import Samples, labelled
from vimoe.data.splits import AS_USUAL, UNSPLIT, USUAL_NAMES, Found, Wanted
from vimoe.errors import UserError, first_line

SUFFIXES = (".csv", ".tsv", ".parquet")
# What the columns may be called.
_PATHS = ("path", "file", "filename", "file_name", "filepath", "image", "image_path")
_LABELS = ("label", "class", "category", "target", "class_name")


def find_tables(root: Path) -> dict[str, Path]:
    """The tables of labels in a folder, by split (`UNSPLIT` for `labels.csv`, which then is alone)."""
    there = {path.stem.casefold(): path for path in sorted(root.iterdir()) if path.suffix.lower() in SUFFIXES}
    if "labels" in there:
        return {UNSPLIT: there["labels"]}
    return {stem: path for stem, path in there.items() if stem in USUAL_NAMES}


def find_label_table(root: Path, wanted: Wanted = AS_USUAL) -> Found:
    """The splits and classes of a table, or of a folder that holds one under its usual name.

    Raises UserError if it is no such table, its images are not there, a split is missing, there is but one class, or a
    split has a class that training has not.
    """
    tables = {UNSPLIT: root} if root.is_file() else find_tables(root) if root.is_dir() else {}
    if not tables:
        raise UserError(f"data_dir {root} is no table of labels and no folder with labels.csv")
    rows = [row for split, path in tables.items() for row in _read(path, split)]
    splits = {split for split, _, _ in rows}
    chosen = wanted.choose(sorted(splits), str(root))
    tree = dict[str, dict[str, list[Path]]]()
    for role, name in chosen.items():
        labels = {path: label for split, path, label in rows if split == name}
        for split, path, label in rows:
            if split == name and labels[path] != label:
                raise UserError(f"{root} gives {path} two labels, {label!r} and {labels[path]!r}: one an image is used")
        for path, label in labels.items():
            tree.setdefault(role, {}).setdefault(label, []).append(path)
    parts, class_names = label_by_class(tree, root, _order)
    if len(class_names) == 1 and "train" in chosen:
        raise UserError(f"{root} holds a single class, {class_names[0]!r}, and there is nothing to tell apart")
    notes = [f"labels are those of {', '.join(map(str, tables.values()))}"]
    if left := sorted(splits - set(chosen.values())):
        notes.append(f"the split {left[0]!r} is not used")
    return Found(parts, class_names, partial(labelled, read_image), notes=tuple(notes))


def _read(table: Path, split: str) -> list[tuple[str, Path, str]]:
    """Split, image and label of every row.

    Raises UserError if the table cannot be read, a column or a value is missing, or no image is there.
    """
    header, *rows = (_parquet if table.suffix.lower() == ".parquet" else _text)(table)
    names = [name.strip().casefold() for name in header]
    columns = [next((i for i, name in enumerate(names) if name in known), -1) for known in (_PATHS, _LABELS)]
    if -1 in columns:
        raise UserError(f"{table} has the columns {', '.join(header) or 'of nothing'}: it needs path and label")
    if "split" in names:
        columns.append(names.index("split"))
    found = []
    for line, row in enumerate(rows, 2):
        values = [row[i].strip() if i < len(row) else "" for i in columns]
        if not all(values):
            raise UserError(f"{table}, line {line}: a value is missing in {','.join(row)!r}")
        found.append((values[2] if len(values) > 2 else split, values[0], values[1]))
    folders = (table.parent, table.parent / "images")
    base = next((folder for folder in folders if any((folder / path).is_file() for _, path, _ in found)), None)
    if base is None:
        example = f", such as {found[0][1]}: paths are relative to its folder" if found else ""
        raise UserError(f"none of the {len(found)} images in {table} is there{example}")
    return [(split, base / path, label) for split, path, label in found]


def _text(table: Path) -> list[list[str]]:
    """Header and rows; the separator is the one that cuts the header into most columns."""
    try:
        lines = table.read_text(encoding="utf-8-sig").splitlines()
        first = lines[0] if lines else ""
        rows = list(csv.reader(lines, delimiter=max(",;\t", key=first.count)))
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise UserError(f"cannot read {table}: {first_line(error)}") from error
    return [row for row in rows if row] or [[]]


def _parquet(table: Path) -> list[list[str]]:
    try:
        columns = import_module("pyarrow.parquet").read_table(table).to_pydict()
    except ImportError as error:
        raise UserError(f"{table} needs pyarrow (pip install pyarrow), or write it as CSV") from error
    except Exception as error:  # pyarrow raises types of its own
        raise UserError(f"cannot read {table}: {first_line(error)}") from error
    return [list(columns), *([str(value) for value in row] for row in zip(*columns.values(), strict=True))]


def label_by_class(
    tree: Mapping[str, Mapping[str, Sequence[Any]]], root: Path, order: Callable[[str], Any] = str
) -> tuple[dict[str, Samples], tuple[str, ...]]:
    """From where images are, by split and class, to labelled samples by split, and the names of the classes in order.

    Raises UserError if a split has a class that the first one has not.
    """
    first = next(iter(tree))
    class_names = tuple(sorted(tree[first], key=order))
    for split, classes in tree.items():
        if odd := sorted(set(classes) - set(class_names)):
            raise UserError(f"the {split} images in {root} have other classes than {first}: {odd[0]!r} is only there")
    labels = {name: label for label, name in enumerate(class_names)}
    parts: dict[str, Samples] = {
        split: [(where, labels[name]) for name in class_names for where in classes.get(name, ())]
        for split, classes in tree.items()
    }
    return parts, class_names


def _order(name: str) -> tuple[int, str]:
    """Numbers by their value, other names as text."""
    return (int(name), name) if name.isascii() and name.isdecimal() and len(name) < 10 else (-1, name)
