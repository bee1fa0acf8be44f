"""Folders of images: one folder a class, in `train`, `val`, `test` or unsplit."""

import os
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from vimoe.data.decode import SUFFIXES, read_image
from vimoe.data.images import Samples, labelled
from vimoe.data.splits import AS_USUAL, UNSPLIT, Found, Wanted, is_split
from vimoe.errors import UserError


def find_folder(root: Path, wanted: Wanted = AS_USUAL) -> Found:
    """The splits and classes of a folder: one folder of images a class, in a folder for each split or unsplit.

    Raises UserError if the folder is missing or empty, a split is missing, a class folder is empty, or the splits have
    different classes.
    """
    if not root.is_dir():
        raise UserError(f"data_dir {root} is not a folder")
    inside = folders(root)
    chosen = wanted.choose(inside if is_split(inside, wanted) else [UNSPLIT], str(root))
    tree = {
        role: {name: _images(root / split / name) for name in _classes(root / split)} for role, split in chosen.items()
    }
    parts, class_names = label_by_class(tree, root)
    return Found(parts, class_names, partial(labelled, read_image))


def _classes(root: Path) -> list[str]:
    if names := folders(root):
        return names
    raise UserError(f"{root} holds no class folders: it needs one folder of images for each class")


def _images(root: Path) -> list[Path]:
    if paths := files_below(root, SUFFIXES):
        return paths
    raise UserError(f"the class folder {root} holds no images")


def folders(root: Path) -> list[str]:
    """The names of the folders in a folder, in order; hidden ones and links to a folder above are left out.

    Raises UserError if it cannot be read.
    """
    above = _with_parents(root)
    return sorted(entry.name for entry in _scan(root) if entry.is_dir() and os.path.realpath(entry) not in above)


def files_below(root: Path, suffixes: tuple[str, ...]) -> list[Path]:
    """The files of these kinds in a folder and all below it, in order; hidden files and folders are left out.

    Links are followed, but each folder is visited once and none above `root`: links that go round add nothing. Pipes
    and devices are left out. A link to a file that has gone is a file that cannot be read.

    Raises UserError if a folder cannot be read.
    """
    found, visited, ahead = list[Path](), _with_parents(root), [root]
    while ahead:
        for entry in sorted(_scan(ahead.pop()), key=lambda entry: entry.name):
            path = Path(entry)
            if entry.is_dir(follow_symlinks=False) or (entry.is_symlink() and path.is_dir()):
                if (real := os.path.realpath(entry)) not in visited:
                    visited.add(real)
                    ahead.append(path)
            elif entry.name.lower().endswith(suffixes) and (
                entry.is_file(follow_symlinks=False) or (entry.is_symlink() and (path.is_file() or not path.exists()))
            ):
                found.append(path)
    return sorted(found)


def _with_parents(root: Path) -> set[str]:
    real = Path(os.path.realpath(root))
    return {str(real), *map(str, real.parents)}


def _scan(root: Path) -> list[os.DirEntry[str]]:
    try:
        with os.scandir(root) as entries:
            return [entry for entry in entries if not entry.name.startswith(".")]
    except OSError as error:
        raise UserError(f"{root} cannot be read: {error.strerror}") from error


def label_by_class(
    tree: Mapping[str, Mapping[str, Sequence[Any]]], root: Path
) -> tuple[dict[str, Samples], tuple[str, ...]]:
    """From where images are, by split and class, to labelled samples by split, and the names of the classes in order.

    Raises UserError if the splits have different classes.
    """
    first = next(iter(tree))
    class_names = tuple(sorted(tree[first]))
    for split, classes in tree.items():
        if odd := sorted(set(classes) ^ set(class_names)):
            where = "only" if odd[0] in classes else "not"
            raise UserError(
                f"the {split} images in {root} have other classes than {first}: {odd[0]!r} is {where} there"
            )
    labels = {name: label for label, name in enumerate(class_names)}
    parts: dict[str, Samples] = {
        split: [(where, labels[name]) for name in class_names for where in classes[name]]
        for split, classes in tree.items()
    }
    return parts, class_names
