from pathlib import Path

import pytest

from vimoe.errors import UserError
from vimoe.training.broken_images import BrokenImages
from vimoe.training.run_folder import RunFolder


def test_a_broken_image_is_listed_once_and_training_bears_no_more_than_its_share(tmp_path: Path) -> None:
    broken = BrokenImages(RunFolder(tmp_path), images=20, most=0.1)
    for line in ("a.jpg is no image", "b.jpg cannot be read", "a.jpg is no image"):
        broken.add("train", line)
    assert broken.gathered()["train"] == ["a.jpg is no image", "b.jpg cannot be read"]
    with pytest.raises(UserError, match=r"3 of 20 training images are broken, more than max_broken 0\.1 allows: c"):
        broken.add("train", "c.jpg is no image")


def test_broken_validation_images_are_listed_beside_those_of_training_and_stop_nothing(tmp_path: Path) -> None:
    run = RunFolder(tmp_path)
    broken = BrokenImages(run, images=1, most=0.0)
    for name in "abc":
        broken.add("val", f"{name}.jpg is no image")
    assert broken.gathered() == {"train": [], "val": [f"{name}.jpg is no image" for name in "abc"]}
    assert run.path.joinpath("skipped.csv").read_text().count("is no image") == 3
    again = BrokenImages(run, images=1, most=0.0)
    again.restore(broken.gathered())
    assert again.gathered() == broken.gathered()
