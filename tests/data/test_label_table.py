import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest

from tests.data.test_layouts import FORM, images, open_, table
from vimoe.data.registry import open_dataset


def samples(part: Any) -> list[tuple[str, int]]:
    return [(path.name, label) for path, label in part.samples]


def test_a_table_gives_labels_and_splits_and_numbers_go_by_their_value(tmp_path: Path) -> None:
    rows = "file;split;class\n0.jpg;train;10\n1.jpg;train;9\n2.jpg;val;9\n"
    splits = open_(table(tmp_path, rows))
    assert splits.class_names == ("9", "10")
    assert (samples(splits.train), samples(splits.val)) == ([("1.jpg", 0), ("0.jpg", 1)], [("2.jpg", 0)])
    assert splits.notes == (f"labels are those of {tmp_path / 'labels.csv'}",)


def test_the_table_itself_may_be_named_whatever_it_is_called(tmp_path: Path) -> None:
    rows = "\ufeffPath,Label\n" + "".join(f"{i}.jpg,{'ab'[i % 2]}\n" for i in range(6)) + "0.jpg,a\n"
    root = table(images(tmp_path, ".", count=6), rows, "mine.csv")
    for name in ("folder", "csv"):
        splits = open_dataset(name, str(root / "mine.csv"), FORM, val_share=0.3)
        assert [len(splits.train), len(splits.val)] == [4, 2]  # the row that stands twice counts once


def test_a_table_for_each_split_with_the_images_in_a_folder_beside_it(tmp_path: Path) -> None:
    images(tmp_path, "images", count=6)
    (tmp_path / "train.csv").write_text("image,label\n0.jpg,b\n1.jpg,a\n3.jpg,a\n4.jpg,b\n")
    (tmp_path / "test.csv").write_text('image,label\n2.jpg,"b"\n')
    splits = open_(tmp_path)
    assert (splits.class_names, samples(splits.test)) == (("a", "b"), [("2.jpg", 1)])
    assert len(splits.train) == 2


def test_a_split_may_be_named_for_two_roles(tmp_path: Path) -> None:
    rows = "".join(f"{i}.jpg,{'ab'[i % 2]},{'train' if i < 4 else 'dev'}\n" for i in range(6))
    root = table(images(tmp_path, ".", count=6), "path,label,split\n" + rows)
    splits = open_(root, splits=("train", "dev", "dev"))
    assert len(splits.train) == 4
    assert samples(splits.val) == samples(splits.test) == [("4.jpg", 0), ("5.jpg", 1)]
    assert len(open_(root, splits=("train", "train", "dev")).train) == 4


def test_parquet_is_read_where_pyarrow_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    columns = {"path": [f"{i}.jpg" for i in range(4)], "label": [1, 0, 1, 0]}
    reader = ModuleType("pyarrow.parquet")
    reader.read_table = lambda path: SimpleNamespace(to_pydict=lambda: columns)  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "pyarrow", ModuleType("pyarrow"))
    monkeypatch.setitem(sys.modules, "pyarrow.parquet", reader)
    splits = open_(table(images(tmp_path, ".", count=4), "", "labels.parquet"))
    assert splits.class_names == ("0", "1")
    assert len(splits.train) == len(splits.val) == 2
