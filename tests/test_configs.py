"""The recipes in configs/ are readable and say what they must."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from vimoe.data.registry import EMBEDDED
from vimoe.data.splits import Splits
from vimoe.data.transforms import ImageForm
from vimoe.training.build import build_model
from vimoe.training.recipe import load_recipe
from vimoe.training.source import open_recipe_data
from vimoe.vit.blocks import moe_layers
from vimoe.vit.cost import cost

CONFIGS = sorted((Path(__file__).parents[1] / "configs").glob("*.yaml"))


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_a_recipe_is_valid_and_starts_with_its_command_cost_and_expected_result(path: Path) -> None:
    load_recipe(path)
    head = [line for line in path.read_text().splitlines() if line.startswith("#")]
    assert (
        head[0]
        .removeprefix("# torchrun --nproc-per-node 8 -m ")
        .removeprefix("# ")
        .startswith(f"vimoe train -c configs/{path.name}")
    )
    assert any("Cost:" in line for line in head)
    assert any("Expected:" in line for line in head)


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_a_recipe_makes_a_model_of_its_size_from_scratch(path: Path) -> None:
    recipe = replace(load_recipe(path), pretrained=False)
    side = recipe.img_size or 224
    channels = recipe.model_args.get("in_chans", 3)
    if recipe.dataset in EMBEDDED:
        splits = open_recipe_data(recipe)
        channels, side, _ = splits.form.input_size
    else:
        nothing: list[object] = []
        half = channels * (0.5,)
        splits = Splits(nothing, nothing, nothing, ("a", "b"), ImageForm((channels, side, side), half, half))  # type: ignore[arg-type]
    with torch.device("meta"):
        model = build_model(recipe, splits)
    assert cost(model, side).macs > 0
    assert len(moe_layers(model)) == recipe.last
