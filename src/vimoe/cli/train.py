"""`vimoe train`: run a recipe; the same command on the same folder goes on where it stopped."""

from __future__ import annotations

import os
from collections.abc import Sequence

from vimoe.training.recipe import parse_recipe


def run(arguments: Sequence[str]) -> None:
    """Train as the flags and the recipe file say."""
    recipe = parse_recipe(arguments)
    from vimoe.training.fit import train  # torch is needed from here on, not for a wrong flag

    model = train(recipe).model
    if os.environ.get("RANK", "0") == "0":
        print(f"the trained model lies in {model}")
