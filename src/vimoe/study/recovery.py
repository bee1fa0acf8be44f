"""Recovery: what a pruned model is trained for, and how."""

import math
from dataclasses import replace
from pathlib import Path

from vimoe.training.recipe import Recipe

# Of the epochs that the run itself had, and of its learning rate (`benchmarks/recovery_rates.py`).
RECOVERY = 0.25
RECOVERY_LR = 0.07


def recovery_epochs(recipe: Recipe, recover: float = RECOVERY) -> int:
    """Epochs of recovery: below 1 `recover` is a share of the run's own, rounded up, else their number."""
    return math.ceil(recover * recipe.epochs) if recover < 1 else round(recover)


def recovery(recipe: Recipe, start: Path, epochs: int, output: Path, device: str) -> Recipe:
    """The run's own recipe for a few epochs, from the pruned model, at a fourteenth of its learning rate.

    The model comes from the end of a schedule and has little to learn anew; the full rate would first undo some of
    what it knows.
    """
    return replace(
        recipe,
        initial_checkpoint=str(start),
        pretrained=False,
        last=0,
        baseline="",
        guide_classes="",  # its routers have learned it, and may have lost experts
        epochs=epochs,
        lr=recipe.lr * RECOVERY_LR,
        warmup_epochs=min(recipe.warmup_epochs, epochs / 4),
        device=device,
        output=str(output),
    )
