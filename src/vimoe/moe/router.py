"""Routers whose every input chooses its experts: top-k, and what all routers share."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from vimoe.moe.config import Gate

if TYPE_CHECKING:
    from vimoe.moe.experts import Experts

# S selections (images or tokens), k experts chosen for each, E experts in all, D the model's width.


class Selection(NamedTuple):
    """What a router decided for S images or tokens.

    Attributes:
        expert_ids: `[S, k]` int64, the chosen experts, the most probable first; E stands for none.
        gates: `[S, k]` weights of the chosen experts, fp32 (fp64 for fp64 input); 0 for none.
        probs: `[S, E]` softmax of the logits without noise, same dtype.
        logits: `[S, E]` the logits without noise, same dtype.
        noise: `[S, E]` what was added to them for the choice, None where nothing was.
    """

    expert_ids: Tensor
    gates: Tensor
    probs: Tensor
    logits: Tensor
    noise: Tensor | None = None


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


def renormalised_gates(log_probs: Tensor) -> Tensor:
    """p_i / Σ_j p_j of the chosen, with its own gradient, from log-probabilities `[S, k]` (Mixtral, Jiang et al. 2024).

    For k = 1 it is 1, whatever the router says, and has no gradient.
    """
    return log_probs.softmax(-1)


# By name, the gates of the chosen experts from their log-probabilities `[S, k]`.
GATES: dict[Gate, Callable[[Tensor], Tensor]] = {
    "straight_through": straight_through_gates,
    "softmax": torch.exp,
    "renormalised": renormalised_gates,
}


def select_experts(
    logits: Tensor, top_k: int, gate: Gate, noise: Tensor | None = None, bias: Tensor | None = None
) -> Selection:
    """Choose the `top_k` most probable experts (softmax, then top-k).

    Args:
        logits: `[S, E]` in fp32 or fp64.
        gate: `straight_through`, `renormalised` (see the functions of these names) or `softmax` (the raw probability).
        noise: `[S, E]` added to the logits for the choice and the gates, never for `probs`.
        bias: `[E]` added to the probabilities for the choice alone (DeepSeek-V3, 2024, section 2.1.2).
    """
    log_probs = log_softmax(logits if noise is None else logits + noise)
    if bias is None:  # of one expert `max` is the faster `topk`
        chosen, expert_ids = log_probs.max(-1, keepdim=True) if top_k == 1 else log_probs.topk(top_k, dim=-1)
    else:
        expert_ids = (log_probs.detach().exp() + bias).topk(top_k, dim=-1).indices
        chosen = log_probs.gather(-1, expert_ids)
    probs = (log_probs if noise is None else log_softmax(logits)).exp()
    return Selection(expert_ids, GATES[gate](chosen), probs, logits, noise)


def by_expert(chosen: Selection, expert_of: Sequence[int]) -> Selection:
    """A choice among R rows as the choice of the experts that they stand for, `expert_of` `[R]`; gates stay.

    The probabilities of an expert's rows add up, and its logits are such that their softmax is that. Two rows of an
    expert may be chosen together, and it then counts twice.
    """
    row_experts = torch.tensor(expert_of, device=chosen.probs.device)
    one_hot = F.one_hot(row_experts, max(expert_of) + 1).to(chosen.probs.dtype)

    def pooled(logits: Tensor) -> Tensor:
        total = logits.logsumexp(-1, keepdim=True)
        shares = (logits - total).exp() @ one_hot
        return shares.clamp(min=torch.finfo(shares.dtype).tiny).log() + total

    logits = pooled(chosen.logits)
    noise = None if chosen.noise is None else pooled(chosen.logits + chosen.noise) - logits
    return Selection(row_experts[chosen.expert_ids], chosen.gates, chosen.probs @ one_hot, logits, noise)


def log_softmax(logits: Tensor) -> Tensor:
    """Over the experts of `[S, E]`, computed by columns: by rows of 8 torch takes twenty times as long on a CPU."""
    return logits.t().contiguous().log_softmax(0).t()


class Router(nn.Module):
    """What a layer needs of its router, whatever its kind."""

    weight: nn.Parameter  # `[·, D]`
    top_k = 0  # experts chosen for each input, at the most where there is a capacity; 0 where nothing is chosen
    decides = True  # whether its decisions are its own
    dropless = True  # whether every choice is served
    bias: Tensor | None  # `[E]` what balances the load, None where nothing does
    assigned: Tensor | None  # `[E]` int64, choices in training since the bias last moved; None before the first
    expert_of: tuple[int, ...] = ()  # `[R]` the expert of each row, ascending; empty where each expert has one row

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("bias", None)
        self.assigned = None

    def send(self, rows: Tensor, routed: Any, experts: Experts) -> Tensor:
        """Let the experts answer to `[S, n, D]`, as the router said by `routed`; in the same shape."""
        raise NotImplementedError

    def assignments(self, rows: int) -> int:
        """How many rows the experts compute for `rows` rows that one image brings, at the most."""
        raise NotImplementedError

    def keep(self, experts: Sequence[int]) -> None:
        """Forget all experts but these, in place."""
        raise NotImplementedError

    def renumber(self, place_of: Mapping[int, int]) -> None:
        """Forget all experts but these and give them these numbers, several perhaps the same one, in place."""
        raise NotImplementedError

    def share(self, expert_of: Sequence[int], rows: Sequence[int]) -> None:
        """Keep these rows in this order, each of which chooses this expert, in place."""
        raise NotImplementedError

    def count(self, selection: Selection) -> None:
        """Take note of the choices of a forward in training."""

    def __getstate__(self) -> dict[str, Any]:
        """Copies and pickles begin to count anew."""
        return {**self.__dict__, "assigned": None}


def no_autocast(x: Tensor) -> AbstractContextManager[Any]:
    """Inside it, autocast has no say over what is done with `x`."""
    return nullcontext() if x.is_meta else torch.autocast(x.device.type, enabled=False)


class TopKRouter(Router):
    """`Linear(D, E, bias=False)` in fp32, whatever autocast says, and a top-k choice.

    Args:
        noise: Add normal noise of σ = 1/E to the logits in training (V-MoE, Riquelme et al. 2021, section 2.1).
        jitter: Multiply the router's input by uniform numbers from 1 - jitter to 1 + jitter in training (Switch
            Transformer, Fedus et al. 2021, section 2.2); the experts' input stays as it is.
        temperature: Divides the logits.
        balanced: Hold a bias that balances the load, see `vimoe.moe.balance`.
    """

    def __init__(
        self,
        dim: int,
        num_experts: int,
        top_k: int,
        gate: Gate,
        noise: bool = False,
        *,
        jitter: float = 0.0,
        temperature: float = 1.0,
        balanced: bool = False,
    ) -> None:
        super().__init__()
        self.top_k = top_k
        self.gate: Gate = gate
        self.noise = noise
        self.jitter = jitter
        self.temperature = temperature
        self.weight = nn.Parameter(torch.empty(num_experts, dim))
        nn.init.normal_(self.weight, std=0.02)
        self.bias = torch.zeros(num_experts) if balanced else None

    def forward(self, x: Tensor) -> Selection:
        """Route `x` of shape `[B, M, D]`, M selections for each image, or `[S, D]`; any float dtype."""
        with no_autocast(x):
            dtype = torch.promote_types(x.dtype, torch.float32)
            x = x.to(dtype)
            if self.jitter and self.training:
                x = x * torch.empty_like(x).uniform_(1 - self.jitter, 1 + self.jitter)
            logits = F.linear(x, self.weight.to(dtype))
            if self.temperature != 1:
                logits = logits / self.temperature
            noise = torch.randn_like(logits) / logits.shape[-1] if self.noise and self.training else None
            return self.select(logits, noise)

    def select(self, logits: Tensor, noise: Tensor | None = None) -> Selection:
        """Choose experts by their logits `[B, M, E]` or `[S, E]`; for `noise`, of their shape, see `select_experts`."""
        noise = None if noise is None else noise.flatten(0, -2)
        chosen = select_experts(logits.flatten(0, -2), self.top_k, self.gate, noise, self.bias)
        return by_expert(chosen, self.expert_of) if self.expert_of else chosen

    def send(self, rows: Tensor, routed: Selection, experts: Experts) -> Tensor:
        y: Tensor = experts(rows, routed.expert_ids, routed.gates, self.dropless)
        return y

    def assignments(self, rows: int) -> int:
        return self.top_k * rows

    def count(self, selection: Selection) -> None:
        if self.bias is not None:
            ids = selection.expert_ids.flatten()  # which `bincount` would count too, and break a compiled graph
            counts = ids.new_zeros(len(self.bias) + 1).scatter_add_(0, ids, torch.ones_like(ids))[:-1]
            self.assigned = counts if self.assigned is None else self.assigned + counts

    def keep(self, experts: Sequence[int]) -> None:
        self.renumber({expert: place for place, expert in enumerate(experts)})

    def renumber(self, place_of: Mapping[int, int]) -> None:
        of = self.expert_of or range(len(self.weight))
        found = sorted((place_of[expert], row) for row, expert in enumerate(of) if expert in place_of)
        self.share([place for place, _ in found], [row for _, row in found])

    def share(self, expert_of: Sequence[int], rows: Sequence[int]) -> None:
        weight = self.weight
        self.weight = nn.Parameter(weight.detach()[list(rows)], requires_grad=weight.requires_grad)
        if self.bias is not None:
            self.bias = self.bias[list(rows)]
        self.expert_of = () if len(set(expert_of)) == len(expert_of) else tuple(expert_of)
        self.assigned = None

    def extra_repr(self) -> str:
        rows, dim = self.weight.shape
        experts = f"{max(self.expert_of) + 1}, rows={rows}" if self.expert_of else f"{rows}"
        return f"dim={dim}, num_experts={experts}, top_k={self.top_k}, gate={self.gate}, noise={self.noise}"
