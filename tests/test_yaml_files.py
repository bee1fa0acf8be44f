from pathlib import Path

import pytest

from vimoe.errors import UserError
from vimoe.study.study_file import read_study
from vimoe.training.recipe import load_recipe
from vimoe.yaml_files import MAX_BYTES, MAX_DEPTH, MAX_NODES, parse_yaml, read_yaml

BOMB = "a0: &a0 [x, x, x, x, x, x, x, x, x]\n" + "".join(
    f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 9)}]\n" for i in range(1, 10)
)
HOSTILE = {
    "deep": "a: " + "[" * 100_000,
    "deep and closed": "a: " + "[" * 5_000 + "]" * 5_000,
    "deep keys": "{a: " * 5_000 + "}" * 5_000,
    "bomb": BOMB,
    "merged bomb": "a0: &a0 {x: 1}\n"
    + "".join(f"a{i}: &a{i} {{<<: [{', '.join([f'*a{i - 1}'] * 9)}]}}\n" for i in range(1, 10)),
    "itself": "a: &a [*a]",
    "long": "a: [" + "1," * (MAX_NODES + 1) + "]",
    "set": "model_args: !!set {a, b}",
    "set inside": "model_args: {a: !!set {b}}",
    "binary": "model: !!binary aGVsbG8=",
    "date": "data_dir: 2020-01-01",
    "no date": "data_dir: 2020-13-41",
    "pairs": "model_args: !!pairs [a: 1]",
    "ordered": "model_args: !!omap [a: 1]",
    "digits": "seed: " + "1" * 5_000,
    "python": "a: !!python/object/apply:os.system [exit]",
}


@pytest.mark.parametrize("text", HOSTILE.values(), ids=HOSTILE.keys())
def test_a_file_that_would_exhaust_the_machine_is_refused_in_one_line_as_recipe_and_as_study(
    tmp_path: Path, text: str
) -> None:
    path = tmp_path / "a.yaml"
    path.write_text(text)
    for read in (load_recipe, lambda path: read_study(path, tmp_path / "study")):
        with pytest.raises(UserError, match=r"a\.yaml is not valid YAML") as caught:
            read(path)
        assert "\n" not in str(caught.value)


def test_what_people_write_is_read() -> None:
    assert parse_yaml("a: &x {b: [1, 2]}\nc: *x\nd: {<<: *x, e: 1.5}") == {
        "a": {"b": [1, 2]},
        "c": {"b": [1, 2]},
        "d": {"b": [1, 2], "e": 1.5},
    }
    assert parse_yaml("[" * MAX_DEPTH + "]" * MAX_DEPTH) is not None
    assert len(parse_yaml("[" + "1," * (MAX_NODES - 1) + "]")) == MAX_NODES - 1


def test_a_file_that_is_too_large_or_no_file_is_not_read(tmp_path: Path) -> None:
    path = tmp_path / "a.yaml"
    path.write_text("#" * (MAX_BYTES + 1))
    with pytest.raises(UserError, match=f"{path} is larger than 1 MB"):
        read_yaml(path)
    with pytest.raises(UserError, match="cannot read"):
        read_yaml(tmp_path)
