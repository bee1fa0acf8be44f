"""Folders of images: one folder a class, in `train`, `val`, `test` or unsplit; Tiny-ImageNet's tree as well.

What could be meant in two ways is refused, and what is left out is said.
"""

from collections.abc import Mapping
from functools import partial
from pathlib import Path

from vimoe.data.decode import SUFFIXES, read_image
from vimoe.data.images import labelled
from vimoe.data.label_table import find_label_table, find_tables, label_by_class
from vimoe.data.listing import files_below, folders, inventory, listed, scan
from vimoe.data.splits import AS_USUAL, UNSPLIT, Found, RunSplits, Wanted, is_split
from vimoe.errors import UserError

_PAIRS = {"images", "image", "imgs", "masks", "annotations", "labels", "segmentations"}
_ANNOTATIONS = "*_annotations.txt"  # Tiny-ImageNet's: file, TAB, class, TAB, box


def find_folder(root: Path, wanted: Wanted = AS_USUAL, super_classes: bool | None = None) -> Found:
    """The splits and classes of a folder: one folder of images a class, in a folder for each split or unsplit.

    A folder that holds a table of labels (see `vimoe.data.label_table`) is read by it.

    Args:
        super_classes: Whether classes lie in folders of larger classes (`animals/cat/1.jpg`, named `animals/cat`), or,
            if False, all that lies below a class folder is of that class; None refuses what could be either.

    Raises UserError if the folder is no such tree, a split is missing, a class folder is empty, there is but one class,
    or a split has a class that training has not.
    """
    if root.suffix.lower() == ".tar":
        raise UserError(f"data_dir {root} is an archive: --dataset tar reads it")
    if root.is_file() or (root.is_dir() and find_tables(root)):
        return find_label_table(root, wanted)
    if not root.is_dir():
        raise UserError(f"data_dir {root} is not a folder")
    inside = folders(root)
    split = is_split(inside, wanted)
    chosen = wanted.choose(inside if split else [UNSPLIT], str(root))
    notes = [f"{root / name} is not used" for name in inside if split and name not in chosen.values()]
    tree = dict[str, Mapping[str, list[Path]]]()
    for role, name in chosen.items():
        if role == "test" and name not in wanted and isinstance(wanted, RunSplits) and _unlabelled(root / name):
            notes.append(f"{root / name} holds images without labels and is not used")
            continue
        tree[role] = _classes(root / name, super_classes)
        stray = [entry.name for entry in scan(root / name) if _is_image(entry.name)]
        if stray:
            notes.append(f"{root / name} holds images beside the class folders, not used: {listed(sorted(stray))}")
    if isinstance(wanted, RunSplits) and len(tree["train"]) == 1:
        raise UserError(_one_class(root / chosen["train"], *tree["train"]))
    parts, class_names = label_by_class(tree, root)
    larger = tuple(name.split("/")[0] for name in class_names) if super_classes else ()
    return Found(parts, class_names, partial(labelled, read_image), larger, tuple(notes))


def _classes(root: Path, super_classes: bool | None) -> dict[str, list[Path]]:
    """By class, its images."""
    if table := next(iter(sorted(root.glob(_ANNOTATIONS))), None):
        return _annotated(root, table)
    if not (names := folders(root)):
        raise UserError(
            f"{root} holds {inventory(root)} and no class folders: it needs a folder of images for each class, or "
            "labels.csv with the columns path and label"
        )
    if len(_PAIRS.intersection(map(str.casefold, names))) > 1 and len(names) <= 3:
        raise UserError(
            f"{root} holds {inventory(root)}, which are no classes: for images with masks there is --task "
            "segmentation, with images/SPLIT, annotations/SPLIT and classes.txt"
        )
    found = dict[str, list[Path]]()
    for name in names:
        below, direct = folders(root / name), any(_is_image(entry.name) for entry in scan(root / name))
        if super_classes:
            if direct:
                raise UserError(f"{root / name} holds images and no class: super_classes needs folders SUPER/CLASS")
            found |= {f"{name}/{inner}": _images(root / name / inner) for inner in below}
        elif super_classes is None and len(below) > 1 and not direct:
            if len(names) == 1:
                raise UserError(_one_class(root, name))
            raise UserError(
                f"{root / name} holds {inventory(root / name)}: are these the classes (--super-classes), or is all in "
                f"them of the class {name!r} (--no-super-classes)?"
            )
        else:
            found[name] = _images(root / name)
    return found


def _annotated(root: Path, table: Path) -> dict[str, list[Path]]:
    """The images of a split whose labels stand in a file of Tiny-ImageNet's form."""
    try:
        rows = [line.split("\t") for line in table.read_text(encoding="utf-8").splitlines() if line.strip()]
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"cannot read {table}: lines of file, TAB, class") from error
    files = {path.name: path for path in files_below(root, SUFFIXES)}
    found = dict[str, list[Path]]()
    for row in rows:
        if len(row) < 2 or row[0] not in files:
            raise UserError(f"{table} has the line {' '.join(row)!r}: it names no image in {root} and its class")
        found.setdefault(row[1].strip(), []).append(files[row[0]])
    return found


def _images(root: Path) -> list[Path]:
    if paths := files_below(root, SUFFIXES):
        return paths
    raise UserError(f"the class folder {root} holds no images ({inventory(root)}): fill it or take it away")


def _unlabelled(root: Path) -> bool:
    """Whether a split is images alone, or one folder of them."""
    inside = folders(root)
    return len(inside) < 2 and not any(root.glob(_ANNOTATIONS)) and bool(files_below(root, SUFFIXES))


def _one_class(root: Path, name: str) -> str:
    inner = folders(root / name)
    way = f"is {root / name} meant?" if inner else "images are labelled by class folders, or by a labels.csv"
    return (
        f"{root} holds a single class, {name!r} ({inventory(root / name)}), and there is nothing to tell apart: {way}"
    )


def _is_image(name: str) -> bool:
    return name.lower().endswith(SUFFIXES)
