"""Images whose labels stand in a table: `path,label` in a CSV or Parquet file, with a column `split` if one likes.

    labels.csv                        all images
    train.csv, val.csv, test.csv      or a file for each split

Paths are relative to the table, or to a folder `images` beside it. Several labels of an image stand in one cell, `a|b`
(in Parquet also as a list); or each label has a column of 0 and 1. An image without any has an empty cell.
"""

import csv
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from importlib import import_module
from pathlib import Path
from typing import Any, NamedTuple

from vimoe.data.decode import read_image
from vimoe.data.images import Samples, labelled
from vimoe.data.listing import TABLES, listed
from vimoe.data.splits import AS_USUAL, UNSPLIT, USUAL_NAMES, Found, Wanted
from vimoe.errors import UserError, first_line

# Stands between the labels of one image.
SEPARATOR = "|"
# What the columns may be called; those of `_SETS` hold several labels even where each image happens to have one.
_PATHS = ("path", "file", "filename", "file_name", "filepath", "image", "image_path")
_SETS = ("labels", "tags")
_LABELS = ("label", "class", "category", "target", "class_name", *_SETS)
_FLAGS = {"0": False, "1": True, "false": False, "true": True, "0.0": False, "1.0": True}

Labels = tuple[str, ...]
Cell = str | tuple[str, ...]


class LabelTable(NamedTuple):
    """What the tables of a folder say."""

    splits: Mapping[str, Mapping[Path, Labels]]  # by role, the labels of each image
    several: bool  # whether an image may have any number of labels
    notes: tuple[str, ...]


def find_tables(root: Path) -> dict[str, Path]:
    """The tables of labels in a folder, by split (`UNSPLIT` for `labels.csv`, which then is alone)."""
    there = {path.stem.casefold(): path for path in sorted(root.iterdir()) if path.suffix.lower() in TABLES}
    if "labels" in there:
        return {UNSPLIT: there["labels"]}
    return {stem: path for stem, path in there.items() if stem in USUAL_NAMES}


def find_label_table(root: Path, wanted: Wanted = AS_USUAL) -> Found:
    """The splits and classes of a table, or of a folder that holds one under its usual name.

    Raises UserError if it is no such table, its images are not there, a split is missing, an image has several labels,
    there is but one class, or a split has a class that training has not.
    """
    table = read_label_table(root, wanted)
    if table.several:
        raise UserError(f"{root} gives an image any number of labels: --task multilabel learns them")
    tree = dict[str, dict[str, list[Path]]]()
    for role, images in table.splits.items():
        for path, (label,) in images.items():
            tree.setdefault(role, {}).setdefault(label, []).append(path)
    parts, class_names = label_by_class(tree, root, by_number)
    if len(class_names) == 1 and "train" in tree:
        raise UserError(f"{root} holds a single class, {class_names[0]!r}, and there is nothing to tell apart")
    return Found(parts, class_names, partial(labelled, read_image), notes=table.notes)


def read_label_table(root: Path, wanted: Wanted = AS_USUAL) -> LabelTable:
    """The labels of a table, or of a folder that holds one under its usual name.

    Raises UserError if it is no such table, its images are not there, a split is missing, or an image stands in it
    twice with other labels.
    """
    tables = {UNSPLIT: root} if root.is_file() else find_tables(root) if root.is_dir() else {}
    if not tables:
        raise UserError(f"data_dir {root} is no table of labels and no folder with labels.csv")
    read = [_read(path, split) for split, path in tables.items()]
    rows = [row for found, _, _ in read for row in found]
    splits = {split for split, _, _ in rows}
    chosen = wanted.choose(sorted(splits), str(root))
    labels: dict[str, dict[Path, Labels]] = {name: {} for name in chosen.values()}
    for split, path, found in rows:
        if split in labels and set(first := labels[split].setdefault(path, found)) != set(found):
            one, other = (repr(SEPARATOR.join(those)) for those in (first, found))
            raise UserError(
                f"{root} gives {path} two labels, {one} and {other}: several stand in one cell, 'a{SEPARATOR}b'"
            )
    notes = [f"labels are those of {', '.join(map(str, tables.values()))}"]
    notes += [f"columns that are not used: {listed(left)}" for _, _, left in read if left]
    if rest := sorted(splits - labels.keys()):
        notes.append(f"the split {rest[0]!r} is not used")
    by_role = {role: labels[name] for role, name in chosen.items()}
    return LabelTable(by_role, any(several for _, several, _ in read), tuple(notes))


