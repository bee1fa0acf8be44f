from contextlib import suppress
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from vimoe.errors import UserError
from vimoe.training.recipe import Recipe, dump_recipe, load_recipe, make_recipe


def write(folder: Path, text: str) -> Path:
    path = folder / "recipe.yaml"
    path.write_text(text)
    return path


def test_a_dumped_recipe_reads_back_the_same(tmp_path: Path) -> None:
    recipe = Recipe(lr=3e-4, model_args={"img_size": [8, 8]}, last=2, initial_checkpoint="a/b", augment=False)
    assert load_recipe(write(tmp_path, dump_recipe(recipe))) == recipe


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("batch_siz: 3", "unknown recipe key 'batch_siz', did you mean 'batch_size'?"),
        ("zzz: 3", "unknown recipe key 'zzz'; there is task, dataset,"),
        ("batch_size: abc", "batch_size must be a whole number, got 'abc'"),
        ("batch_size: 1.5", "batch_size must be a whole number, got 1.5"),
        ("batch_size: true", "batch_size must be a whole number, got True"),
        ("batch_size: null", "batch_size must be a whole number, got None"),
        ("lr: .nan", "lr must be a number, got nan"),
        (f"lr: 1{'0' * 400}", "lr must be a number, got 1000"),
        ("amp: 1", "amp must be true or false, got 1"),
        ("aa: null", "aa must be text, got None"),
        ("model_args: [1]", "model_args must be keys and values, got [1]"),
        ("routing: patch", "routing must be one of 'image', 'token', got 'patch'"),
        ("routing: [image]", "routing must be one of 'image', 'token', got ['image']"),
        ("img_size: 0", "img_size must be between 1 and 16384 pixels, got 0"),
        ("img_size: -5", "img_size must be between 1 and 16384 pixels, got -5"),
        (f"img_size: 1{30 * '0'}", "img_size must be between 1 and 16384 pixels, got 10000"),
        ("short_side: 1000000", "short_side must be between 1 and 16384 pixels, got 1000000"),
        ("epochs: 0", "epochs must be at least 1, got 0"),
        ("smoothing: 1.5", "smoothing must be at most 1, got 1.5"),
        ("# nothing", "RECIPE must hold keys and values, got NoneType"),
        (
            "a: 2024-13-13",
            "RECIPE is not valid YAML: a timestamp is no plain value; text that looks like one needs quotes",
        ),
        ("a: [1\nb", "RECIPE is not valid YAML: while parsing a flow sequence"),
    ],
)
def test_a_wrong_file_gets_one_line(tmp_path: Path, text: str, message: str) -> None:
    path = write(tmp_path, text)
    with pytest.raises(UserError) as caught:
        load_recipe(path)
    message = message.replace("RECIPE", str(path)) if "RECIPE" in message else f"{path}: {message}"
    assert str(caught.value).startswith(message)
    assert "\n" not in str(caught.value)


def test_numbers_may_come_as_text() -> None:
    assert make_recipe({"lr": "1e-3", "epochs": "30", "min_lr": 0}) == Recipe(lr=1e-3, epochs=30, min_lr=0.0)


def test_null_and_empty_text_mean_none_where_there_may_be_none() -> None:
    assert make_recipe({"img_size": None, "data_dir": ""}) == Recipe()


def test_a_binary_file_is_no_recipe(tmp_path: Path) -> None:
    path = tmp_path / "recipe.yaml"
    path.write_bytes(b"\xff\xfe\x00\x01")
    with pytest.raises(UserError, match="cannot read "):
        load_recipe(path)


def test_more_workers_than_a_machine_can_start_are_refused() -> None:
    with pytest.raises(UserError, match="workers must be at most 1024, got 1025"):
        Recipe(workers=1025)


LEAF = (
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8) | st.dates() | st.binary(max_size=4)
)
ANYTHING = st.recursive(
    LEAF, lambda parts: st.lists(parts, max_size=3) | st.dictionaries(LEAF, parts, max_size=3), max_leaves=5
)


@given(values=st.dictionaries(st.sampled_from([field.name for field in fields(Recipe)]) | LEAF, ANYTHING, max_size=4))
def test_whatever_a_recipe_holds_it_is_read_to_the_same_again_or_refused(
    values: dict[Any, Any], tmp_path_factory: pytest.TempPathFactory
) -> None:
    folder = tmp_path_factory.getbasetemp()
    with suppress(UserError):
        recipe = load_recipe(write(folder, yaml.safe_dump(values)))
        assert repr(load_recipe(write(folder, dump_recipe(recipe)))) == repr(recipe)  # nan is not equal to itself
