"""Soft MoE (Puigcerver et al. 2024): every slot of every expert is a mean of an image's tokens; nothing is chosen."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from vimoe.moe.router import Router, no_autocast

if TYPE_CHECKING:
    from vimoe.moe.experts import Experts

# B images, T tokens, D width, E experts of P slots each.


class Mixing(NamedTuple):
    """How tokens become slots and slots become tokens again."""

    dispatch: Tensor  # `[B, T, E·P]` weights that sum to 1 over the tokens
    combine: Tensor  # `[B, T, E·P]` weights that sum to 1 over the slots


class SoftRouter(Router):
    """Mixes tokens into the slots of the experts, and the experts' answers into tokens.

    Tokens and slot parameters are normalised and scaled as in section 2.3 of the paper; each expert has `slots` P.
    """

    def __init__(self, dim: int, num_experts: int, slots: int) -> None:
        super().__init__()
        self.slots = slots
        self.weight = nn.Parameter(torch.empty(num_experts * slots, dim))
        nn.init.normal_(self.weight, std=dim**-0.5)
        self.scale = nn.Parameter(torch.ones(1))  # not a scalar: FSDP2 cannot shard one

    def forward(self, x: Tensor) -> Mixing:
        """`[B, T, D]` of any float dtype; the weights are in fp32 (fp64 for fp64)."""
        with no_autocast(x):
            dtype = torch.promote_types(x.dtype, torch.float32)
            slots = self.scale.to(dtype) * F.normalize(self.weight.to(dtype), dim=-1)
            logits = F.linear(F.normalize(x.to(dtype), dim=-1), slots)
            return Mixing(logits.softmax(1), logits.softmax(2))

    def send(self, rows: Tensor, routed: Mixing, experts: Experts) -> Tensor:
        images, tokens, _ = routed.dispatch.shape
        x = rows.view(images, tokens, -1)
        slots = routed.dispatch.to(x.dtype).transpose(1, 2) @ x
        ids = torch.arange(experts.num_experts, device=x.device).repeat(images)[:, None]
        answers = experts(slots.reshape(-1, self.slots, x.shape[-1]), ids, ids.new_ones(ids.shape, dtype=x.dtype))
        answers = answers.reshape(images, -1, x.shape[-1])
        return (routed.combine.to(answers.dtype) @ answers).view_as(rows)

    def assignments(self, rows: int) -> int:
        return len(self.weight)  # slots, each of which is one expert's

    def keep(self, experts: Sequence[int]) -> None:
        kept = self.weight.detach().unflatten(0, (-1, self.slots))[list(experts)].flatten(0, 1)
        self.weight = nn.Parameter(kept, requires_grad=self.weight.requires_grad)

    def extra_repr(self) -> str:
        slots, dim = self.weight.shape
        return f"dim={dim}, num_experts={slots // self.slots}, slots={self.slots}"
