from typing import Any

import pytest
import torch

from vimoe.data.epoch_order import generator
from vimoe.data.glyph_bank import FAMILIES, characters
from vimoe.data.glyphs import Views, augment_glyphs, draw_views, glyphs, open_glyphs, show
from vimoe.data.loaders import training_batches
from vimoe.data.registry import open_dataset
from vimoe.data.splits import Splits
from vimoe.errors import UserError

SMALL: dict[str, Any] = {"classes": 20, "train_images": 330, "val_images": 85, "test_images": 160}


def images_of(splits: Splits, split: str, count: int) -> torch.Tensor:
    return torch.stack([getattr(splits, split)[i][0] for i in range(count)])


def test_val_and_test_are_the_same_every_time_and_differ_from_each_other() -> None:
    first, second = glyphs(**SMALL), glyphs(**SMALL)
    for split in ("val", "test"):
        assert torch.equal(images_of(first, split, 80), images_of(second, split, 80))
    assert not torch.equal(images_of(first, "val", 80), images_of(first, "test", 80))


@pytest.mark.parametrize("split", ["train", "val", "test"])
def test_every_class_has_the_same_share_of_a_split_to_within_one_image(split: str) -> None:
    splits = glyphs(**SMALL)
    images = getattr(splits, split)
    assert len(images) == SMALL[f"{split}_images"]
    counts = torch.bincount(torch.tensor([images[i][1] for i in range(len(images))]), minlength=20)
    assert counts.max() - counts.min() <= 1


def test_a_training_batch_depends_on_seed_and_step_alone_wherever_the_epoch_is_taken_up_again() -> None:
    splits = glyphs(**SMALL)
    assert splits.augment is not None

    def step(epoch: int, batch: int, first: int) -> torch.Tensor:
        for number, (images, _) in enumerate(training_batches(splits.train, 32, 0, epoch, first), first):
            if number == batch:
                return splits.augment(images, generator("augment", 0, epoch, number))  # type: ignore[misc]
        raise AssertionError

    assert torch.equal(step(0, 5, 0), step(0, 5, 5))
    assert not torch.equal(step(0, 5, 0), step(1, 5, 0))


def test_a_batch_is_what_its_images_are_one_by_one() -> None:
    plain = images_of(glyphs(**SMALL), "train", 40)
    views = draw_views(40, 24, torch.Generator().manual_seed(3), 1.0)
    together = show(plain, views)
    for i in range(40):
        one = Views(*(drawn[i : i + 1] for drawn in views))
        assert torch.allclose(show(plain[i : i + 1], one)[0], together[i], atol=1e-5)


def test_strength_0_shows_the_drawings_and_more_strength_moves_them_further() -> None:
    plain = images_of(glyphs(**SMALL), "train", 80)
    changes = [
        (augment_glyphs(plain, torch.Generator().manual_seed(1), strength) - plain).abs().mean()
        for strength in (0.0, 0.5, 1.0, 2.0)
    ]
    assert changes[0] < 1e-4
    assert changes == sorted(changes)


def test_training_images_have_about_mean_0_and_deviation_1() -> None:
    splits = glyphs()
    assert splits.augment is not None
    seen = splits.augment(images_of(splits, "train", 4000), torch.Generator().manual_seed(0))
    assert abs(seen.mean()) < 0.05
    assert abs(seen.std() - 1) < 0.05


def test_classes_have_code_points_and_scripts() -> None:
    splits = glyphs(scripts=["Cyrillic", "Greek"], val_images=1, test_images=1)
    assert len(splits.super_classes) == len(splits.class_names) > 200
    assert set(splits.super_classes) == {"Cyrillic", "Greek"}
    assert splits.super_classes[splits.class_names.index("U+0416 Ж")] == "Cyrillic"


def test_another_family_shows_the_same_classes_where_it_has_them() -> None:
    sans, serif = glyphs(**SMALL), glyphs(**SMALL, test_family="serif")
    assert serif.class_names == sans.class_names
    assert torch.equal(images_of(serif, "val", 80), images_of(sans, "val", 80))
    shown = {serif.class_names[serif.test[i][1]] for i in range(160)}
    there = set.union(*(characters(face) for face in FAMILIES["serif"]))
    assert shown == {name for name in sans.class_names if ord(name[-1]) in there}
    assert not torch.equal(images_of(serif, "test", 10), images_of(sans, "test", 10))


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"clases": 5}, "dataset 'glyphs' has no argument 'clases'; there is side, scripts, classes"),
        ({"classes": 1}, "classes of dataset 'glyphs' must be 2 to"),
        ({"classes": 5000}, "classes of dataset 'glyphs' must be 2 to"),
        ({"classes": 2.5}, "classes of dataset 'glyphs' must be 2 to"),
        ({"scripts": ["Klingon"]}, "must be a list of Armenian, Canadian"),
        ({"scripts": "Latin"}, "must be a list of Armenian, Canadian"),
        ({"scripts": 3}, "must be a list of Armenian, Canadian"),
        ({"strength": 3}, "strength of dataset 'glyphs' must be between 0 and 2, got 3"),
        ({"strength": "much"}, "strength of dataset 'glyphs' must be between 0 and 2"),
        ({"side": 4}, "side of dataset 'glyphs' must be a whole number from 8 on, got 4"),
        ({"train_images": True}, "train_images of dataset 'glyphs' must be a whole number from 1 on"),
        ({"test_family": "gothic"}, "test_family of dataset 'glyphs' must be one of sans, serif, mono"),
        ({"scripts": ["Canadian"], "test_family": "serif"}, "the serif faces have none of these classes"),
    ],
)
def test_a_wrong_argument_is_named(wrong: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        open_glyphs(wrong)


def test_the_registry_hands_arguments_on_and_refuses_them_elsewhere() -> None:
    splits = open_dataset("glyphs", dataset_args={"side": 16, **SMALL})
    assert splits.form.input_size == splits.test[0][0].shape == (1, 16, 16)
    with pytest.raises(UserError, match="dataset 'digits' is embedded and takes no dataset_args"):
        open_dataset("digits", dataset_args={"classes": 5})
