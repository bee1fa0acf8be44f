"""What lies in a folder: its folders, its files, and both in words."""

import os
from collections.abc import Sequence
from pathlib import Path

from vimoe.data.decode import SUFFIXES
from vimoe.errors import UserError

# How the names of tables of labels end.
TABLES = (".csv", ".tsv", ".parquet")
# Folders of operating systems and archivers among a user's own; they hold no images of theirs.
SYSTEM = ("__MACOSX", "@eaDir", "$RECYCLE.BIN", "System Volume Information", "lost+found")


def folders(root: Path) -> list[str]:
    """The names of the folders in a folder, in order; hidden ones, a system's own and links upwards are left out.

    Raises UserError if it cannot be read.
    """
    above = _with_parents(root)
    return sorted(entry.name for entry in scan(root) if os.path.isdir(entry) and os.path.realpath(entry) not in above)


def mask_layout(root: Path) -> str:
    """The data set of images with masks that a folder's layout is of, `coco` or `ade20k`; empty if of none."""
    if any((root / "annotations").glob("*.json")):
        return "coco"
    return "ade20k" if all((root / name).is_dir() for name in ("images", "annotations")) else ""


def files_below(root: Path, suffixes: tuple[str, ...]) -> list[Path]:
    """The files of these kinds in a folder and all below it, in order; hidden files and folders are left out.

    Links are followed, but each folder is visited once and none above `root`: links that go round add nothing. Pipes
    and devices are left out. A link to a file that has gone is a file that cannot be read.

    Raises UserError if a folder cannot be read.
    """
    found, visited, ahead = list[Path](), _with_parents(root), [root]
    while ahead:
        for entry in sorted(scan(ahead.pop()), key=lambda entry: entry.name):
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


def scan(root: Path) -> list[os.DirEntry[str]]:
    """What a folder holds, without what is hidden and what systems leave behind (`SYSTEM`).

    Raises UserError if it cannot be read.
    """
    try:
        with os.scandir(root) as entries:
            return [entry for entry in entries if not entry.name.startswith(".") and entry.name not in SYSTEM]
    except OSError as error:
        raise UserError(f"{root} cannot be read: {error.strerror}") from error


def inventory(root: Path) -> str:
    """What a folder holds, in words: `7 images, 2 folders (a, b), 1 other file (c.txt)`."""
    kinds: dict[str, list[str]] = {"folder": [], "image": [], "other file": []}
    for entry in sorted(scan(root), key=lambda entry: entry.name):
        image = entry.name.lower().endswith(SUFFIXES)
        kinds["folder" if entry.is_dir() else "image" if image else "other file"].append(entry.name)
    words = [
        f"{len(names)} {kind}{'s' * (len(names) != 1)} ({listed(names)})" for kind, names in kinds.items() if names
    ]
    return ", ".join(words) or "nothing"


def listed(names: Sequence[str], most: int = 4) -> str:
    """The first names, and whether there are more."""
    return ", ".join([*names[:most], *(["..."] if len(names) > most else [])])
