"""Images in tar archives, read where they lie: an index of the members, then random access by offset.

timm's reader of tars keeps archives open, which worker processes must not share, passes over what it cannot read, and
takes a member's innermost folder for its class whatever the split. Here an archive is opened for each read (decoding an
image takes twenty times as long), every damaged member is named, and a tree of archives means what the same tree of
folders means.

The tree: `train.tar` and `val.tar`, or one tar with `train/` and `val/` inside, or a folder `train/` of tars; in them
one folder a class, or one tar a class. Shards (`train-000.tar`, `train-001.tar`) are one split.
"""

import errno
import io
import os
import re
import tarfile
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import BinaryIO, NamedTuple

from PIL import Image

from vimoe.data.decode import SUFFIXES, BrokenImageError, read_image
from vimoe.data.images import labelled
from vimoe.data.label_table import label_by_class
from vimoe.data.listing import files_below, listed
from vimoe.data.splits import AS_USUAL, UNSPLIT, Found, Wanted, is_split
from vimoe.errors import UserError

_COMPRESSED = {b"\x1f\x8b": "gzip", b"BZ": "bzip2", b"\xfd7": "xz", b"(\xb5": "zstd"}
SHARD = re.compile(r"(^|[-_.])\d+$")
_BLOCK, _CHUNK = 512, 2**20
_EXTENSIONS = (b"L", b"K", b"x", b"g", b"X")  # a long name or attributes, before the header that they belong to
_LARGEST = 2**30


class Member(NamedTuple):
    """A file in an archive."""

    archive: Path
    name: str  # the member's path in it
    offset: int = 0  # where its bytes begin
    size: int = 0  # how many there are
    lost: str = ""  # what is wrong where there is nothing that can be read; else empty

    def __str__(self) -> str:
        return f"{self.archive}: {self.name}"


def read_member(member: Member) -> Image.Image:
    """The image in RGB, upright. Raises BrokenImageError if it cannot be used."""
    if member.lost:
        raise BrokenImageError(f"{member} {member.lost}")
    try:
        content = read_bytes(member)
    except OSError as error:
        raise BrokenImageError(f"{member} cannot be read: {error.strerror}") from error
    return read_image(member, io.BytesIO(content))


def read_bytes(member: Member) -> bytes:
    """A member's content; nothing is kept open, so every process may call it."""
    with member.archive.open("rb", buffering=0) as file:
        return os.pread(file.fileno(), member.size, member.offset)


def members(archive: Path) -> Iterator[Member]:
    """The files of a plain tar in their order, with a lost one for every stretch that is damaged.

    Members of more than 1 GiB and sparse ones are lost too.

    Raises UserError if it cannot be read, is compressed or no tar at all, or ends too early.
    """
    name = ""
    try:
        with archive.open("rb", buffering=0) as file:
            if kind := _COMPRESSED.get(os.pread(file.fileno(), 2, 0)):
                raise UserError(f"{archive} is compressed ({kind}): images are read by position, so unpack it first")
            for info in _headers(file):
                if isinstance(info, int):
                    if name:
                        yield Member(archive, f"member at byte {info}", lost="has a damaged header")
                    continue
                name = info.name
                if info.issparse():
                    yield Member(archive, name, lost="is stored with holes (sparse), which is not read")
                elif info.isreg():
                    lost = "" if info.size <= _LARGEST else "is larger than 1 GiB"
                    yield Member(archive, name, info.offset_data, info.size, lost)
    except tarfile.TarError as error:
        where = f"ends in the middle of {name}: it was not copied whole" if name else "is no tar archive"
        raise UserError(f"{archive} {where}") from error
    except OSError as error:
        raise UserError(f"{archive} cannot be read: {error.strerror}") from error
    if not name:
        raise UserError(f"{archive} is no tar archive")


def _headers(file: BinaryIO) -> Iterator[tarfile.TarInfo | int]:
    """The members of a tar, and where each stretch begins that is neither a member nor zeros.

    Raises tarfile.TarError if it does not begin as a tar, or ends within a member.
    """
    _check_extensions(file, 0)
    tar, size = tarfile.TarFile(fileobj=file), os.fstat(file.fileno()).st_size
    place, end, damaged = 0, 0, -1
    while place < size:
        block = os.pread(file.fileno(), _BLOCK, place)
        if not any(block):
            place = _behind_zeros(file, place, size)
            continue
        file.seek(place)
        try:
            _check_extensions(file, place)
            info = tarfile.TarInfo.fromtarfile(tar)
            if tar.offset <= place:
                raise tarfile.HeaderError
        except (tarfile.HeaderError, ValueError):
            damaged, place = place if damaged < 0 else damaged, place + _BLOCK
            continue
        if damaged >= 0:
            yield damaged
        yield info
        place, end, damaged = tar.offset, tar.offset, -1
    if end > size:
        raise tarfile.ReadError("unexpected end of data")
    if damaged >= 0:
        yield damaged


