"""Tables that give an image any number of labels: which are read, and in what line the wrong ones end."""

from pathlib import Path
from typing import Any

import pytest
import torch

from tests.data.test_layouts import FORM, images, table
from vimoe.data.label_sets import set_aside
from vimoe.data.label_table import read_label_table
from vimoe.data.registry import open_dataset, open_label_sets, open_one_split
from vimoe.data.splits import Splits
from vimoe.errors import UserError

SPLITS = ["train", "train", "train", "val", "val"]
SETS = [("b", "a"), ("b",), (), ("a",), ("a", "b")]
# The same five images in each of the forms.
FORMS = {
    "one cell": ("path,split,label", ["b|a", "b", "", "a", "a|b"]),
    "called labels, with spaces": ("path,split,Labels", ["b | a", "b|", "", "a", "a|b"]),
    "a column for each": ("path,split,a,b", ["1,1", "0,1", "0,0", "1,0", "1,1"]),
    "in words": ("path,split,b,a", ["True,true", "TRUE,False", "false,false", "False,True", "true,1"]),
    "semicolons": ("path;split;label", ["b|a", "b", "", "a", "a|b"]),
}


def write(root: Path, head: str, cells: list[str]) -> Path:
    mark = ";" if ";" in head else ","
    rows = [f"{i}.jpg{mark}{split}{mark}{cell}" for i, (split, cell) in enumerate(zip(SPLITS, cells, strict=True))]
    return table(images(root, ".", count=5), "\n".join([head, *rows]) + "\n")


def open_(root: Path) -> Splits:
    return open_label_sets("folder", str(root), FORM)


def sets(part: Any, names: tuple[str, ...]) -> list[tuple[str, ...]]:
    return [tuple(sorted(names[label] for label in labels)) for _, labels in part.samples]


@pytest.mark.parametrize("form", FORMS)
def test_labels_stand_in_one_cell_or_in_a_column_each(form: str, tmp_path: Path) -> None:
    splits = open_(write(tmp_path, *FORMS[form]))
    assert splits.class_names == ("a", "b")
    found = sets(splits.train, splits.class_names) + sets(splits.val, splits.class_names)
    assert found == [tuple(sorted(labels)) for labels in SETS]
    image, target = splits.train[1]
    assert (image.shape, target.dtype, target.tolist()) == (FORM.input_size, torch.int64, [0, 1])
    assert splits.train[2][1].tolist() == [0, 0]
    with pytest.raises(UserError, match="any number of labels: --task multilabel learns them") as caught:
        open_dataset("folder", str(tmp_path), FORM)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("form", ["lists", "a column for each", "one cell"])
def test_a_real_parquet_file_has_lists_or_columns(form: str, tmp_path: Path) -> None:
    pyarrow, parquet = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    columns: dict[str, list[Any]] = {"path": [f"{i}.jpg" for i in range(5)], "split": SPLITS}
    if form == "lists":
        columns["label"] = [None if not labels else list(labels) for labels in SETS]  # a missing list is none
    elif form == "one cell":
        columns["labels"] = ["|".join(labels) for labels in SETS]
    else:
        columns |= {name: [name in labels for labels in SETS] for name in "ab"} | {"size": [4, 5, 6, 7, 8]}
    parquet.write_table(pyarrow.table(columns), images(tmp_path, ".", count=5) / "labels.parquet")
    splits = open_(tmp_path)
    found = sets(splits.train, splits.class_names) + sets(splits.val, splits.class_names)
    assert found == [tuple(sorted(labels)) for labels in SETS]
    assert ("columns that are not used: size" in splits.notes) == (form == "a column for each")


def test_a_real_parquet_file_of_one_label_an_image_is_classification(tmp_path: Path) -> None:
    pyarrow, parquet = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    root = images(tmp_path, ".", count=4)
    parquet.write_table(
        pyarrow.table({"path": [f"{i}.jpg" for i in range(4)], "label": [10, 9, 10, 9]}), root / "x.parquet"
    )
    assert open_dataset("csv", str(root / "x.parquet"), FORM, val_share=0.3).class_names == ("9", "10")
    parquet.write_table(pyarrow.table({"path": ["0.jpg", "1.jpg"], "label": ["a", None]}), root / "y.parquet")
    with pytest.raises(UserError, match="line 3: a value is missing"):
        open_dataset("csv", str(root / "y.parquet"), FORM)


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("path,label\n0.jpg,a|b\n0.jpg,a\n", r"0.jpg two labels, 'a\|b' and 'a'"),
        ("path,a,b\n0.jpg,1,0\n1.jpg,1,\n", "line 3: a value is missing in '1.jpg,1,'"),
        ("path,a,size\n0.jpg,1,7\n1.jpg,1,8\n", "columns path, a, size: it needs path and label"),
        ("path,labels\n0.jpg,\n1.jpg,\n", "gives no image a label"),
        ("path,split,label\n0.jpg,train,a|b\n1.jpg,val,c\n", "the val images .* other labels than train: 'c' is only"),
        ("path,labels\n0.jpg,a\n", "1 images are too few to set some aside"),
    ],
)
def test_a_wrong_table_ends_in_one_line(text: str, line: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=line) as caught:
        open_(table(tmp_path, text))
    assert "\n" not in str(caught.value)


def test_folders_hold_one_label_an_image(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no table of labels"):
        open_(images(tmp_path, "cat", "dog"))
    with pytest.raises(UserError, match=r"stand in a table: set data_dir to it .dataset 'digits' holds none"):
        open_label_sets("digits")


def test_the_order_of_labels_in_a_cell_is_of_no_account(tmp_path: Path) -> None:
    read = read_label_table(table(tmp_path, "path,label\n0.jpg,a|b\n0.jpg,b|a|b\n1.jpg,b\n"))
    assert [set(labels) for labels in read.splits["train"].values()] == [{"a", "b"}, {"b"}]


def test_a_table_with_some_of_the_models_labels_is_scored_under_the_models(tmp_path: Path) -> None:
    write(tmp_path, *FORMS["one cell"])
    known = ("0", "b", "c", "a")
    found, names, part = open_one_split("folder", str(tmp_path), FORM, "val", known, label_sets=True)
    assert (names, part) == (known, "val")
    assert [found[i][1].tolist() for i in range(2)] == [[0, 0, 0, 1], [0, 1, 0, 1]]


def test_what_is_set_aside_has_the_same_share_of_rare_labels_and_takes_no_label_away() -> None:
    samples = [(i, ((0,) if i % 2 else (0, 1)) + ((2,) if i < 10 else ())) for i in range(100)] + [(100, (3,))]
    parts = set_aside(samples, 0.2, seed=0)
    assert sorted(parts["train"] + parts["val"]) == samples
    rare = {split: sum(2 in labels for _, labels in part) for split, part in parts.items()}
    assert rare == {"train": 8, "val": 2}
    assert (100, (3,)) in parts["train"]
    assert set_aside(samples, 0.2, seed=0) == parts != set_aside(samples, 0.2, seed=1)


def test_no_label_is_lost_to_training_where_it_goes_with_rarer_ones() -> None:
    samples = [(0, (0, 2)), (1, (1, 2)), (2, (0,)), (3, (1,)), *((i, ()) for i in range(4, 14))]
    for seed in range(40):
        parts = set_aside(samples, 0.1, seed)
        assert sorted(parts["train"] + parts["val"]) == samples
        assert {label for _, labels in parts["train"] for label in labels} == {0, 1, 2}
        assert parts["val"]
