"""Routers with a capacity: an expert serves so many tokens of an image, and some tokens get no expert.

Who is served is decided among the tokens of one image, so that an answer never depends on what else is in the batch.
"""

from math import ceil
from typing import Any

import torch
from torch import Tensor

from vimoe.moe.router import Selection, TopKRouter, select_experts

# B images, M tokens of each, E experts, C the capacity of each.


def expert_capacity(choices: int, num_experts: int, factor: float) -> int:
    """Tokens that one expert serves: ⌈choices · factor / E⌉, at least 1 and no more than there are choices."""
    return min(choices, max(1, ceil(choices * factor / num_experts)))


def choose_tokens(probs: Tensor, capacity: int) -> Tensor:
    """Whether an expert takes a token, for `[B, M, E]`: the `capacity` tokens of an image it is most probable for."""
    taken = probs.argsort(stable=True, dim=1, descending=True)[:, :capacity]
    return torch.zeros_like(probs, dtype=torch.bool).scatter(1, taken, True)


def served_by_priority(expert_ids: Tensor, priority: Tensor, num_experts: int, capacity: int) -> Tensor:
    """`[B, M, k]` whether a choice is served (V-MoE, Riquelme et al. 2021, section 4.1).

    First choices come before second ones, and among equals the token of higher priority; each expert serves the first
    `capacity` of those that chose it. `expert_ids` are `[B, M, k]`, `priority` `[B, M]`.
    """
    order = priority.argsort(stable=True, dim=1, descending=True)
    ranked = expert_ids.take_along_dim(order[..., None], 1).transpose(1, 2).flatten(1)  # [B, k·M]
    chosen = torch.nn.functional.one_hot(ranked, num_experts)
    place = (chosen.cumsum(1) * chosen).sum(-1)  # in the queue of its expert, from 1
    served = (place <= capacity).unflatten(1, (expert_ids.shape[2], -1)).transpose(1, 2)
    return torch.zeros_like(served).scatter(1, order[..., None].expand_as(served), served)


class CapacityRouter(TopKRouter):
    """A `TopKRouter` whose experts serve `capacity` times their even share of an image's tokens."""

    dropless = False

    def __init__(self, *arguments: Any, capacity: float, **settings: Any) -> None:
        super().__init__(*arguments, **settings)
        self.capacity = capacity

    def extra_repr(self) -> str:
        return f"{super().extra_repr()}, capacity={self.capacity:g}"


class PrioritisedRouter(CapacityRouter):
    """Tokens choose, and experts serve the most decided ones: batch-prioritised routing (V-MoE) with an image as group.

    With a capacity below 1 the least important patches of an image are left out.
    """

    def select(self, logits: Tensor, noise: Tensor | None = None) -> Selection:
        chosen = super().select(logits, noise)
        tokens, experts = logits.shape[-2:]
        ids = chosen.expert_ids.unflatten(0, (-1, tokens))
        noisy = logits if noise is None else logits + noise
        priority = noisy.detach().softmax(-1).amax(-1).view(ids.shape[:2])
        capacity = expert_capacity(tokens * self.top_k, experts, self.capacity)
        served = served_by_priority(ids, priority, experts, capacity).flatten(0, 1)
        ids = chosen.expert_ids.masked_fill(~served, experts)
        return chosen._replace(expert_ids=ids, gates=chosen.gates * served)

    def assignments(self, rows: int) -> int:
        experts = len(self.weight)
        return min(self.top_k * rows, experts * expert_capacity(rows * self.top_k, experts, self.capacity))


class ExpertChoiceRouter(CapacityRouter):
    """Experts choose tokens (Zhou et al. 2022), within one image; a token has as many experts as took it."""

    def select(self, logits: Tensor, noise: Tensor | None = None) -> Selection:
        experts = logits.shape[-1]
        plain = select_experts(logits.flatten(0, -2), 1, self.gate)
        log_probs = (logits if noise is None else logits + noise).log_softmax(-1)
        probs = log_probs.detach().exp()
        taken = choose_tokens(probs, expert_capacity(logits.shape[-2], experts, self.capacity)).flatten(0, -2)
        log_probs, probs = log_probs.flatten(0, -2), probs.flatten(0, -2)
        gates = probs
        if self.gate == "straight_through":
            gates = probs / (probs * taken).sum(-1, keepdim=True).clamp(min=torch.finfo(probs.dtype).tiny)
        gates = gates * taken * (log_probs - log_probs.detach()).exp()
        order = (probs + taken).argsort(stable=True, dim=-1, descending=True)  # the served ones first
        ids = order.masked_fill(~taken.gather(-1, order), experts)
        return plain._replace(expert_ids=ids, gates=gates.gather(-1, order))

    def assignments(self, rows: int) -> int:
        return len(self.weight) * expert_capacity(rows, len(self.weight), self.capacity)
