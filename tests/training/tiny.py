"""A recipe that trains in a second."""

from pathlib import Path
from typing import Any

from vimoe.training.recipe import Recipe

ARGS = {"patch_size": 4, "embed_dim": 16, "depth": 3, "num_heads": 2, "weight_init": "jax"}


def recipe(output: Path, **changes: Any) -> Recipe:
    settings = {"model_args": ARGS, "pos_embed_std": 1.0, "epochs": 3, "batch_size": 128, "lr": 2e-3, "device": "cpu"}
    return Recipe(**{**settings, "output": str(output), **changes})
