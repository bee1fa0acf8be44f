"""A recipe that trains in a second."""

from pathlib import Path
from typing import Any

import pytest

from vimoe.training import fit
from vimoe.training.recipe import Recipe

ARGS = {"patch_size": 4, "embed_dim": 16, "depth": 3, "num_heads": 2, "weight_init": "jax"}


def recipe(output: Path, **changes: Any) -> Recipe:
    settings = {"model_args": ARGS, "pos_embed_std": 1.0, "epochs": 3, "batch_size": 128, "lr": 2e-3, "device": "cpu"}
    return Recipe(**{**settings, "output": str(output), **changes})


def train_killed(wanted: Recipe, epoch: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Train, and die after so many epochs, before the state of the last one is written."""
    report = fit._report

    def killed(row: dict[str, object], *rest: object) -> None:
        report(row, *rest)  # type: ignore[arg-type]
        if row["epoch"] == epoch:
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(fit, "_report", killed)
        with pytest.raises(KeyboardInterrupt):
            fit.train(wanted)
