"""Images in tar archives, read where they lie: an index of the members, then random access by offset.

timm's reader of tars keeps archives open, which worker processes must not share, passes over what it cannot read, and
takes a member's innermost folder for its class whatever the split. Here an archive is opened for each read (decoding a
image takes twenty times as long), every damaged member is named, and a tree of archives means what the same tree of
folders means.

The tree: `train.tar` and `val.tar`, or one tar with `train/` and `val/` inside, or a folder `train/` of tars; in them
one folder a class, or one tar a class. Shards (`train-000.tar`, `train-001.tar`) are one split.
"""

from __future__ import annotations

import io
import os
import re
import tarfile
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from PIL import Image

from vimoe.data.decode import SUFFIXES, BrokenImageError, read_image
from vimoe.data.folder import label_by_class
from vimoe.data.splits import Found, choose_splits, is_split
from vimoe.errors import UserError

_COMPRESSED = {b"\x1f\x8b": "gzip", b"BZ": "bzip2", b"\xfd7": "xz", b"(\xb5": "zstd"}
SHARD = re.compile(r"(^|[-_.])\d+$")


class Member(NamedTuple):
    """A file in an archive.

    Attributes:
        archive: The archive.
        name: The member's path in it.
        offset: Where its bytes begin.
        size: How many there are.
        lost: What is wrong where the archive is damaged so that there is nothing to read; else empty.
    """

    archive: Path
    name: str
    offset: int = 0
    size: int = 0
    lost: str = ""

    def __str__(self) -> str:
        return f"{self.archive}: {self.name}"


class NamedBytes(io.BytesIO):
    """A file's content that answers to the file's name."""

    def __init__(self, content: bytes, name: str) -> None:
        super().__init__(content)
        self.name = name

    def __str__(self) -> str:
        return self.name


def read_member(member: Member) -> Image.Image:
    """The image in RGB, upright.

    Raises:
        BrokenImageError: It cannot be used.
    """
    if member.lost:
        raise BrokenImageError(f"{member} {member.lost}")
    try:
        content = read_bytes(member)
    except OSError as error:
        raise BrokenImageError(f"{member} cannot be read: {error.strerror}") from error
    return read_image(NamedBytes(content, str(member)))  # type: ignore[arg-type]  # Pillow reads files as it reads paths


def read_bytes(member: Member) -> bytes:
    """A member's content; nothing is kept open, so every process may call it."""
    with member.archive.open("rb", buffering=0) as file:
        return os.pread(file.fileno(), member.size, member.offset)


def members(archive: Path) -> Iterator[Member]:
    """The files of a plain tar in their order, with a lost one for every stretch that is damaged.

    Raises:
        UserError: It cannot be read, is compressed or no tar at all, or ends too early.
    """
    name, end, found = "its beginning", 0, False
    try:
        with archive.open("rb") as file:
            start = next((kind for magic, kind in _COMPRESSED.items() if file.peek(2)[:2] == magic), None)
            if start:
                raise UserError(f"{archive} is compressed ({start}): images are read by position, so unpack it first")
            with tarfile.open(fileobj=file, mode="r:", ignore_zeros=True) as tar:  # goes on behind a damaged header
                while (info := tar.next()) is not None:
                    tar.members.clear()  # type: ignore[attr-defined]  # else it remembers all, a kilobyte each
                    if _damaged(file.fileno(), end, info.offset):
                        if not found:
                            break
                        yield Member(archive, f"member at byte {end}", lost="has a damaged header")
                    name, end, found = info.name, tar.offset, True
                    if info.isreg():
                        yield Member(archive, info.name, info.offset_data, info.size)
            if found and _damaged(file.fileno(), end, os.fstat(file.fileno()).st_size):
                yield Member(archive, f"member at byte {end}", lost="has a damaged header")
    except tarfile.ReadError as error:
        where = f"ends in the middle of {name}: it was not copied whole" if found else "is no tar archive"
        raise UserError(f"{archive} {where}") from error
    except OSError as error:
        raise UserError(f"{archive} cannot be read: {error.strerror}") from error
    if not found:
        raise UserError(f"{archive} is no tar archive")


def _damaged(file: int, start: int, end: int) -> bool:
    """Whether something other than zeros lies between two members."""
    return end > start and any(os.pread(file, end - start, start))


def find_archives(root: Path) -> dict[tuple[str, ...], Path]:
    """The tars in a folder, by their path in it without `.tar`; a tar that is named itself has an empty one.

    Raises:
        UserError: There are none.
    """
    if root.is_file():
        return {(): root}
    if not root.is_dir():
        raise UserError(f"data_dir {root} is no tar archive and no folder of them")
    found = {path.relative_to(root).with_suffix("").parts: path for path in sorted(root.rglob("*.tar"))}
    if not found:
        raise UserError(f"{root} holds no plain tar archives (*.tar); compressed ones must be unpacked")
    return found


def find_tar(root: Path, wanted: tuple[str, str, str] = ("", "", "")) -> Found:
    """Find the splits and classes of images in tars.

    Args:
        root: A tar, or a folder of tars.
        wanted: Names of the splits `train`, `val` and `test`; where one is empty, a usual name is looked for.

    Raises:
        UserError: An archive cannot be used, an image is in no class, a split is missing, or the splits have
            different classes.
    """
    placed = [pair for path, archive in find_archives(root).items() for pair in _places(path, archive)]
    if not placed:
        raise UserError(f"{root} holds no images")
    while all(len(place) > 1 for place, _ in placed) and len(tops := {place[0] for place, _ in placed}) == 1:
        if is_split(tops, ("", "", "")) or not tops.isdisjoint(wanted):
            break
        placed = [(place[1:], member) for place, member in placed]  # a folder around everything
    split = is_split({place[0] for place, _ in placed if place}, wanted)
    tree: dict[str, dict[str, list[Member]]] = {}
    for place, member in placed:
        place = place if split else ("", *place)
        if len(place) < 2:
            raise UserError(f"{member} is in no class folder")
        tree.setdefault(place[0], {}).setdefault(place[1], []).append(member)
    chosen = choose_splits(sorted(tree), wanted, str(root)) if split else {"train": ""}
    parts, class_names = label_by_class({role: tree[name] for role, name in chosen.items()}, root)
    return Found(parts, class_names, read_member)


def _places(path: tuple[str, ...], archive: Path) -> Iterator[tuple[tuple[str, ...], Member]]:
    """An archive's images with the folders they would be in if it were one; a lost one is where the last one was."""
    shard = tuple(filter(None, (*path[:-1], SHARD.sub("", path[-1])))) if path else ()
    place, lost = None, []
    for member in members(archive):
        *folders, name = [part for part in member.name.split("/") if part not in ("", ".")] or [""]
        if member.lost:
            lost.append(member)
        elif name.lower().endswith(SUFFIXES) and not name.startswith("."):
            inside = shard[:-1] if shard and folders[:1] == [shard[-1]] else shard  # train.tar with train/ inside
            place = (*inside, *folders) if folders else path
            yield place, member
        if place is not None:
            yield from ((place, one) for one in lost)
            lost = []
