from pathlib import Path

import pytest

from tests.study.support import TINY
from vimoe.errors import UserError
from vimoe.study.study_file import Study, read_study


def read(folder: Path, text: str) -> Study:
    (folder / "study.yaml").write_text(text)
    return read_study(folder / "study.yaml", folder / "runs")


def test_a_single_value_and_a_list_of_one_are_the_same_factor(tmp_path: Path) -> None:
    study = read(tmp_path, "variants: [{name: a, last: 2, num_experts: [2]}]")
    assert study.points == (("a", {"last": 2, "num_experts": 2}),)
    assert study.seeds == (0,)
    assert study.start is None


def test_the_base_may_be_a_recipe_file_beside_the_study(tmp_path: Path) -> None:
    (tmp_path / "recipe.yaml").write_text("epochs: 7\n")
    study = read(tmp_path, "base: recipe.yaml\nvariants: [{name: a, last: 2}]")
    assert study.base == {"epochs": 7}


def test_what_the_command_line_says_wins_over_the_base(tmp_path: Path) -> None:
    (tmp_path / "study.yaml").write_text(TINY)
    study = read_study(tmp_path / "study.yaml", tmp_path, device="cuda", data_dir="there")
    assert study.base["device"] == "cuda"
    assert study.base["data_dir"] == "there"


VARIANTS = "variants: [{name: a, last: 2}]"


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("variants: [{name: a, last: 2}", "is not valid YAML"),
        ("[1, 2]", "must hold keys and values, got list"),
        ("variant: []", "unknown key 'variant' in .*, did you mean 'variants'?"),
        ("base: {seed: 3}\n" + VARIANTS, "seed is the study's to decide, list it in seeds"),
        ("base: missing.yaml\n" + VARIANTS, "cannot read .*missing.yaml: No such file"),
        ("start: [1]\n" + VARIANTS, "start of .* must hold recipe keys and values"),
        ("seeds: 3\n" + VARIANTS, "seeds of .* must be a list of whole numbers from 0, got 3"),
        ("seeds: [0, -1]\n" + VARIANTS, "seeds of .* must be a list of whole numbers from 0"),
        ("seeds: [1, 1]\n" + VARIANTS, "name one seed twice"),
        ("seeds: [0]", "variants of .* must be a list of grids"),
        ("variants: [{last: 2}]", "needs a name of its own"),
        ("variants: [{name: a, last: 2}, {name: a, last: 1}]", "needs a name of its own, without semicolons, got 'a'"),
        ("variants: [{name: a, model_args: {a: 2020-02-02}}]", "a timestamp is no plain value"),
        ("variants: [{name: a, model_args: {a: !!set {b}}}]", "a set is no plain value"),
        ("variants: [{name: a, model_args: {a: !!binary aGk=}}]", "a binary is no plain value"),
        ("variants: [{name: a, model_args: &x {a: *x}}]", "is not valid YAML: more than 20000 values"),
        ("base: {model_args: {1: 2, b: 3}}\n" + VARIANTS, "base of .*: model_args must be made of .*"),
        ("variants: [{name: a, last: []}]", "last has no value"),
        ("variants: [{name: a, device: cpu}]", "device is the study's to decide"),
        ("start: {}\nvariants: [{name: a, initial_checkpoint: x}]", "has both start and initial_checkpoint"),
    ],
)
def test_a_mistake_in_the_file_is_one_line(text: str, line: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=line) as caught:
        read(tmp_path, text)
    assert "\n" not in str(caught.value)


def test_a_missing_file_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"cannot read .*none.yaml: No such file"):
        read_study(tmp_path / "none.yaml", tmp_path)
