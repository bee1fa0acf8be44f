"""timm's optimisers and schedules, as a recipe asks for them."""

from __future__ import annotations

import inspect
from typing import Any

import timm.optim
import timm.scheduler
import torch
from torch import nn

from vimoe.errors import UserError
from vimoe.training.recipe import Recipe
from vimoe.vit.blocks import find_backbone, moe_layers


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
        kind = timm.optim.get_optimizer_class(recipe.opt, bind_defaults=False)
        # One pass over a parameter instead of a dozen: an MoE model has many that few multiply-adds go through.
        fused = {"fused": True} if "fused" in inspect.signature(kind).parameters else {}
        optimizer = timm.optim.create_optimizer_v2(
            model,
            opt=recipe.opt,
            lr=recipe.lr,
            weight_decay=recipe.weight_decay,
            layer_decay=recipe.layer_decay if recipe.layer_decay < 1 else None,
            **fused,
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


def freeze_all_but_experts(model: nn.Module) -> None:
    """Let nothing of the backbone learn but its MoE layers and its classifier; what stands around it learns."""
    backbone = find_backbone(model).vit
    heads = [module for name, module in backbone.named_children() if name.startswith("head")]
    learning = [*moe_layers(model).values(), *heads]
    backbone.requires_grad_(False)
    for part in learning:
        part.requires_grad_(True)
