from collections.abc import Callable

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from torch import Tensor

from vimoe.data.mask_augmentation import (
    JointAugmentation,
    colour_change,
    evaluation_pair,
    normalised,
    random_window,
    training_pair,
)
from vimoe.data.masks import IGNORE
from vimoe.data.transforms import ImageForm, evaluation_transform

FORM = ImageForm((3, 16, 24), (0.0, 0.0, 0.0), (1.0, 1.0, 1.0), "nearest", 1.0)
PLAIN = JointAugmentation(hflip=0, color_jitter=0)


def chequered(height: int, width: int, side: int = 4, classes: int = 8) -> tuple[Image.Image, Tensor]:
    """Squares of random classes, and an image whose red is 30 times the class."""
    coarse = torch.randint(0, classes, (-(-height // side), -(-width // side)))
    mask = coarse.repeat_interleave(side, 0).repeat_interleave(side, 1)[:height, :width]
    image = np.zeros((height, width, 3), dtype=np.uint8)
    image[..., 0] = 30 * mask.numpy()
    return Image.fromarray(image), mask


def classes_seen(image: Tensor) -> Tensor:
    return (image[0] * 255 / 30).round().long()


@given(st.integers(1, 60), st.integers(1, 60), st.integers(0, 1000))
@settings(deadline=None, max_examples=60)
def test_image_and_mask_are_cut_resized_and_mirrored_alike_and_padded_with_ignore(
    height: int, width: int, seed: int
) -> None:
    torch.manual_seed(seed)
    image, mask = chequered(height, width)
    augmented, labels = training_pair(image, mask, form=FORM, augmentation=JointAugmentation(0.5, 0))
    assert augmented.shape == FORM.input_size
    assert augmented.dtype == torch.float32
    assert labels.shape == FORM.input_size[1:]
    assert labels.dtype == torch.int64
    assert type(labels) is Tensor
    there = labels != IGNORE
    rows, columns = int(there.any(1).sum()), int(there.any(0).sum())
    assert there[:rows, :columns].all()
    assert min(rows, columns) >= 1
    # Where the middle of a pixel falls on a border, Pillow and torch may round to either side of it.
    assert (classes_seen(augmented) == labels)[there].float().mean() > 0.8
    assert (augmented[:, ~there] == 0).all()


def test_the_size_varies_between_half_and_twice_and_the_ratio_is_kept() -> None:
    # A ramp whose red is the column: the step from one pixel to the next is 1 over the scale.
    columns = np.broadcast_to(np.arange(200, dtype=np.uint8), (200, 200))
    image = Image.fromarray(np.stack([columns, columns.T, columns], -1))
    mask = torch.arange(200).repeat(200, 1) % 2
    form = FORM._replace(input_size=(3, 32, 32), interpolation="bilinear")
    steps = []
    for seed in range(80):
        torch.manual_seed(seed)
        augmented, _ = training_pair(image, mask, form=form, augmentation=PLAIN)
        across = (augmented[0, 0, 30] - augmented[0, 0, 1]).item() * 255 / 29
        down = (augmented[1, 30, 0] - augmented[1, 1, 0]).item() * 255 / 29
        assert across == pytest.approx(down, rel=0.1)
        steps.append(across)
    assert 0.48 < min(steps) < 0.6
    assert 1.7 < max(steps) < 2.1


def test_the_shorter_side_can_be_brought_to_a_size_first_but_a_strip_is_not_blown_up() -> None:
    form = FORM._replace(input_size=(3, 64, 64))
    image, mask = chequered(20, 30, classes=2)
    _, labels = training_pair(image, mask, form=form, augmentation=None, short_side=40)
    assert int((labels != IGNORE).sum()) == 40 * 60
    image, mask = chequered(2, 100, classes=2)
    _, labels = training_pair(image, mask, form=form, augmentation=None, short_side=10)
    assert int((labels != IGNORE).sum()) == 1 * 40


def test_without_augmentation_it_is_the_middle_and_nothing_is_drawn() -> None:
    image, mask = chequered(40, 50)
    before = torch.get_rng_state()
    middle, labels = training_pair(image, mask, form=FORM, augmentation=None)
    assert torch.equal(labels, mask[12:28, 13:37])
    assert torch.equal(classes_seen(middle), labels)
    assert torch.equal(torch.get_rng_state(), before)


def test_a_crop_has_less_than_three_quarters_of_one_class_where_ten_tries_find_one() -> None:
    mask = torch.zeros(100, 100, dtype=torch.int64)
    mask[:, 50:] = 1

    def largest_share(scale: float) -> float:
        window = random_window(mask, scale, (20, 20))
        part = mask[window.top : window.top + window.height, window.left : window.left + window.width]
        return part.float().mean().item()

    shares = [largest_share(1.0) for _ in range(300)]
    mixed = np.mean([0.25 < share < 0.75 for share in shares])
    # One try finds such a crop with probability 9/81 to 11/81: ten tries with about 0.73.
    assert 0.6 < mixed < 0.85
    mask[:] = 2
    assert largest_share(1.0) == 2


def test_unlabelled_pixels_do_not_count_in_the_share_of_a_class() -> None:
    mask = torch.full((40, 40), IGNORE)
    mask[::2, ::4], mask[::2, 2::4] = 0, 1
    before = torch.get_rng_state()
    random_window(mask, 1.0, (20, 20))
    after = torch.get_rng_state()
    torch.set_rng_state(before)
    torch.rand(2)
    assert torch.equal(torch.get_rng_state(), after)


def test_a_large_image_is_cut_before_it_is_resized(monkeypatch: pytest.MonkeyPatch) -> None:
    resized = []
    whole: Callable[..., Image.Image] = Image.Image.resize
    monkeypatch.setattr(Image.Image, "resize", lambda self, *a, **k: resized.append(self.size) or whole(self, *a, **k))
    image, mask = chequered(600, 800, side=8)
    training_pair(image, mask, form=FORM, augmentation=PLAIN)
    assert resized
    assert max(max(size) for size in resized) <= 2 * 24


def test_the_same_state_of_torchs_generator_gives_the_same_pair() -> None:
    image, mask = chequered(60, 60)

    def pair(seed: int) -> tuple[Tensor, Tensor]:
        torch.manual_seed(seed)
        return training_pair(image, mask, form=FORM, augmentation=JointAugmentation())

    first, again, other = pair(3), pair(3), pair(4)
    assert torch.equal(first[0], again[0])
    assert torch.equal(first[1], again[1])
    assert not torch.equal(first[0], other[0])


def test_colours_change_in_brightness_contrast_saturation_and_hue_and_not_at_strength_0() -> None:
    image = Image.fromarray(np.random.default_rng(0).integers(60, 200, (8, 8, 3), dtype=np.uint8))
    same = np.asarray(image)
    assert all((np.asarray(colour_change(0)(image)) == same).all() for _ in range(20))
    unchanged = np.mean([(np.asarray(colour_change(0.5)(image)) == same).all() for _ in range(200)])
    assert 0 < unchanged < 0.2  # all four coins fall so in 1 of 16 images


def test_evaluation_sees_the_whole_image_at_its_own_size_normalised_as_for_classification() -> None:
    image = Image.fromarray(np.random.default_rng(0).integers(0, 255, (9, 13, 3), dtype=np.uint8))
    form = ImageForm((3, 9, 13), (0.4, 0.5, 0.6), (0.2, 0.3, 0.4), "bicubic", 1.0)
    mask = torch.zeros(9, 13, dtype=torch.int64)
    seen, labels = evaluation_pair(image, mask, form=form._replace(input_size=(3, 32, 32)))
    torch.testing.assert_close(seen, evaluation_transform(form)(image, 0)[0])
    assert torch.equal(labels, mask)


def test_a_model_of_one_channel_sees_brightness() -> None:
    form = ImageForm((1, 16, 16), (0.5,), (0.5,), "bicubic", 1.0)
    image, mask = chequered(20, 20)
    assert normalised(image, form).shape == (1, 20, 20)
    assert training_pair(image, mask, form=form, augmentation=JointAugmentation())[0].shape == (1, 16, 16)
