"""timm's optimisers and schedules, as a recipe asks for them."""

import inspect
from collections.abc import Iterable
from typing import Any

import timm.optim
import timm.scheduler
import torch
from timm.optim import param_groups_layer_decay, param_groups_weight_decay
from torch import nn

from vimoe.errors import UserError
from vimoe.training.recipe import Recipe
from vimoe.vit.blocks import find_backbone, moe_layers
from vimoe.vit.changes import noted_changes
from vimoe.vit.trunk import trunk_state


def build_optimisation(model: nn.Module, recipe: Recipe, steps: int) -> tuple[torch.optim.Optimizer, Any]:
    """Optimiser and schedule for so many steps an epoch; it counts steps, and scales each group's rate by `lr_scale`.

    Raises UserError if timm does not know the optimiser or the schedule.
    """
    try:
        kind = timm.optim.get_optimizer_class(recipe.opt, bind_defaults=False)
        # One pass over a parameter instead of a dozen: an MoE model has many that few multiply-adds go through.
        fused = {"fused": True} if "fused" in inspect.signature(kind).parameters else {}
        optimizer = timm.optim.create_optimizer_v2(
            model, opt=recipe.opt, lr=recipe.lr, param_group_fn=lambda model: _parameter_groups(model, recipe), **fused
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


def _parameter_groups(model: nn.Module, recipe: Recipe) -> list[dict[str, Any]]:
    """timm's groups (weight decay, layer decay), routed experts and routers in groups of their own rate."""
    kept: set[str] = getattr(model, "no_weight_decay", set)()
    if recipe.layer_decay < 1:
        groups = param_groups_layer_decay(model, recipe.weight_decay, kept, layer_decay=recipe.layer_decay)
    else:
        groups = param_groups_weight_decay(model, recipe.weight_decay, no_weight_decay_list=kept)
    factors: dict[int, float] = {}
    for layer in moe_layers(model).values():
        factors |= dict.fromkeys(map(id, layer.experts.parameters()), recipe.expert_lr)
        factors |= dict.fromkeys(map(id, layer.router.parameters()), recipe.router_lr)
    split = []
    for group in groups:
        for factor in sorted({factors.get(id(p), 1.0) for p in group["params"]}):
            params = [p for p in group["params"] if factors.get(id(p), 1.0) == factor]
            split.append({**group, "params": params, "lr_scale": group.get("lr_scale", 1.0) * factor})
    return split


def base_rate(optimizer: torch.optim.Optimizer) -> float:
    """The learning rate before any factor on it (layer decay, `expert_lr`, `router_lr`)."""
    return max(group["lr"] / group.get("lr_scale", 1.0) for group in optimizer.param_groups if group.get("lr_scale", 1))


def first_trained_block(model: nn.Module, recipe: Recipe) -> int:
    """Where a frozen trunk ends: the first MoE layer, or the block that would be it; behind the last for `linear`."""
    blocks = len(find_backbone(model).blocks)
    added = len(noted_changes(model).get("vimoe_deepened", {}).get("after", ()))
    return min(moe_layers(model), default=blocks if recipe.baseline == "linear" else blocks - added - recipe.last)


def freeze(model: nn.Module, part: str, cut: int) -> None:
    """Let a part of the model learn nothing: the `trunk` before block `cut`, or all but the `experts`.

    With `experts`, MoE layers, the classifier and what stands around the backbone learn.
    """
    if part == "trunk":
        for parameter in trunk_state(model, cut).values():
            parameter.requires_grad_(False)
    elif part == "experts":
        learn_only(model, [p for layer in moe_layers(model).values() for p in layer.parameters()])


def learn_only(model: nn.Module, parameters: Iterable[nn.Parameter]) -> None:
    """Let the backbone learn nothing but these parameters and its classifier."""
    backbone = find_backbone(model).vit
    heads = [module for name, module in backbone.named_children() if name.startswith("head")]
    backbone.requires_grad_(False)
    for learning in (*parameters, *(p for head in heads for p in head.parameters())):
        learning.requires_grad_(True)
