from pathlib import Path

import pytest

from tests.data.image_files import write_folder
from vimoe.data.registry import open_dataset
from vimoe.data.transforms import ImageForm
from vimoe.errors import UserError

FORM = ImageForm((3, 8, 8), (0.5, 0.5, 0.5), (0.5, 0.5, 0.5), "bicubic", 1.0)


def test_an_unknown_dataset_is_answered_with_the_known_ones() -> None:
    with pytest.raises(UserError, match="unknown dataset 'digit'; there is digits, glyphs, folder, tar"):
        open_dataset("digit")


def test_digits_are_there_without_a_folder() -> None:
    assert open_dataset("digits").form.input_size == (1, 8, 8)


def test_a_folder_dataset_without_a_folder_is_told_what_it_needs() -> None:
    with pytest.raises(UserError, match="dataset 'folder' needs data_dir, the folder of images"):
        open_dataset("folder")


@pytest.mark.parametrize("name", ["tar/x", "hfds/", "torch/", "tfds/mnist", "Folder"])
def test_names_that_are_nearly_right_are_unknown_too(name: str) -> None:
    with pytest.raises(UserError, match=f"unknown dataset '{name}'"):
        open_dataset(name, "somewhere")


def test_so_many_images_of_each_class_are_drawn_by_seed_and_others_stay_whole(tmp_path: Path) -> None:
    root = write_folder(tmp_path, {"train": 6, "val": 3})
    few = open_dataset("folder", str(root), FORM, per_class=2)
    labels = [label for _, label in few.train.samples]  # type: ignore[attr-defined]
    assert labels == [0, 0, 1, 1, 2, 2]
    assert len(few.val) == 9
    other = open_dataset("folder", str(root), FORM, per_class=2, seed=1)
    assert few.train.samples != other.train.samples  # type: ignore[attr-defined]
    everything = open_dataset("folder", str(root), FORM, per_class=99)
    assert len(everything.train) == 18
    with pytest.raises(UserError, match="per_class must be at least 1"):
        open_dataset("folder", str(root), FORM, per_class=0)


def test_a_named_test_split_never_decides(tmp_path: Path) -> None:
    root = write_folder(tmp_path, {"train": 6, "val": 3})
    splits = open_dataset("folder", str(root), FORM, splits=("", "", "val"))
    assert len(splits.test) == 9
    assert len(splits.train) + len(splits.val) == 18
