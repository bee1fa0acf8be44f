"""The recipes in configs/ are readable and say what they must."""

from pathlib import Path

import pytest

from vimoe.training.recipe import load_recipe

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
