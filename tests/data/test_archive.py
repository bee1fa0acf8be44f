import contextlib
import gzip
import tarfile
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.data.archives import image_bytes, spoil, write_tar
from tests.data.image_files import write_folder
from vimoe.data.archive import Member, find_tar, members, read_bytes, read_member
from vimoe.data.decode import BrokenImageError, read_image
from vimoe.data.folder import find_folder
from vimoe.data.loaders import batches, training_batches
from vimoe.data.registry import open_dataset
from vimoe.data.splits import AS_USUAL, RunSplits
from vimoe.data.transforms import ImageForm
from vimoe.errors import UserError

FORM = ImageForm((3, 8, 8), (0.5,) * 3, (0.5,) * 3, "bicubic", 1.0)
FILES = {f"{name}/{i}.png": image_bytes(value + i) for name, value in (("cat", 10), ("dog", 90)) for i in range(4)}


def placed(prefix: str, files: dict[str, bytes] = FILES) -> dict[str, bytes]:
    return {prefix + name: content for name, content in files.items()}


def what_is_found(root: Path, wanted: RunSplits = AS_USUAL) -> dict[str, list[tuple[str, int]]]:
    """By split, the last two parts of every image's path and its label."""
    parts = find_tar(root, wanted).parts
    return {
        part: [("/".join(m.name.split("/")[-2:]), label) for m, label in samples] for part, samples in parts.items()
    }


EVERYTHING = [(name, int(name.startswith("dog"))) for name in FILES]


