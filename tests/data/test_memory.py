from functools import partial
from pathlib import Path

import pytest
import torch
from torch import Tensor

from tests.data.image_files import write_folder
from vimoe.data.decode import BrokenImageError
from vimoe.data.memory import augment_batch, hold_in_memory
from vimoe.data.registry import open_dataset
from vimoe.data.splits import Splits
from vimoe.data.transforms import Augmentation, ImageForm
from vimoe.errors import UserError

FORM = ImageForm((3, 8, 8), (0.5, 0.4, 0.3), (0.5, 0.5, 0.5), "bicubic", 1.0)
PLAIN = Augmentation(scale=1.0, hflip=0.0, color_jitter=0.0)


def opened(root: Path) -> Splits:
    return open_dataset("folder", str(root), FORM)


def augment(images: Tensor, augmentation: Augmentation, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return augment_batch(images, generator, augmentation=augmentation, mean=torch.zeros(3), std=torch.ones(3))


def test_decoded_images_are_those_that_evaluation_reads_within_half_a_grey_level(tmp_path: Path) -> None:
    splits = opened(write_folder(tmp_path, {"train": 3, "val": 2}))
    held = hold_in_memory(splits, None)
    for name in ("train", "val", "test"):
        read, decoded = getattr(splits, name), getattr(held, name)
        assert len(read) == len(decoded)
        for i in range(len(read)):
            assert torch.allclose(read[i][0], decoded[i][0], atol=1e-5)
            assert read[i][1] == decoded[i][1]
    assert held.augment is None
    assert not held.train.from_files


def test_a_broken_image_stays_broken(tmp_path: Path) -> None:
    root = write_folder(tmp_path, {"train": 2, "val": 1})
    (root / "train" / "grass" / "000.jpg").write_text("no image")
    held = hold_in_memory(opened(root), PLAIN)
    broken = next(i for i in range(len(held.train)) if i in held.train.broken)  # type: ignore[attr-defined]
    with pytest.raises(BrokenImageError, match="is no image that can be read"):
        held.train[broken]


def test_a_policy_that_works_image_by_image_is_refused(tmp_path: Path) -> None:
    splits = opened(write_folder(tmp_path, {"train": 2, "val": 1}))
    with pytest.raises(UserError, match="leave aa empty"):
        hold_in_memory(splits, Augmentation(aa="rand-m9"))
    with pytest.raises(UserError, match="in_memory is for image files"):
        hold_in_memory(open_dataset("digits"), None)


def test_no_augmentation_changes_nothing() -> None:
    images = torch.rand(4, 3, 6, 6)
    assert torch.equal(augment(images, PLAIN), images)


def test_a_mirrored_image_is_the_image_mirrored() -> None:
    images = torch.rand(4, 3, 6, 6)
    assert torch.allclose(augment(images, PLAIN._replace(hflip=1.0)), images.flip(-1), atol=1e-5)
    halved = augment(images.repeat(50, 1, 1, 1), PLAIN._replace(hflip=0.5))
    mirrored = (halved - images.flip(-1).repeat(50, 1, 1, 1)).abs().amax((1, 2, 3)) < 1e-5
    assert 60 < int(mirrored.sum()) < 140


def test_a_crop_shows_a_part_of_at_least_its_share() -> None:
    ramp = torch.linspace(0, 1, 64).expand(200, 3, 64, 64)
    seen = augment(ramp, PLAIN._replace(scale=0.25))
    width = seen[:, 0, 0, -1] - seen[:, 0, 0, 0]  # of the image, as a share of its width
    assert width.min() > 0.4  # sqrt(0.25 * 3/4) = 0.43
    assert width.max() <= 1.01
    assert width.std() > 0.05


def test_light_stays_between_black_and_white_and_erased_rectangles_are_noise() -> None:
    images = torch.rand(64, 3, 16, 16)
    lit = augment(images, PLAIN._replace(color_jitter=0.8))
    assert lit.min() >= 0
    assert lit.max() <= 1
    changed = (augment(images, PLAIN._replace(reprob=1.0)) != images).any(1).float().mean((1, 2))
    assert changed.min() > 0
    assert changed.max() < 0.6
    untouched = (augment(images, PLAIN._replace(reprob=0.25)) == images).all(-1).all(-1).all(-1)
    assert 30 < int(untouched.sum()) < 62


def test_what_is_drawn_depends_on_the_generator_alone() -> None:
    images, augmentation = torch.rand(8, 3, 8, 8), Augmentation(reprob=0.5)
    twice = partial(augment, images, augmentation)
    assert torch.equal(twice(1), twice(1))
    assert not torch.equal(twice(1), twice(2))