def _behind_zeros(file: BinaryIO, place: int, size: int) -> int:
    """The first block from here on that is not all zeros; holes of the file itself are not read."""
    while place < size:
        try:
            place = os.lseek(file.fileno(), place, os.SEEK_DATA) // _BLOCK * _BLOCK
        except OSError as error:
            if error.errno == errno.ENXIO:  # nothing but a hole up to the end
                return size
        chunk = os.pread(file.fileno(), _CHUNK, place)
        if rest := len(chunk.lstrip(b"\0")):
            return place + (len(chunk) - rest) // _BLOCK * _BLOCK
        place += len(chunk)
    return size


def _check_extensions(file: BinaryIO, place: int) -> None:
    """What stands before a member's header is read whole: nothing long, and no map of holes."""
    while (block := os.pread(file.fileno(), _BLOCK, place))[156:157] in _EXTENSIONS:
        size = tarfile.TarInfo.frombuf(block, "utf-8", "surrogateescape").size
        if not 0 <= size <= _CHUNK or b"GNU.sparse" in os.pread(file.fileno(), size, place + _BLOCK):
            raise tarfile.HeaderError
        place += _BLOCK + -(-size // _BLOCK) * _BLOCK


def find_archives(root: Path) -> dict[tuple[str, ...], Path]:
    """The tars in a folder, by their path in it without `.tar`; a tar that is named itself has an empty one.

    Raises UserError if there are none.
    """
    if root.is_file():
        return {(): root}
    if not root.is_dir():
        raise UserError(f"data_dir {root} is no tar archive and no folder of them")
    found = {path.relative_to(root).with_suffix("").parts: path for path in files_below(root, (".tar",))}
    if not found:
        raise UserError(f"{root} holds no plain tar archives (*.tar); compressed ones must be unpacked")
    return found


def find_tar(root: Path, wanted: Wanted = AS_USUAL, super_classes: bool | None = None) -> Found:
    """The splits and classes of images in a tar, or in a folder of tars; `super_classes` as of `find_folder`.

    Raises UserError if an archive cannot be used, an image is in no class, a split is missing, the splits have
    different classes, or folders could be classes or parts of one.
    """
    placed = [pair for path, archive in find_archives(root).items() for pair in _places(path, archive)]
    if not placed:
        raise UserError(f"{root} holds no images")
    while all(len(place) > 1 for place, _ in placed) and len(tops := {place[0] for place, _ in placed}) == 1:
        if is_split(tops, AS_USUAL) or not tops.isdisjoint(wanted):
            break
        placed = [(place[1:], member) for place, member in placed]  # a folder around everything
    split = is_split({place[0] for place, _ in placed if place}, wanted)
    tree: dict[str, dict[str, list[Member]]] = {}
    inside: dict[tuple[str, ...], set[str]] = {}
    for place, member in placed:
        place = place if split else (UNSPLIT, *place)
        if len(place) < (3 if super_classes else 2):
            raise UserError(f"{member} is in no class folder{' SUPER/CLASS' if super_classes else ''}")
        name = "/".join(place[1:3]) if super_classes else place[1]
        tree.setdefault(place[0], {}).setdefault(name, []).append(member)
        inside.setdefault(place[:2], set()).add(place[2] if len(place) > 2 else "")
    for (_, name), found in inside.items():
        if super_classes is None and len(found) > 1 and "" not in found:
            raise UserError(
                f"in {root} {name!r} holds the folders {listed(sorted(found))}: are these the classes "
                f"(--super-classes), or is all in them of the class {name!r} (--no-super-classes)?"
            )
    chosen = wanted.choose(sorted(tree), str(root))
    parts, class_names = label_by_class({role: tree[name] for role, name in chosen.items()}, root)
    larger = tuple(name.split("/")[0] for name in class_names) if super_classes else ()
    return Found(parts, class_names, partial(labelled, read_member), larger)


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
