"""A recipe that trains in a second."""

import signal
from pathlib import Path
from typing import Any

import pytest
import torch

from vimoe.training import fit
from vimoe.training.fit import train
from vimoe.training.interrupt import InterruptedRun
from vimoe.training.recipe import Recipe
from vimoe.training.run_folder import RunFolder
from vimoe.training.trainer import Trainer
from vimoe.vit.checkpoint import load

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


def stop_after(monkeypatch: pytest.MonkeyPatch, batches: int) -> None:
    """Send this process a SIGTERM while it trains its batch of this number."""
    train_batch = Trainer.train_batch
    seen = 0

    def counted(self: Trainer, *args: torch.Tensor) -> torch.Tensor:
        nonlocal seen
        seen += 1
        if seen == batches:
            signal.raise_signal(signal.SIGTERM)
        return train_batch(self, *args)

    monkeypatch.setattr(Trainer, "train_batch", counted)


def whole_and_resumed(
    folder: Path, monkeypatch: pytest.MonkeyPatch, batches: int, **changes: Any
) -> tuple[RunFolder, RunFolder]:
    """A run that was not interrupted, and one that was stopped at this batch and went on: they have the same bits."""
    whole = train(recipe(folder / "whole", **changes))
    settings = recipe(folder / "stopped", **changes)
    with monkeypatch.context() as patch:
        stop_after(patch, batches)
        with pytest.raises(InterruptedRun):
            train(settings)
    resumed = train(settings)
    expected, found = load(whole.model).state_dict(), load(resumed.model).state_dict()
    assert list(expected) == list(found)
    assert all(torch.equal(expected[name], found[name]) for name in expected)
    return whole, resumed
