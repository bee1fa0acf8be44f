from functools import partial
from pathlib import Path

import pytest
import torch
from torch import Tensor

from tests.data.pictures import write_folder
from vimoe.data.decode import BrokenPictureError
from vimoe.data.folder import PictureForm, Variation
from vimoe.data.memory import hold_in_memory, vary_batch
from vimoe.data.registry import open_dataset
from vimoe.data.splits import Splits
from vimoe.errors import UserError

FORM = PictureForm((3, 8, 8), (0.5, 0.4, 0.3), (0.5, 0.5, 0.5), "bicubic", 1.0)
PLAIN = Variation(scale=1.0, hflip=0.0, color_jitter=0.0)


def opened(root: Path) -> Splits:
    return open_dataset("folder", str(root), FORM)


def vary(pictures: Tensor, variation: Variation, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return vary_batch(pictures, generator, variation=variation, mean=torch.zeros(3), std=torch.ones(3))


def test_decoded_pictures_are_those_that_evaluation_reads_within_half_a_grey_level(tmp_path: Path) -> None:
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


def test_a_broken_picture_stays_broken(tmp_path: Path) -> None:
    root = write_folder(tmp_path, {"train": 2, "val": 1})
    (root / "train" / "grass" / "000.jpg").write_text("no picture")
    held = hold_in_memory(opened(root), PLAIN)
    broken = next(i for i in range(len(held.train)) if i in held.train.broken)  # type: ignore[attr-defined]
    with pytest.raises(BrokenPictureError, match="is no picture that can be read"):
        held.train[broken]


def test_a_policy_that_works_picture_by_picture_is_refused(tmp_path: Path) -> None:
    splits = opened(write_folder(tmp_path, {"train": 2, "val": 1}))
    with pytest.raises(UserError, match="leave aa empty"):
        hold_in_memory(splits, Variation(aa="rand-m9"))
    with pytest.raises(UserError, match="in_memory is for picture files"):
        hold_in_memory(open_dataset("digits"), None)


def test_no_variation_changes_nothing() -> None:
    pictures = torch.rand(4, 3, 6, 6)
    assert torch.equal(vary(pictures, PLAIN), pictures)


def test_a_mirrored_picture_is_the_picture_mirrored() -> None:
    pictures = torch.rand(4, 3, 6, 6)
    assert torch.allclose(vary(pictures, PLAIN._replace(hflip=1.0)), pictures.flip(-1), atol=1e-5)
    halved = vary(pictures.repeat(50, 1, 1, 1), PLAIN._replace(hflip=0.5))
    mirrored = (halved - pictures.flip(-1).repeat(50, 1, 1, 1)).abs().amax((1, 2, 3)) < 1e-5
    assert 60 < int(mirrored.sum()) < 140


def test_a_crop_shows_a_part_of_at_least_its_share() -> None:
    ramp = torch.linspace(0, 1, 64).expand(200, 3, 64, 64)
    seen = vary(ramp, PLAIN._replace(scale=0.25))
    width = seen[:, 0, 0, -1] - seen[:, 0, 0, 0]  # of the picture, as a share of its width
    assert width.min() > 0.4  # sqrt(0.25 * 3/4) = 0.43
    assert width.max() <= 1.01
    assert width.std() > 0.05


def test_light_stays_between_black_and_white_and_erased_rectangles_are_noise() -> None:
    pictures = torch.rand(64, 3, 16, 16)
    lit = vary(pictures, PLAIN._replace(color_jitter=0.8))
    assert lit.min() >= 0
    assert lit.max() <= 1
    changed = (vary(pictures, PLAIN._replace(reprob=1.0)) != pictures).any(1).float().mean((1, 2))
    assert changed.min() > 0
    assert changed.max() < 0.6
    untouched = (vary(pictures, PLAIN._replace(reprob=0.25)) == pictures).all(-1).all(-1).all(-1)
    assert 30 < int(untouched.sum()) < 62


def test_what_is_drawn_depends_on_the_generator_alone() -> None:
    pictures, variation = torch.rand(8, 3, 8, 8), Variation(reprob=0.5)
    twice = partial(vary, pictures, variation)
    assert torch.equal(twice(1), twice(1))
    assert not torch.equal(twice(1), twice(2))
