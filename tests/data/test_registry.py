import pytest

from vimoe.data.registry import open_dataset
from vimoe.errors import UserError


def test_an_unknown_dataset_is_answered_with_the_known_ones() -> None:
    with pytest.raises(UserError, match="unknown dataset 'digit'; there is digits, folder, tar"):
        open_dataset("digit")


def test_digits_are_there_without_a_folder() -> None:
    assert open_dataset("digits").image_shape == (1, 8, 8)


def test_a_folder_dataset_without_a_folder_is_told_what_it_needs() -> None:
    with pytest.raises(UserError, match="dataset 'folder' needs data_dir, the folder of pictures"):
        open_dataset("folder")


@pytest.mark.parametrize("name", ["tar/x", "hfds/", "torch/", "tfds/mnist", "Folder"])
def test_names_that_are_nearly_right_are_unknown_too(name: str) -> None:
    with pytest.raises(UserError, match=f"unknown dataset '{name}'"):
        open_dataset(name, "somewhere")