def _read(table: Path, split: str) -> tuple[list[tuple[str, Path, Labels]], bool, list[str]]:
    """Split, image and labels of every row; whether there may be several; columns left out where each has a label.

    Raises UserError if the table cannot be read, a column or a value is missing, or no image is there.
    """
    header, *rows = (_parquet if table.suffix.lower() == ".parquet" else _text)(table)
    names = [str(name).strip() for name in header]
    known = [name.casefold() for name in names]
    path, label = (next((i for i, name in enumerate(known) if name in usual), -1) for usual in (_PATHS, _LABELS))
    split_at = known.index("split") if "split" in known else -1
    others = [i for i in range(len(names)) if i not in (path, split_at)] if label < 0 else []
    flags = [i for i in others if _are_flags([row[i] for row in rows if i < len(row)])]
    if path < 0 or (label < 0 and len(flags) < 2):
        raise UserError(f"{table} has the columns {', '.join(names) or 'of nothing'}: it needs path and label")
    cells = [row[label] for row in rows if label < len(row)] if label >= 0 else []
    several = bool(flags) or known[label] in _SETS or any(isinstance(c, tuple) or SEPARATOR in c for c in cells)
    found = []
    for line, row in enumerate(rows, 2):
        values = [row[i] if i < len(row) else "" for i in range(len(names))]
        needed = [path, *flags, *([] if split_at < 0 else [split_at]), *([] if several else [label])]
        if not all(values[i] for i in needed):
            raise UserError(f"{table}, line {line}: a value is missing in {','.join(map(str, row))!r}")
        if flags:
            labels = tuple(names[i] for i in flags if _FLAGS[str(values[i]).casefold()])
        else:
            cell = values[label]
            parts = cell if isinstance(cell, tuple) else cell.split(SEPARATOR)
            labels = tuple(dict.fromkeys(part.strip() for part in parts if part.strip()))
        found.append((split if split_at < 0 else str(values[split_at]), str(values[path]), labels))
    places = (table.parent, table.parent / "images")
    base = next((folder for folder in places if any((folder / where).is_file() for _, where, _ in found)), None)
    if base is None:
        example = f", such as {found[0][1]}: paths are relative to its folder" if found else ""
        raise UserError(f"none of the {len(found)} images in {table} is there{example}")
    left = [names[i] for i in others if i not in flags]
    return [(part, base / where, labels) for part, where, labels in found], several, left


def _are_flags(column: Sequence[Cell]) -> bool:
    """Whether a column says of one label which images have it."""
    values = {str(value).casefold() for value in column} - {""}
    return bool(values) and values <= _FLAGS.keys()


def _text(table: Path) -> list[list[Cell]]:
    """Header and rows; the separator is the one that cuts the header into most columns."""
    try:
        lines = table.read_text(encoding="utf-8-sig").splitlines()
        first = lines[0] if lines else ""
        rows = list(csv.reader(lines, delimiter=max(",;\t", key=first.count)))
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise UserError(f"cannot read {table}: {first_line(error)}") from error
    return [[cell.strip() for cell in row] for row in rows if row] or [[]]


def _parquet(table: Path) -> list[list[Cell]]:
    try:
        columns = import_module("pyarrow.parquet").read_table(table).to_pydict()
    except ImportError as error:
        raise UserError(f"{table} needs pyarrow (pip install pyarrow), or write it as CSV") from error
    except Exception as error:  # pyarrow raises types of its own
        raise UserError(f"cannot read {table}: {first_line(error)}") from error
    return [list(columns), *([_cell(value) for value in row] for row in zip(*columns.values(), strict=True))]


def _cell(value: Any) -> Cell:
    """Of a Parquet table; what is missing is empty."""
    if isinstance(value, list):
        return tuple(str(part) for part in value)
    return "" if value is None else str(value).strip()


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


def by_number(name: str) -> tuple[int, str]:
    """Numbers by their value, other names as text."""
    return (int(name), name) if name.isascii() and name.isdecimal() and len(name) < 10 else (-1, name)
