"""The MoE layer: what stands where a block's FFN stood."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from vimoe.errors import UserError
from vimoe.moe.compute import Backend, is_exporting
from vimoe.moe.config import Gate, GateInput, Init, Routing
from vimoe.moe.experts import Experts
from vimoe.moe.router import Router, Selection

# B images, T tokens (prefix tokens first, then patches), D width, S selections: B or B·T.


class MoELayer(nn.Module):
    """`y = Σ_i gate_i · E_i(x) + E_shared(x)`, dropless.

    With `init="preserve"` and gates that sum to 1 it computes, at first, what the FFN computed: the copies'
    output is halved when there is a shared expert beside them.

    Args:
        ffn: The FFN to replace; it becomes the shared expert itself, and its copies the routed ones.
        num_experts: Number of routed experts E.
        top_k: Experts chosen for each image or token.
        shared_expert: Whether to keep an always-on expert.
        routing: `image` makes one choice an image, `token` one a token.
        gate: Kind of gate, see `vimoe.moe.router.select_experts`.
        gate_input: What the router sees under `image` routing, `cls` (the first token) or `mean` (of the patches).
        num_prefix_tokens: How many tokens come before the patches.
        init: `preserve` or `copy`, see `MoEConfig`.
        router_noise: Normal noise of σ = 1/E on the logits in training.
        backend: How to compute the experts, see `vimoe.moe.compute`.

    Attributes:
        last_selection: What the router decided in the last forward, None before the first.
    """

    def __init__(
        self,
        ffn: nn.Module,
        num_experts: int = 8,
        top_k: int = 1,
        shared_expert: bool = True,
        routing: Routing = "image",
        gate: Gate = "straight_through",
        gate_input: GateInput = "cls",
        num_prefix_tokens: int = 1,
        init: Init = "preserve",
        router_noise: bool = False,
        backend: Backend = "auto",
    ) -> None:
        super().__init__()
        scale = 0.5 if shared_expert and init == "preserve" else 1.0
        self.experts = Experts(ffn, num_experts, scale, backend)
        weight = self.experts.fc2.weight
        router = Router(weight.shape[1], num_experts, top_k, gate, router_noise)
        self.router = router.to(weight.device, weight.dtype)
        self.shared_expert: nn.Module | None = None
        if shared_expert:
            self.shared_expert = ffn
            with torch.no_grad():
                for parameter in ffn.get_submodule("fc2").parameters():
                    parameter.mul_(scale)
        self.routing: Routing = routing
        self.gate_input: GateInput = gate_input
        self.num_prefix_tokens = num_prefix_tokens
        self.last_selection: Selection | None = None
        self.train(ffn.training)

    def forward(self, x: Tensor) -> Tensor:
        """`[B, T, D]` to `[B, T, D]`.

        Raises:
            UserError: The input has another shape, or holds no token to route by.
        """
        if x.ndim != 3:
            raise UserError(f"an MoE layer takes [batch, tokens, width], got a shape of {tuple(x.shape)}")
        per_token = self.routing == "token"
        selection = self.router(x.flatten(0, 1) if per_token else self._image_features(x))
        if not is_exporting() and (torch.compiler.is_compiling() or not is_recomputing()):
            self.last_selection = selection
        rows = x.flatten(0, 1)[:, None] if per_token else x
        y = self.experts(rows, selection.expert_ids, selection.gates).view_as(x)
        return y if self.shared_expert is None else y + self.shared_expert(x)

    def _image_features(self, x: Tensor) -> Tensor:
        first = 0 if self.gate_input == "cls" else self.num_prefix_tokens
        if x.shape[1] <= first:
            raise UserError(
                f"no token to route by: {x.shape[1]} tokens, {self.gate_input!r} routing needs more than {first}"
            )
        if self.gate_input == "cls":
            return x[:, 0]
        return x[:, first:].mean(1, dtype=torch.promote_types(x.dtype, torch.float32))

    def __getstate__(self) -> dict[str, Any]:
        """Copies and pickles (EMA makes some) leave the last forward's tensors behind."""
        return {**self.__dict__, "last_selection": None}

    def extra_repr(self) -> str:
        return f"routing={self.routing}, gate_input={self.gate_input}, num_prefix_tokens={self.num_prefix_tokens}"


def is_recomputing() -> bool:
    """Whether this forward runs inside a backward, as activation checkpointing does: then it must not count again."""
    return torch._C._current_graph_task_id() != -1
