"""The router: which experts an image or a token goes to, and with what weight."""

from contextlib import nullcontext
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from vimoe.moe.config import Gate

# S selections (images or tokens), k experts chosen for each, E experts in all, D the model's width.


class Selection(NamedTuple):
    """What a router decided for S images or tokens.

    Attributes:
        expert_ids: `[S, k]` int64, the chosen experts, the most probable first.
        gates: `[S, k]` weights of the chosen experts, fp32 (fp64 for fp64 input).
        probs: `[S, E]` softmax of the logits without noise, same dtype.
        logits: `[S, E]` the logits without noise, same dtype.
    """

    expert_ids: Tensor
    gates: Tensor
    probs: Tensor
    logits: Tensor


def straight_through_gates(log_probs: Tensor) -> Tensor:
    """Gates that sum to 1 in value and have the gradient of log p, from log-probabilities `[S, k]`.

    For chosen probabilities p_1..p_k the value is g_i = p_i / Σ_j p_j and the gradient is
    g_i · ∇log p_i, so that k = 1 gives the value 1 with gradient ∇log p, and k = E gives
    exactly the softmax with its own gradient.
    """
    values = log_probs.detach().softmax(-1)
    if not log_probs.requires_grad:
        return values
    return values * (log_probs - log_probs.detach()).exp()


def select_experts(logits: Tensor, top_k: int, gate: Gate, noise: Tensor | None = None) -> Selection:
    """Choose the `top_k` most probable experts (softmax, then top-k).

    Args:
        logits: `[S, E]` in fp32 or fp64.
        gate: `straight_through` (see `straight_through_gates`) or `softmax` (the raw probability).
        noise: `[S, E]` added to the logits for the choice and the gates, never for `probs`.
    """
    log_probs = (logits if noise is None else logits + noise).log_softmax(-1)
    chosen, expert_ids = log_probs.topk(top_k, dim=-1)
    gates = chosen.exp() if gate == "softmax" else straight_through_gates(chosen)
    return Selection(expert_ids, gates, logits.softmax(-1), logits)


class Router(nn.Module):
    """`Linear(D, E, bias=False)` in fp32, whatever autocast says, and a top-k choice.

    `noise` adds normal noise of σ = 1/E to the logits in training (V-MoE, Riquelme et al. 2021, section 2.1).
    """

    def __init__(self, dim: int, num_experts: int, top_k: int, gate: Gate, noise: bool = False) -> None:
        super().__init__()
        self.top_k = top_k
        self.gate: Gate = gate
        self.noise = noise
        self.weight = nn.Parameter(torch.empty(num_experts, dim))
        nn.init.normal_(self.weight, std=0.02)

    def forward(self, x: Tensor) -> Selection:
        """Route `x` of shape `[S, D]`, any float dtype."""
        with nullcontext() if x.is_meta else torch.autocast(x.device.type, enabled=False):
            dtype = torch.promote_types(x.dtype, torch.float32)
            logits = F.linear(x.to(dtype), self.weight.to(dtype))
            noise = torch.randn_like(logits) / logits.shape[-1] if self.noise and self.training else None
            return select_experts(logits, self.top_k, self.gate, noise)

    def extra_repr(self) -> str:
        experts, dim = self.weight.shape
        return f"dim={dim}, num_experts={experts}, top_k={self.top_k}, gate={self.gate}, noise={self.noise}"
