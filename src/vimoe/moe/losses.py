"""Losses that keep a router healthy, as pure functions and for a whole model."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor, nn

from vimoe.distributed import all_reduce_sum
from vimoe.errors import UserError
from vimoe.moe.layer import MoELayer
from vimoe.moe.router import Selection


def assignments(expert_ids: Tensor, num_experts: int) -> Tensor:
    """`[E]` fp32, how many of the assignments `[S, k]` of this process fell on each expert."""
    counts = torch.zeros(num_experts, device=expert_ids.device)
    return counts.scatter_add_(0, expert_ids.flatten(), torch.ones(expert_ids.numel(), device=expert_ids.device))


def expert_load(expert_ids: Tensor, num_experts: int) -> Tensor:
    """Share of the assignments that each expert gets, over all processes.

    Args:
        expert_ids: `[S, k]` int64, the chosen experts of this process.
        num_experts: Number of experts E.

    Returns:
        `[E]` fp32, sums to 1 (all zero when nothing was assigned anywhere).
    """
    counts = assignments(expert_ids, num_experts)
    all_reduce_sum(counts)
    return counts / counts.sum().clamp(min=1)


def load_balance_loss(probs: Tensor, expert_ids: Tensor) -> Tensor:
    """E · Σ_e f_e · P_e (Switch Transformer, Fedus et al. 2021, eq. 4), 1 at perfect balance for every k.

    f is the share of the top-k assignments over all processes and carries no gradient;
    P is the mean probability, through which the gradient flows.

    Args:
        probs: `[S, E]` router probabilities.
        expert_ids: `[S, k]` int64, the chosen experts.

    Returns:
        A scalar; 0 when there is nothing to route.
    """
    num_experts = probs.shape[-1]
    load = expert_load(expert_ids, num_experts)
    mean_probs = probs.sum(0) / max(probs.shape[0], 1)
    return num_experts * (load.to(probs.dtype) * mean_probs).sum()


def importance_loss(probs: Tensor) -> Tensor:
    """Squared coefficient of variation of the experts' total probability (Shazeer et al. 2017, eq. 7).

    Args:
        probs: `[S, E]` router probabilities.

    Returns:
        A scalar, 0 when every expert has the same total.
    """
    importance = probs.sum(0)
    return importance.var(correction=0) / importance.mean().square().clamp(min=torch.finfo(probs.dtype).tiny)


def z_loss(logits: Tensor) -> Tensor:
    """Mean squared log-partition of the router (ST-MoE, Zoph et al. 2022, eq. 5): keeps logits small.

    Args:
        logits: `[S, E]` router logits.

    Returns:
        A scalar; 0 when there is nothing to route.
    """
    return logits.logsumexp(-1).square().sum() / max(logits.shape[0], 1)


def last_selections(model: nn.Module) -> Iterator[Selection]:
    """What every MoE layer of `model` decided in its last forward, from the first layer to the last.

    Raises:
        UserError: The model has no MoE layer, has not been run yet, or was run in a way that cut the gradient.
    """
    layers = [module for module in model.modules() if isinstance(module, MoELayer)]
    if not layers:
        raise UserError("this model has no MoE layer: call vimoe.upcycle first")
    for layer in layers:
        if layer.last_selection is None:
            raise UserError("this model has not been run yet: call it before asking for a loss of its routing")
        cut = layer.training and torch.is_grad_enabled() and layer.router.weight.requires_grad
        if cut and not layer.last_selection.probs.requires_grad:
            raise UserError(
                "the last forward left no gradient for the router (no_grad or reentrant checkpointing): "
                "use torch.utils.checkpoint with use_reentrant=False"
            )
        yield layer.last_selection


def balance_loss(model: nn.Module) -> Tensor:
    """Balance loss of the last forward, summed over the MoE layers.

    The sum gives every router the same pull whatever the number of layers L; its minimum is L.
    Add it to the task's loss with a weight of 0.01.

    Args:
        model: A model with at least one MoE layer, after a forward.

    Returns:
        A scalar with a gradient for the routers.

    Raises:
        UserError: See `last_selections`.
    """
    losses = [load_balance_loss(selection.probs, selection.expert_ids) for selection in last_selections(model)]
    return torch.stack(losses).sum()
