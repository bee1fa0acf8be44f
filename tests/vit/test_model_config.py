"""config.json, damaged in every way that JSON allows: it is read, or refused in one line."""

import copy
import json
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import vimoe
from tests.vit.families import make, refused
from vimoe import UserError
from vimoe.data.transforms import image_form
from vimoe.vit.model_config import read_config


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path: Path = tmp_path_factory.mktemp("model")
    vimoe.save(vimoe.upcycle(make(), last=1, num_experts=2), path, extra={"label_names": list("abcde")})
    return path


@pytest.fixture(scope="module")
def whole(folder: Path) -> dict[str, Any]:
    """The configuration as it was written."""
    entries: dict[str, Any] = json.loads((folder / "config.json").read_text())
    return entries


@pytest.fixture(scope="module")
def damaged(folder: Path, whole: dict[str, Any]) -> Any:
    """Write another configuration into the folder."""
    return lambda entries: (folder / "config.json").write_text(json.dumps(entries))


CFG: list[tuple[str, Any, str]] = [
    ("input_size", 224, "channels, height and width, each 1 to 16384"),
    ("input_size", [3, 224], "channels, height and width, each 1 to 16384"),
    ("input_size", [3, 224, 10**9], "channels, height and width, each 1 to 16384"),
    ("input_size", ["3", 224, 224], "channels, height and width, each 1 to 16384"),
    ("mean", 0.5, "a list of numbers"),
    ("mean", [0.5, "x", 0.5], "a list of numbers"),
    ("mean", [0.5, float("nan"), 0.5], "a list of numbers"),
    ("std", [0.5, 0.0, 0.5], "a list of numbers above 0"),
    ("std", {}, "a list of numbers above 0"),
    ("crop_pct", 0, "a number from 0.1 to 10"),
    ("crop_pct", "0.9", "a number from 0.1 to 10"),
    ("crop_pct", 1e300, "a number from 0.1 to 10"),
    ("interpolation", "magic", "a filter of Pillow's"),
    ("interpolation", ["bicubic"], "a filter of Pillow's"),
    ("crop_mode", 3, "center, squash or border"),
]


@pytest.mark.parametrize(("key", "value", "wanted"), CFG)
def test_how_images_are_seen_is_checked_with_one_line(
    key: str, value: Any, wanted: str, folder, whole, damaged
) -> None:
    entries = copy.deepcopy(whole)
    entries["pretrained_cfg"][key] = value
    damaged(entries)
    with refused(f"{folder}/config.json does not describe a model: {key} in pretrained_cfg must be {wanted}, got …"):
        read_config(folder)


@pytest.mark.parametrize(
    ("entries", "line"),
    [
        ({"pretrained_cfg": []}, "pretrained_cfg must be a dictionary, got []"),
        ({"pretrained_cfg": "cfg"}, "pretrained_cfg must be a dictionary, got 'cfg'"),
        ({"model_args": [1]}, "model_args must be a dictionary, got [1]"),
        ({"model_args": {"depth": 10**9}}, "depth in model_args must be a whole number from 1 to 1024, got 1000000000"),
        ({"model_args": {"img_size": 10**6}}, "img_size in model_args must be one or two whole numbers up to 16384, …"),
        ({"num_classes": "5"}, "num_classes must be a whole number up to a million, got '5'"),
        ({"num_classes": None}, "num_classes must be a whole number up to a million, got None"),
        ({"label_names": "abcde"}, "label_names must be a list of 5 names, got 'abcde'"),
        ({"label_names": ["a", "b"]}, "label_names must be a list of 5 names, got ['a', 'b']"),
        ({"label_names": [1, 2, 3, 4, 5]}, "label_names must be a list of 5 names, got [1, 2, 3, 4, 5]"),
        ({"vimoe_widened": 3}, "vimoe_widened must be a dictionary, got 3"),
        ({"vimoe_widened": {"layers": [0], "factor": 0}}, "factor in vimoe_widened must be a number …, got 0"),
        ({"vimoe_deepened": {"after": [0.5]}}, "after in vimoe_deepened must be a list of block numbers, got [0.5]"),
        ({"vimoe_prompts": {"tokens": 10**9}}, "tokens in vimoe_prompts must be a whole number …, got 1000000000"),
        ({"vimoe_ensemble": {"members": 999}}, "members in vimoe_ensemble must be a whole number …, got 999"),
        ({"pretrained_cfg": {"mean": [0.5]}}, "mean and std in pretrained_cfg must have a number for each channel …"),
        (
            {"pretrained_cfg": {"input_size": [1, 32, 32]}, "model_args": {}},
            "mean and std in pretrained_cfg must have a number for each …",
        ),
    ],
)
def test_every_part_is_checked_with_one_line(entries: Any, line: str, folder: Path, whole: Any, damaged: Any) -> None:
    damaged({**whole, **entries})
    with refused(f"{folder}/config.json does not describe a model: {line}"):
        read_config(folder)


def test_json_nested_beyond_all_depth_gets_one_line(folder: Path) -> None:
    (folder / "config.json").write_text(100_000 * "[" + 100_000 * "]")
    with refused(f"cannot read {folder}/config.json: …"):
        read_config(folder)


def places(value: Any, at: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """Where something stands in nested lists and dictionaries."""
    inner = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    return [at, *(place for key, part in inner for place in places(part, (*at, key)))]


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda parts: st.lists(parts, max_size=3) | st.dictionaries(st.text(max_size=8), parts, max_size=3),
    max_leaves=5,
)


@settings(max_examples=100, deadline=None, database=None, derandomize=True)
@given(data=st.data())
def test_a_damaged_configuration_is_read_or_refused(data: Any, folder: Path, whole: Any, damaged: Any) -> None:
    entries = copy.deepcopy(whole)
    for _ in range(data.draw(st.integers(1, 3))):
        *path, key = data.draw(st.sampled_from(places(entries)[1:]))
        owner = entries
        for step in path:
            owner = owner[step]
        if isinstance(owner, dict) and data.draw(st.booleans()):
            del owner[key]
            owner[data.draw(st.text(max_size=8) | st.sampled_from(["depth", "act_layer", "img_size"]))] = data.draw(
                JSON
            )
        else:
            owner[key] = data.draw(JSON)
    damaged(entries)
    with suppress(UserError):
        form = image_form(read_config(folder)["pretrained_cfg"])
        assert len(form.mean) == len(form.std) == form.input_size[0]
        vimoe.load(folder)


@pytest.mark.parametrize("said", [None, [3, 224, 224], [3, 16, 16]])
def test_the_size_of_the_images_is_the_models_own_whatever_else_the_file_says(said: Any, tmp_path: Path) -> None:
    vimoe.save(make(img_size=32), tmp_path)
    entries = json.loads((tmp_path / "config.json").read_text())
    entries["pretrained_cfg"]["input_size"] = said
    entries["pretrained_cfg"] = {key: value for key, value in entries["pretrained_cfg"].items() if value is not None}
    (tmp_path / "config.json").write_text(json.dumps(entries))
    form = image_form(read_config(tmp_path)["pretrained_cfg"])
    assert form.input_size == (3, 32, 32)
    with torch.no_grad():
        vimoe.load(tmp_path)(torch.zeros(1, *form.input_size))
