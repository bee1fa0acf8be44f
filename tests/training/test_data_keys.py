from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest

from vimoe.errors import UserError
from vimoe.training.data_keys import check_data_keys
from vimoe.training.fit import train
from vimoe.training.recipe import Recipe, load_recipe


@pytest.mark.parametrize(
    ("given", "dataset"),
    [
        ({}, "digits"),
        ({"data_dir": "images"}, "folder"),
        ({"task": "segmentation"}, "digit_scenes"),
        ({"task": "segmentation", "data_dir": "images"}, "ade20k"),
        ({"data_dir": "images", "dataset": "tar"}, "tar"),
    ],
)
def test_a_folder_of_images_is_what_is_trained_on(given: dict[str, Any], dataset: str) -> None:
    assert Recipe(**given).dataset == dataset


@pytest.mark.parametrize(
    ("dataset", "key", "value"),
    [
        ("digits", "data_dir", "images"),
        ("digits", "img_size", 32),
        ("digits", "in_memory", True),
        ("digits", "hflip", 0.0),
        ("digits", "dataset_args", {"classes": 3}),
        ("glyphs", "per_class", 3),
        ("glyphs", "reprob", 0.25),
        ("digit_scenes", "color_jitter", 0.2),
        ("digit_scenes", "reduce_zero_label", False),
        ("ade20k", "aa", "rand-m9"),
        ("ade20k", "val_share", 0.2),
        ("folder", "short_side", 32),
        ("folder", "dataset_args", {"classes": 3}),
        ("hfds/mnist", "reduce_zero_label", False),
    ],
)
def test_a_key_that_the_data_set_ignores_is_refused(tmp_path: Path, dataset: str, key: str, value: Any) -> None:
    recipe = Recipe(dataset=dataset, output=str(tmp_path / "run"), **{key: value})
    with pytest.raises(UserError, match=f"dataset '{dataset}' does not use {key} ") as caught:
        train(recipe)
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "run").exists()


def test_what_a_data_set_uses_is_taken() -> None:
    check_data_keys(Recipe(dataset="glyphs", dataset_args={"classes": 3}, mixup=0.2, augment=False, workers=0))
    check_data_keys(Recipe(data_dir="x", img_size=9, in_memory=True, aa="rand-m9", val_share=0.2, per_class=3))
    check_data_keys(Recipe(dataset="ade20k", data_dir="x", short_side=9, reduce_zero_label=False, hflip=0.0))


@pytest.mark.parametrize("path", sorted(Path("configs").glob("*.yaml")), ids=lambda path: path.stem)
def test_shipped_recipes_say_nothing_that_is_ignored(path: Path) -> None:
    check_data_keys(load_recipe(path))


def test_every_key_of_the_table_is_a_recipe_key() -> None:
    from vimoe.training.data_keys import _DATA_KEYS

    assert set(_DATA_KEYS) <= {field.name for field in fields(Recipe)}
