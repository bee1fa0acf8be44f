from dataclasses import replace

import pytest
import torch

from vimoe.data import scenes
from vimoe.data.digits import digits
from vimoe.data.epoch_order import generator
from vimoe.data.images import InMemory
from vimoe.data.loaders import batches, training_batches
from vimoe.data.scenes import SIDE, change_colours, compose, digit_scenes
from vimoe.data.splits import Splits


@pytest.fixture(scope="module")
def splits() -> Splits:
    return digit_scenes()


def parts(splits: Splits) -> dict[str, InMemory]:
    found = {"train": splits.train, "val": splits.val, "test": splits.test}
    assert all(isinstance(part, InMemory) for part in found.values())
    return found  # type: ignore[return-value]


def test_sizes_classes_and_shapes(splits: Splits) -> None:
    assert [len(part) for part in parts(splits).values()] == [1500, 200, 200]
    assert splits.class_names == ("ground", *(str(digit) for digit in range(10)))
    image, mask = splits.val[7]
    assert image.shape == splits.form.input_size == (3, SIDE, SIDE)
    assert (image.dtype, mask.dtype) == (torch.float32, torch.int64)  # type: ignore[attr-defined]
    assert mask.shape == (SIDE, SIDE)  # type: ignore[attr-defined]


def test_the_scenes_are_the_same_every_time_and_no_two_are_alike(splits: Splits) -> None:
    again = parts(digit_scenes())
    for name, part in parts(splits).items():
        assert torch.equal(part.images, again[name].images)
        assert torch.equal(part.targets, again[name].targets)
    every = torch.cat([part.images[:, 0, 0, :4] for part in parts(splits).values()])
    assert len(every.unique(dim=0)) == len(every)


def test_training_pixels_have_mean_0_and_deviation_1_and_the_scene_can_be_shown_again(splits: Splits) -> None:
    images = parts(splits)["train"].images
    torch.testing.assert_close(images.mean((0, 2, 3)), torch.zeros(3), atol=1e-4, rtol=0)
    torch.testing.assert_close(images.std((0, 2, 3)), torch.ones(3), atol=1e-4, rtol=0)
    for part in parts(splits).values():
        shown = (
            part.images * torch.tensor(splits.form.std)[:, None, None] + torch.tensor(splits.form.mean)[:, None, None]
        )
        assert shown.min() > -1e-5
        assert shown.max() < 1 + 1e-5


def test_every_class_occurs_about_alike_in_every_split_and_most_pixels_are_ground(splits: Splits) -> None:
    for part in parts(splits).values():
        share = torch.bincount(part.targets.flatten(), minlength=11) / part.targets.numel()
        assert len(share) == 11
        assert 0.6 < share[0] < 0.8
        assert share[1:].min() > 0.015
        assert share[1:].max() < 0.05


def corner_areas(masks: torch.Tensor) -> torch.Tensor:
    """Pixels of digits in each corner, `[N, 4]`."""
    half = SIDE // 2
    return (masks > 0).unfold(1, half, half).unfold(2, half, half).sum((3, 4)).flatten(1)


def test_a_scene_has_two_to_four_digits(splits: Splits) -> None:
    counts = (corner_areas(parts(splits)["train"].targets) > 30).sum(1)
    assert counts.unique().tolist() == [2, 3, 4]


def test_digits_vary_in_size() -> None:
    _, masks = compose(torch.ones(1, 1, 8, 8), torch.tensor([0]), 50, generator("test"))
    area = corner_areas(masks)[corner_areas(masks) > 60].float()
    assert area.max() > 1.3 * area.min()


def test_each_split_is_composed_of_its_own_scans_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    source = digits()
    only = {
        name: InMemory(part.images, torch.full_like(part.targets, digit))
        for name, part, digit in (("train", source.train, 1), ("val", source.val, 2), ("test", source.test, 3))
    }
    monkeypatch.setattr(scenes, "digits", lambda: replace(source, **only))
    for (_, part), digit in zip(parts(digit_scenes()).items(), (1, 2, 3), strict=True):
        assert part.targets.unique().tolist() == [0, digit + 1]


def test_a_mask_lies_on_its_digit() -> None:
    # A scan that is a full square becomes a square of a bright colour in a dark rim.
    scan = torch.ones(1, 1, 8, 8)
    images, masks = compose(scan, torch.tensor([4]), 50, generator("test"))
    light = images.mean(1)
    on = masks == 5
    area = on.sum((1, 2)).float()
    assert (area > 2 * 13**2 * 0.9).all()
    assert light[on].mean() > light[~on].mean() + 0.3
    middles = [(8, 8), (8, 24), (24, 8), (24, 24)]
    for image, mask in zip(light, masks, strict=True):
        for row, column in middles:
            assert bool(mask[row, column]) == (image[row - 2 : row + 2, column - 2 : column + 2].min() > 0.5)


def test_masks_and_images_come_in_batches_to_learn_from_and_to_evaluate(splits: Splits) -> None:
    images, masks = next(iter(training_batches(splits.train, 8, 0, 0)))
    assert images.shape == (8, 3, SIDE, SIDE)
    assert masks.shape == (8, SIDE, SIDE)
    assert torch.equal(torch.cat([masks for _, masks in batches(splits.test, 64)]), parts(splits)["test"].targets)


def test_changed_colours_are_a_channel_of_the_same_image_brighter_or_darker() -> None:
    images = torch.randn(40, 3, 8, 8)
    changed = change_colours(images, generator("test"))
    source, result = images.flatten(2), changed.flatten(2)
    correlation = (
        torch.einsum(
            "bip,bjp->bij", *((x - x.mean(2, keepdim=True)) / x.std(2, keepdim=True) for x in (source, result))
        )
        / 63
    )
    matched = correlation > 0.999
    assert (matched.sum(1) == 1).all()
    assert (matched.sum(2) == 1).all()
    assert len({tuple(order) for order in matched.int().argmax(1).tolist()}) == 6
    gain = result.std(2) / source.std(2).gather(1, matched.int().argmax(1))
    torch.testing.assert_close(gain, gain[:, :1].expand_as(gain))
    assert 0.7 <= gain.min() < 0.8
    assert 1.2 < gain.max() <= 1.3


def test_the_same_generator_gives_the_same_colours() -> None:
    images = torch.randn(4, 3, 8, 8)
    first = change_colours(images, generator("augment", 0, 7))
    assert torch.equal(first, change_colours(images, generator("augment", 0, 7)))
    assert not torch.equal(first, change_colours(images, generator("augment", 0, 8)))
