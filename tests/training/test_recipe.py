from dataclasses import replace
from pathlib import Path

import pytest

from vimoe.errors import UserError
from vimoe.training.recipe import Recipe, dump_recipe, load_recipe, parse_recipe


def write(folder: Path, text: str) -> Path:
    path = folder / "recipe.yaml"
    path.write_text(text)
    return path


def test_a_dumped_recipe_reads_back_the_same(tmp_path: Path) -> None:
    recipe = Recipe(lr=3e-4, model_args={"img_size": [8, 8]}, last=2, initial_checkpoint="a/b", augment=False)
    assert load_recipe(write(tmp_path, dump_recipe(recipe))) == recipe


def test_flags_are_kebab_case_and_win_over_the_file_before_them(tmp_path: Path) -> None:
    path = write(tmp_path, "batch_size: 3\nlr: 1e-3\nmodel_args: {img_size: 9}\n")
    recipe = parse_recipe(["-c", str(path), "--batch-size", "7", "--augment", "false"])
    assert recipe == replace(Recipe(), batch_size=7, lr=1e-3, model_args={"img_size": 9}, augment=False)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("batch_siz: 3", "unknown recipe key 'batch_siz', did you mean 'batch_size'?"),
        ("zzz: 3", "unknown recipe key 'zzz'; there is task, dataset,"),
        ("batch_size: abc", "batch_size: expected int, got value: abc"),
        ("routing: patch", "routing: expected Literal['image', 'token'], got value: patch"),
        ("epochs: 0", "epochs must be at least 1, got 0"),
        ("smoothing: 1.5", "smoothing must be at most 1, got 1.5"),
        ("# nothing", "Unexpected config: # nothing"),
        ("a: [1\nb", "Problems parsing config: while parsing a flow sequence"),
    ],
)
def test_a_wrong_file_gets_one_line(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(UserError) as caught:
        load_recipe(write(tmp_path, text))
    assert str(caught.value).startswith(message)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--batch-siz", "3"], "unknown flag 'batch-siz', did you mean 'batch-size'?"),
        (["--lr", "-1"], "lr must be at least 0, got -1.0"),
        (["--epochs"], "argument --epochs: expected one argument"),
        (["-c", "/does/not/exist.yaml"], "config: File does not exist: '/does/not/exist.yaml'"),
    ],
)
def test_a_wrong_flag_gets_one_line(flags: list[str], message: str) -> None:
    with pytest.raises(UserError) as caught:
        parse_recipe(flags)
    assert str(caught.value) == message


def test_a_binary_file_is_no_recipe(tmp_path: Path) -> None:
    path = tmp_path / "recipe.yaml"
    path.write_bytes(b"\xff\xfe\x00\x01")
    with pytest.raises(UserError, match="cannot read the recipe"):
        load_recipe(path)
