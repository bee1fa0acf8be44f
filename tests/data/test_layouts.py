"""Folders as people have them: which are read, and in what line the wrong ones end."""

import re
from collections.abc import Callable
from pathlib import Path

import pytest
from PIL import Image

from vimoe.data.registry import open_dataset, open_masks, open_one_split
from vimoe.data.splits import Splits
from vimoe.data.transforms import ImageForm
from vimoe.errors import UserError

FORM = ImageForm((3, 16, 16), (0.5, 0.5, 0.5), (0.5, 0.5, 0.5), "bicubic", 1.0)


def write(root: Path, *files: str, text: str = "") -> Path:
    """Write files: images, and what has another suffix with this text."""
    for name in files:
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        if path.suffix.lower() in (".jpg", ".png", ".jpeg"):
            Image.new("RGB", (20, 20)).save(path)
        else:
            path.write_text(text)
    return root


def images(root: Path, *folders: str, count: int = 3) -> Path:
    """Write some images into each of these folders."""
    return write(root, *(f"{folder}/{i}.jpg" for folder in folders for i in range(count)))


def table(root: Path, text: str, name: str = "labels.csv") -> Path:
    return write(images(root, "."), name, text=text)


def open_(root: Path, **how: object) -> Splits:
    return open_dataset("folder", str(root), FORM, val_share=0.3, **how)  # type: ignore[arg-type]


WRONG: dict[str, tuple[Callable[[Path], object], str]] = {
    "nothing": (lambda r: r, "holds nothing and no class folders"),
    "images alone": (lambda r: images(r, "."), "holds 3 images .* and no class folders.*labels.csv"),
    "a folder called images": (lambda r: images(r, "images"), "a single class, 'images' .*class folders, or by a lab"),
    "one class": (lambda r: images(r, "train/cat", "val/cat"), "a single class, 'cat'"),
    "a folder around it": (lambda r: images(r, "set/train/cat", "set/train/dog", "set/val/cat"), "is .*/set meant"),
    "super-classes": (lambda r: images(r, "pets/cat", "pets/dog", "wild/elk"), r"2 folders \(cat, dog\).*--super-cl"),
    "an empty class": (lambda r: (images(r, "cat", "dog"), (r / "elk").mkdir()), "elk holds no images .nothing"),
    "a class of text files": (lambda r: write(images(r, "cat", "dog"), "elk/a.txt"), "elk holds no images .1 other f"),
    "what macOS left alone": (lambda r: write(r, "__MACOSX/cat/._1.jpg"), "holds nothing and no class folders"),
    "images and masks": (lambda r: images(r, "images", "masks"), "are no classes.*--task segmentation"),
    "ADE20K's layout": (lambda r: images(r, "images/train", "annotations/train"), "--task segmentation"),
    "no training split": (lambda r: images(r, "val/cat", "val/dog"), "has no training split"),
    "a flat val": (lambda r: images(r, "train/cat", "train/dog", "val"), "val holds 3 images .* no class folders"),
    "a class of val alone": (lambda r: images(r, "train/a", "train/b", "val/c", "val/a"), "'c' is only there"),
    "an archive": (lambda r: write(r, "set.tar"), "--dataset tar"),
    "a table without labels": (lambda r: table(r, "path,size\n0.jpg,3\n"), "columns path, size: it needs path and la"),
    "a table without head": (lambda r: table(r, "0.jpg,cat\n1.jpg,dog\n"), "columns 0.jpg, cat: it needs path and"),
    "an empty table": (lambda r: table(r, ""), "columns of nothing"),
    "a table of other files": (lambda r: table(r, "path,label\nx.jpg,a\ny.jpg,b\n"), "none of the 2 .* such as x.jpg"),
    "a table of one class": (lambda r: table(r, "path,label\n0.jpg,a\n1.jpg,a\n"), "a single class, 'a'"),
    "a gap in a table": (lambda r: table(r, "path,label\n0.jpg,a\n1.jpg,\n"), "line 3: a value is missing"),
    "two labels": (lambda r: table(r, "path,label\n0.jpg,a\n1.jpg,b\n0.jpg,b\n"), "0.jpg two labels, 'a' and 'b'"),
    "a table that is none": (lambda r: write(r, "labels.csv/1.jpg"), "cannot read .*labels.csv"),
    "a broken Parquet file": (lambda r: table(r, "?", "labels.parquet"), "needs pyarrow|cannot read"),
}


@pytest.mark.parametrize("what", WRONG)
def test_a_wrong_layout_ends_in_a_line_that_says_what_was_found(what: str, tmp_path: Path) -> None:
    make, line = WRONG[what]
    make(tmp_path)
    where = tmp_path / "set.tar" if what == "an archive" else tmp_path
    with pytest.raises(UserError, match=line) as caught:
        open_(where)
    assert "\n" not in str(caught.value)
    assert str(tmp_path) in str(caught.value)


def test_masks_that_are_not_in_ade20ks_layout_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"images is missing: images are in images/SPLIT, their masks in annotations"):
        open_masks("ade20k", str(images(tmp_path, "cat", "dog")), FORM)


def test_what_is_left_out_is_said(tmp_path: Path) -> None:
    images(tmp_path, "train/cat", "train/dog", "val/cat", "val/dog", "test", "extra/cat", "train/__MACOSX")
    write(tmp_path, "train/stray.jpg", "train/.DS_Store", ".DS_Store")
    splits = open_(tmp_path)
    assert splits.class_names == ("cat", "dog")
    assert len(splits.train) == 6
    assert [re.sub(r".*/(?=\w+ )", "", note) for note in splits.notes] == [
        "extra is not used",
        "train holds images beside the class folders, not used: stray.jpg",
        "test holds images without labels and is not used",
    ]


def test_splits_may_be_written_in_capitals(tmp_path: Path) -> None:
    splits = open_(images(tmp_path, "Training/a", "Training/b", "Validation/a", "Validation/b"))
    assert (splits.class_names, len(splits.val)) == (("a", "b"), 6)


def test_a_class_may_be_missing_from_val(tmp_path: Path) -> None:
    splits = open_(images(tmp_path, "train/a", "train/b", "val/b"))
    assert {label for _, label in splits.val.samples} == {1}  # type: ignore[attr-defined]


@pytest.mark.parametrize(("larger", "names"), [(True, ("pets/cat", "pets/dog", "wild/elk")), (False, ("pets", "wild"))])
def test_folders_in_class_folders_are_what_the_user_says(larger: bool, names: tuple[str, ...], tmp_path: Path) -> None:
    splits = open_(images(tmp_path, "pets/cat", "pets/dog", "wild/elk"), super_classes=larger)
    assert splits.class_names == names
    assert splits.super_classes == (("pets", "pets", "wild") if larger else ())
    assert open_one_split("folder", str(tmp_path), FORM, class_names=names)[1] == names


def test_tiny_imagenets_tree_is_read(tmp_path: Path) -> None:
    images(tmp_path, "train/n01/images", "train/n02/images", "val/images", "test/images")
    write(tmp_path, "train/n01/n01_boxes.txt", "val/val_annotations.txt", text="1.jpg\tn02\t0\t0\n0.jpg\tn01\t0\t0\n")
    splits = open_(tmp_path)
    assert splits.class_names == ("n01", "n02")
    found = splits.val.samples  # type: ignore[attr-defined]
    assert [(path.name, label) for path, label in found] == [("0.jpg", 0), ("1.jpg", 1)]
    assert splits.test is splits.val
