"""Losses that keep a router healthy, as pure functions and for a whole model."""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from vimoe.distributed import all_reduce_sum
from vimoe.errors import UserError
from vimoe.moe.layer import moe_modules
from vimoe.moe.router import Selection


def assignments(expert_ids: Tensor, num_experts: int) -> Tensor:
    """`[E]` fp32, how many of the assignments `[S, k]` of this process fell on each expert; E stands for none."""
    counts = torch.zeros(num_experts + 1, device=expert_ids.device)
    ones = torch.ones(expert_ids.numel(), device=expert_ids.device)
    return counts.scatter_add_(0, expert_ids.flatten(), ones)[:num_experts]


def expert_load(expert_ids: Tensor, num_experts: int) -> Tensor:
    """`[E]` fp32 share of the assignments that each expert gets, over all processes, by this one's `[S, k]`.

    It sums to 1 (all zero when nothing was assigned anywhere).
    """
    counts = assignments(expert_ids, num_experts)
    all_reduce_sum(counts)
    return counts / counts.sum().clamp(min=1)


def load_balance_loss(probs: Tensor, expert_ids: Tensor) -> Tensor:
    """E · Σ_e f_e · P_e (Switch Transformer, Fedus et al. 2021, eq. 4), 1 at perfect balance for every k.

    f is the share of the top-k assignments over all processes and carries no gradient;
    P is the mean of `probs` `[S, E]`, through which the gradient flows. 0 when there is nothing to route.
    """
    num_experts = probs.shape[-1]
    load = expert_load(expert_ids, num_experts)
    mean_probs = probs.sum(0) / max(probs.shape[0], 1)
    return num_experts * (load.to(probs.dtype) * mean_probs).sum()


def importance_loss(probs: Tensor) -> Tensor:
    """Squared coefficient of variation of the sums of `[S, E]` over S (Shazeer et al. 2017, eq. 7); 0 at balance."""
    importance = probs.sum(0)
    return importance.var(correction=0) / importance.mean().square().clamp(min=torch.finfo(probs.dtype).tiny)


def z_loss(logits: Tensor) -> Tensor:
    """Mean squared log-partition of the router's logits `[S, E]` (ST-MoE, Zoph et al. 2022, eq. 5): keeps them small.

    0 when there is nothing to route.
    """
    return logits.logsumexp(-1).square().sum() / max(logits.shape[0], 1)


def load_loss(logits: Tensor, noise: Tensor, top_k: int) -> Tensor:
    """Squared coefficient of variation of the experts' smooth load (V-MoE, Riquelme et al. 2021, eq. 8 to 10).

    The load is the sum over `[S, E]` of the probability that an expert is among the `top_k` once its own noise of
    deviation 1/E is drawn anew: Φ((logit - the k-th largest noisy logit) · E). Both are logits, not probabilities.
    """
    experts = logits.shape[-1]
    threshold = (logits + noise).topk(top_k, dim=-1).values[:, -1:]
    return importance_loss(torch.special.ndtr((logits - threshold) * experts))


def guide_loss(logits: Tensor, targets: Tensor, expert_of: Tensor) -> Tensor:
    """Cross-entropy between a router's logits `[B, E]` and the expert of each image's super-class.

    Super-class guidance is that of Mobile V-MoE (Daxberger et al. 2023). `expert_of` `[C]` int64 has the expert by
    class; `targets` are labels `[B]`, or the classes' shares `[B, C]` where images are mixed. 0 for no image.
    """
    if targets.ndim == 1:
        wanted = F.one_hot(expert_of[targets], logits.shape[-1]).to(logits)
    else:
        wanted = torch.zeros_like(logits).index_add(1, expert_of, targets.to(logits))
    return -(wanted * logits.log_softmax(-1)).sum() / max(logits.shape[0], 1)


def last_selections(model: nn.Module) -> list[Selection]:
    """What the routers of `model` decided in its last forward, from the first layer to the last.

    Layers that never ran are left out, and where some train so are those that do not: an EMA copy.

    Raises UserError if the model has no MoE layer, has not run yet, ran several times since its last step, or ran in a
    way that left no gradient for a router in training.
    """
    layers = [layer for layer in moe_modules(model).values() if layer.router.decides]
    if not layers:
        raise UserError("this model has no MoE layer: call vimoe.upcycle first")
    if not any(layer.router.top_k for layer in layers):
        raise UserError("router 'soft' chooses nothing: there is no loss of its routing")
    ran = [(layer, layer.last_selection) for layer in layers if layer.last_selection is not None]
    if not ran:
        raise UserError("this model has not run yet: call it before asking for a loss of its routing")
    for layer, selection in ran:
        learns = layer.training and torch.is_grad_enabled() and layer.router.weight.requires_grad
        if learns and not selection.probs.requires_grad:
            raise UserError(
                "the last forward left no gradient for the router: run the model in training, without no_grad, and "
                "checkpoint activations with use_reentrant=False"
            )
        if layer.uncounted > 1:
            raise UserError(
                f"the model ran {layer.uncounted} times since its last step and only the last run would count: call "
                "balance_loss after each forward and add up, and run what trains nothing under torch.no_grad()"
            )
        layer.uncounted = 0
    training = [selection for layer, selection in ran if layer.training and selection.probs.requires_grad]
    return training or [selection for _, selection in ran]


def balance_loss(model: nn.Module) -> Tensor:
    """Balance loss of the last forward, summed over the MoE layers.

    The sum gives every router the same pull whatever the number of layers L; its minimum is L.
    Add it to the task's loss with a weight of 0.01. Where a step has several forwards (multi-crop, accumulation
    without a backward in between), call it after each of them; otherwise it is refused, except under torch.compile,
    where the last forward alone counts.

    Args:
        model: A model with at least one MoE layer, after a forward.

    Returns:
        A scalar with a gradient for the routers.

    Raises UserError, see `last_selections`.

    >>> model = timm.create_model("vit_tiny_patch16_224", img_size=32, num_classes=10)
    >>> logits = vimoe.upcycle(model, num_experts=4)(torch.randn(8, 3, 32, 32))
    >>> loss = torch.nn.functional.cross_entropy(logits, torch.arange(8)) + 0.01 * vimoe.balance_loss(model)
    >>> loss.backward()
    """
    return routing_loss(model, balance=1.0)


def routing_loss(
    model: nn.Module,
    *,
    balance: float = 0.0,
    importance: float = 0.0,
    load: float = 0.0,
    z: float = 0.0,
    guide: float = 0.0,
    guided: tuple[Tensor, Tensor] | None = None,
) -> Tensor:
    """Balance, importance, load, z and guide loss of the last forward with these weights, summed over the routers.

    A loss of weight 0 is not computed. Importance and load loss are those of each process's own batch. `guided` are the
    targets and experts of `guide_loss`.

    Raises UserError, see `last_selections`, or if there was no noise to take a load loss of.
    """
    terms = []
    for selection in last_selections(model):
        if balance:
            terms.append(balance * load_balance_loss(selection.probs, selection.expert_ids))
        if importance:
            terms.append(importance * importance_loss(selection.probs))
        if load:
            if selection.noise is None:
                raise UserError("load_weight needs routers that choose with noise: router_noise, and no expert_choice")
            terms.append(load * load_loss(selection.logits, selection.noise, selection.expert_ids.shape[-1]))
        if z:
            terms.append(z * z_loss(selection.logits))
        if guide and guided:
            terms.append(guide * guide_loss(selection.logits, *guided))
    return torch.stack(terms).sum() if terms else torch.zeros(())
