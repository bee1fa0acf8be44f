from pathlib import Path
from typing import Any

import pytest

from tests.data.archives import image_bytes, write_tar
from tests.data.image_files import COLOURS, write_folder
from tests.data.scenes_on_disk import write_ade20k
from vimoe.data.registry import open_dataset, open_masks, open_one_split
from vimoe.data.transforms import ImageForm
from vimoe.errors import UserError

FORM = ImageForm((3, 8, 8), (0.5, 0.5, 0.5), (0.5, 0.5, 0.5), "bicubic", 1.0)


def test_an_unknown_dataset_is_answered_with_the_known_ones() -> None:
    with pytest.raises(UserError, match=r"unknown dataset 'digit', did you mean 'digits'\?"):
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


@pytest.mark.parametrize(("images", "share", "aside"), [(9, 0.3, 3), (7, 0.5, 4), (8, 0.3, 2), (5, 0.01, 1)])
def test_the_share_that_is_set_aside_is_rounded_to_the_nearest_image(
    tmp_path: Path, images: int, share: float, aside: int
) -> None:
    root = write_folder(tmp_path, {"": images})
    splits = open_dataset("folder", str(root), FORM, val_share=share)
    assert len(splits.val) == 3 * aside
    assert len(splits.train) == 3 * (images - aside)
    assert splits.test is splits.val


@pytest.mark.parametrize(
    ("name", "given", "key"),
    [
        ("digits", {"data_dir": "x"}, "data_dir"),
        ("digits", {"per_class": 3}, "per_class"),
        ("digits", {"splits": ("", "a", "")}, "splits"),
        ("digits", {"dataset_args": {"side": 8}}, "dataset_args"),
        ("glyphs", {"data_dir": "x"}, "data_dir"),
    ],
)
def test_embedded_data_refuses_what_it_cannot_use(name: str, given: dict[str, Any], key: str) -> None:
    with pytest.raises(UserError, match=f"dataset '{name}' is embedded and takes no {key}"):
        open_dataset(name, **given)


def test_data_with_masks_and_data_with_labels_are_not_confused() -> None:
    with pytest.raises(UserError, match="dataset 'ade20k' has masks, no labels"):
        open_dataset("ade20k", "x")
    with pytest.raises(UserError, match="dataset 'digit_scenes' is embedded and takes no data_dir"):
        open_masks("digit_scenes", "x")
    assert len(open_masks("digit_scenes", short_side=64).val) == 200  # how a model looks at them, not what they are
    with pytest.raises(
        UserError, match=r"dataset 'folder' has no masks; for segmentation there is digit_scenes, ade20k"
    ):
        open_masks("folder", "x")


def test_one_split_is_opened_whole_by_its_name_or_by_what_there_is(tmp_path: Path) -> None:
    def opened(root: Path, split: str = "") -> tuple[str, int]:
        images, class_names, found = open_one_split("folder", str(root), FORM, split)
        assert class_names == tuple(sorted(COLOURS))
        return found, len(images)

    unsplit, several = write_folder(tmp_path / "a", {"": 7}), {"train": 1, "valid": 2, "testing": 3, "night": 4}
    split = write_folder(tmp_path / "b", several)
    assert opened(unsplit) == ("", 21)
    assert opened(split) == opened(split, "test") == ("testing", 9)
    assert [opened(split, name) for name in ("train", "val", "night")] == [("train", 3), ("valid", 6), ("night", 12)]
    with pytest.raises(UserError, match="has no split 'dusk'; there is night, testing, train, valid"):
        opened(split, "dusk")


def test_one_split_of_embedded_data_and_of_masks(tmp_path: Path) -> None:
    assert open_one_split("digits", None, FORM, "train")[2] == "train"
    assert len(open_one_split("digit_scenes", None, FORM)[0]) == 200
    with pytest.raises(UserError, match="dataset 'digits' has no split 'x'; there is train, val, test"):
        open_one_split("digits", None, FORM, "x")
    root = write_ade20k(tmp_path, {"validation": 2})
    images, _, split = open_one_split("ade20k", str(root), FORM)
    image, mask = images[1]
    assert (split, len(images), image.shape, mask.shape) == ("validation", 2, (3, 20, 28), (20, 28))


def test_numbered_labels_of_one_split_are_checked_against_the_models_classes(tmp_path: Path) -> None:
    files = {f"{i}.{kind}": content for i in (0, 1) for kind, content in (("png", image_bytes(i)), ("cls", b"%d" % i))}
    write_tar(tmp_path / "test-0.tar", files)
    assert open_one_split("wds/", str(tmp_path), FORM, class_names=("a", "b", "c"))[1] == ("a", "b", "c")
    with pytest.raises(UserError, match=r"label 1 of image .* is out of range: there are 1 classes"):
        open_one_split("wds/", str(tmp_path), FORM, class_names=("a",))
