"""timm's optimisers and schedules, as a recipe asks for them."""

from __future__ import annotations

from typing import Any

import timm.optim
import timm.scheduler
import torch
from torch import nn

from vimoe.errors import UserError
from vimoe.training.recipe import Recipe


def build_optimisation(model: nn.Module, recipe: Recipe, steps: int) -> tuple[torch.optim.Optimizer, Any]:
    """Optimiser and schedule; the schedule counts steps and honours layer decay.

    Args:
        model: The model to train.
        recipe: Names and rates.
        steps: Optimiser steps an epoch.

    Raises:
        UserError: timm does not know the optimiser or the schedule.
    """
    try:
        optimizer = timm.optim.create_optimizer_v2(
            model,
            opt=recipe.opt,
            lr=recipe.lr,
            weight_decay=recipe.weight_decay,
            layer_decay=recipe.layer_decay if recipe.layer_decay < 1 else None,
        )
        schedule, _ = timm.scheduler.create_scheduler_v2(
            optimizer,
            sched=recipe.sched,
            num_epochs=recipe.epochs - recipe.warmup_epochs,  # warmup_prefix: what comes after the warm-up
            warmup_epochs=recipe.warmup_epochs,
            warmup_lr=0.0,
            min_lr=recipe.min_lr,
            step_on_epochs=False,
            updates_per_epoch=steps,
            warmup_prefix=True,
        )
    except (AssertionError, ValueError, KeyError, RuntimeError) as error:
        raise UserError(f"timm cannot make opt {recipe.opt!r} with sched {recipe.sched!r}: {error}") from error
    if schedule is None:
        raise UserError(f"timm knows no schedule {recipe.sched!r}")
    return optimizer, schedule