@given(st.lists(st.binary(max_size=2000), min_size=1, max_size=8), st.integers(0, 200))
@settings(deadline=None, max_examples=25, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_members_and_their_bytes_are_those_tarfile_extracts(tmp_path: Path, contents: list[bytes], deep: int) -> None:
    names = [f"{'d' * deep}/f\u00fc {i}" for i in range(len(contents))]  # long names take headers of their own
    path = write_tar(tmp_path / "a.tar", dict(zip(names, contents, strict=True)))
    with tarfile.open(path) as tar:
        expected = [(info.name, tar.extractfile(info).read()) for info in tar]  # type: ignore[union-attr]
    assert [(member.name, read_bytes(member)) for member in members(path)] == expected


def test_a_image_in_a_tar_is_read_as_the_file_is(tmp_path: Path) -> None:
    root = write_folder(tmp_path / "f", {"train": 2, "val": 1})
    with tarfile.open(tmp_path / "a.tar", "w") as tar:
        tar.add(root, "data")
    files, archived = find_folder(root), find_tar(tmp_path / "a.tar")
    assert archived.class_names == files.class_names
    for part in ("train", "val"):
        for (path, label), (member, same) in zip(files.parts[part], sorted(archived.parts[part]), strict=True):
            assert member.name.endswith(path.name)
            assert label == same
            assert np.array_equal(read_image(path), read_member(member))


@pytest.mark.parametrize(
    "tars",
    [
        {"train": FILES, "val": FILES},
        {"train": placed("train/"), "val": placed("./val/")},
        {"all": placed("train/") | placed("val/")},
        {"all": placed("a/b/train/") | placed("a/b/val/")},
        {
            "train-000": placed("", dict(list(FILES.items())[:3])),
            "train-001": dict(list(FILES.items())[3:]),
            "val": FILES,
        },
        {
            f"{split}/{name}": {file: FILES[f"{name}/{file}"] for file in ("0.png", "1.png", "2.png", "3.png")}
            for split in ("train", "val")
            for name in ("cat", "dog")
        },
    ],
    ids=["one a split", "with the split inside", "one for all", "folders around", "shards", "one a class"],
)
def test_a_tree_of_tars_means_what_a_tree_of_folders_means(tmp_path: Path, tars: dict[str, dict[str, bytes]]) -> None:
    for name, files in tars.items():
        write_tar(tmp_path / f"{name}.tar", files)
    root = tmp_path / "all.tar" if list(tars) == ["all"] else tmp_path
    found = find_tar(root)
    assert found.class_names == ("cat", "dog")
    assert found.parts.keys() == {"train", "val"}
    for samples in found.parts.values():
        assert [read_member(m).getpixel((0, 0))[0] for m, _ in samples] == [10, 11, 12, 13, 90, 91, 92, 93]  # type: ignore[index]
        assert [label for _, label in samples] == [0] * 4 + [1] * 4


@pytest.mark.parametrize(("larger", "names"), [(True, ("pets/cat", "pets/dog", "wild/elk")), (False, ("pets", "wild"))])
def test_folders_in_class_folders_are_what_the_user_says(larger: bool, names: tuple[str, ...], tmp_path: Path) -> None:
    places = ("pets/cat", "pets/dog", "wild/elk")
    files = {f"{split}/{place}/0.png": b"" for split in ("train", "val") for place in places}
    path = write_tar(tmp_path / "a.tar", files)
    found = find_tar(path, super_classes=larger)
    assert found.class_names == names
    assert found.super_classes == (("pets", "pets", "wild") if larger else ())
    with pytest.raises(UserError, match=r"'pets' holds the folders cat, dog: are these the classes \(--super"):
        find_tar(path)
    with pytest.raises(UserError, match="is in no class folder SUPER/CLASS"):
        find_tar(write_tar(tmp_path / "b.tar", files | {"train/pets/1.png": b""}), super_classes=True)


def test_a_tar_that_is_not_split_has_some_set_aside_and_other_files_are_passed_over(tmp_path: Path) -> None:
    more = {"LICENSE": b"free", "cat/._0.png": b"?", "cat/notes.txt": b"!"}
    path = write_tar(tmp_path / "pets.tar", placed("pets/", FILES) | placed("pets/", more))
    assert what_is_found(path) == {"train": EVERYTHING}
    splits = open_dataset("tar", str(path), FORM, val_share=0.25)
    assert (len(splits.train), len(splits.val)) == (6, 2)


def test_splits_are_taken_by_name_where_they_are_told(tmp_path: Path) -> None:
    path = write_tar(tmp_path / "a.tar", placed("fold1/") | placed("fold2/"))
    assert what_is_found(path, RunSplits("fold2", "fold1", "")) == {"train": EVERYTHING, "val": EVERYTHING}
    with pytest.raises(UserError, match="has no split 'fold3'; there is fold1, fold2"):
        find_tar(path, RunSplits("fold1", "fold3"))


def test_workers_read_the_same_archive_at_once(tmp_path: Path) -> None:
    splits = open_dataset("tar", str(write_tar(tmp_path / "a.tar", placed("train/") | placed("val/"))), FORM)
    alone = [images for images, _ in training_batches(splits.train, 2, 0, 0)]
    together = [images for images, _ in training_batches(splits.train, 2, 0, 0, workers=2)]
    assert len(alone) == 4
    assert all((a == b).all() for a, b in zip(alone, together, strict=True))


def test_a_member_with_damaged_bytes_is_one_line_and_the_others_are_read(tmp_path: Path) -> None:
    path = write_tar(tmp_path / "a.tar", placed("train/") | placed("val/"))
    hurt = next(member for member in members(path) if member.name == "val/dog/2.png")
    spoil(path, hurt.offset, b"\0" * 40)
    told: list[str] = []
    splits = open_dataset("tar", str(path), FORM)
    assert sum(len(labels) for _, labels in batches(splits.val, 4, 0, told.append)) == 7
    assert told == [f"{path}: val/dog/2.png is no image that can be read"]


def test_a_member_with_a_damaged_header_is_one_line_in_its_neighbours_class(tmp_path: Path) -> None:
    path = write_tar(tmp_path / "a.tar", FILES)
    hurt = next(member for member in members(path) if member.name == "dog/2.png")
    spoil(path, hurt.offset - 512, b"\xff" * 100)
    found = find_tar(path)
    assert len(found.parts["train"]) == 8
    lost, label = found.parts["train"][6]
    assert label == 1
    with pytest.raises(BrokenImageError, match=f"{path}: member at byte {hurt.offset - 512} has a damaged header"):
        read_member(lost)
    last = list(members(write_tar(path, FILES)))[-1]
    spoil(path, last.offset - 512, b"\xff" * 100)
    assert [bool(member.lost) for member in members(path)] == [False] * 7 + [True]


def test_what_is_no_whole_plain_tar_is_one_line(tmp_path: Path) -> None:
    whole = write_tar(tmp_path / "whole.tar", FILES)
    last = list(members(whole))[-1]
    for name, content, line in (
        ("text", b"no archive " * 200, "is no tar archive"),
        ("empty", b"", "is no tar archive"),
        ("short", whole.read_bytes()[: last.offset + 20], "ends in the middle of dog/3.png: it was not copied whole"),
        ("zip", gzip.compress(whole.read_bytes()), r"is compressed \(gzip\): .*unpack it first"),
        ("start", b"\xff" * 512 + whole.read_bytes()[512:], "is no tar archive"),
    ):
        (tmp_path / f"{name}.tar").write_bytes(content)
        with pytest.raises(UserError, match=line) as caught:
            find_tar(tmp_path / f"{name}.tar")
        assert "\n" not in str(caught.value)
    with pytest.raises(UserError, match="no tar archive and no folder of them"):
        find_tar(tmp_path / "nowhere.tar")
    (tmp_path / "bare").mkdir()
    with pytest.raises(UserError, match="holds no plain tar archives"):
        find_tar(tmp_path / "bare")


@pytest.mark.parametrize(
    ("files", "line"),
    [
        ({"notes.txt": b"!"}, "holds no images"),
        ({"0.png": b"!"}, "a.tar: 0.png is in no class folder"),
        (placed("train/") | {"val/elk/0.png": b""}, "'elk' is only there"),
        (placed("val/"), "has no training split"),
    ],
)
def test_a_tar_that_cannot_be_used_is_one_line(tmp_path: Path, files: dict[str, bytes], line: str) -> None:
    with pytest.raises(UserError, match=line):
        find_tar(write_tar(tmp_path / "a.tar", files))


def test_an_archive_that_has_gone_is_told_as_a_broken_image(tmp_path: Path) -> None:
    with pytest.raises(BrokenImageError, match=r"cat/0\.png cannot be read: No such file or directory"):
        read_member(Member(tmp_path / "a.tar", "cat/0.png", 512, 10))


@given(st.integers(512, 20 * 1024), st.binary(min_size=1, max_size=600))
@settings(deadline=None, max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_damage_costs_what_it_hits_and_nothing_else(tmp_path: Path, at: int, content: bytes) -> None:
    path = write_tar(tmp_path / "a.tar", FILES)
    hits = range(at, at + len(content))
    spared = {m for m in members(path) if m.offset + m.size <= hits.start or m.offset - 512 >= hits.stop}
    spoil(path, at, content)
    found = list(members(path))
    assert spared <= set(found)
    for member in found:
        with contextlib.suppress(BrokenImageError):
            read_member(member)


def test_a_hole_of_twenty_gigabytes_costs_neither_memory_nor_minutes(tmp_path: Path) -> None:
    path = write_tar(tmp_path / "a.tar", FILES)
    with path.open("r+b") as file:
        file.truncate(20 * 2**30)  # sparse: nothing is stored
    assert [member.name for member in members(path)] == list(FILES)


def test_members_behind_zeros_are_found_as_in_archives_that_were_joined(tmp_path: Path) -> None:
    first, second = (
        write_tar(tmp_path / f"{name}.tar", files) for name, files in (("a", FILES), ("b", {"z": b"last"}))
    )
    joined = tmp_path / "joined.tar"
    joined.write_bytes(first.read_bytes() + bytes(3 * 2**20) + second.read_bytes())
    assert [member.name for member in members(joined)] == [*FILES, "z"]
    assert read_bytes(list(members(joined))[-1]) == b"last"


def header(name: str, size: int, kind: bytes) -> bytes:
    info = tarfile.TarInfo(name)
    info.size, info.type = size, kind
    return info.tobuf(tarfile.GNU_FORMAT)


@pytest.mark.parametrize("kind", [b"L", b"K", b"x", b"g"])
def test_a_name_of_gigabytes_is_damage_and_not_read(tmp_path: Path, kind: bytes) -> None:
    whole = write_tar(tmp_path / "a.tar", FILES).read_bytes()
    (tmp_path / "late.tar").write_bytes(whole[:-1024].rstrip(b"\0") + bytes(512) + header("long", 8 * 2**30, kind))
    members_of = list(members(tmp_path / "late.tar"))
    assert [bool(member.lost) for member in members_of][-1]
    (tmp_path / "first.tar").write_bytes(header("long", 8 * 2**30, kind) + whole)
    with pytest.raises(UserError, match="is no tar archive"):
        list(members(tmp_path / "first.tar"))


@pytest.mark.parametrize("kind", [b"0", b"L", b"x"])
def test_a_negative_size_is_damage_and_ends(tmp_path: Path, kind: bytes) -> None:
    whole = write_tar(tmp_path / "a.tar", FILES).read_bytes()
    block = bytearray(header("back", 0, kind))
    block[124:136] = b"\xff" * 10 + b"\xfc\x00"  # -1,024 in base 256
    block[148:156] = b"%06o\0 " % (sum(block[:148]) + 8 * 32 + sum(block[156:]))
    (tmp_path / "b.tar").write_bytes(whole[:-1024].rstrip(b"\0") + bytes(512) + block)
    assert [bool(member.lost) for member in members(tmp_path / "b.tar")][-1]


def test_members_too_large_to_be_an_image_and_sparse_ones_are_lost(tmp_path: Path) -> None:
    path = tmp_path / "a.tar"
    with path.open("wb") as file:
        file.write(header("cat/huge.png", 2**30 + 512, tarfile.REGTYPE))
        file.seek(2**30 + 512, 1)
        file.write(header("cat/holes.png", 512, tarfile.GNUTYPE_SPARSE) + bytes(512))
        file.write(header("cat/0.png", 0, tarfile.REGTYPE) + bytes(1024))
    assert [(member.name, member.lost) for member in members(path)] == [
        ("cat/huge.png", "is larger than 1 GiB"),
        ("cat/holes.png", "is stored with holes (sparse), which is not read"),
        ("cat/0.png", ""),
    ]
    with pytest.raises(BrokenImageError, match=r"cat/huge.png is larger than 1 GiB"):
        read_member(next(members(path)))


def test_links_that_go_round_add_no_archives(tmp_path: Path) -> None:
    write_tar(tmp_path / "train.tar", FILES)
    (tmp_path / "loop").symlink_to(tmp_path)
    assert what_is_found(tmp_path) == {"train": EVERYTHING}
