"""The MoE layer: what stands where a block's FFN stood."""

import weakref
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from vimoe.errors import UserError
from vimoe.moe.compute import Backend, is_exporting, is_recomputing
from vimoe.moe.config import GateInput, MoEConfig, Routing
from vimoe.moe.experts import Experts
from vimoe.moe.make_router import make_router
from vimoe.moe.router import Router, Selection

# B images, T tokens (prefix tokens first, then patches), D width, S selections: B or B·T.


class MoELayer(nn.Module):
    """`y = Σ_i gate_i · E_i(x) + E_shared(x)`.

    Args:
        ffn: The FFN to replace; it becomes the shared expert itself, and its copies the routed ones.
        config: The model's MoE settings.
        num_experts: Number of routed experts E of this layer.
        num_prefix_tokens: How many tokens come before the patches.
        backend: How to compute the experts, see `vimoe.moe.compute`.
        leader: The router of another layer that decides for this one too (`router_scope="model"`).

    Attributes:
        last_selection: What the router decided in the last forward; None before the first, and where nothing is chosen.
        uncounted: Training forwards since the last backward or the last loss of the routing; 0 under torch.compile.
    """

    def __init__(
        self,
        ffn: nn.Module,
        config: MoEConfig,
        *,
        num_experts: int,
        num_prefix_tokens: int,
        backend: Backend = "auto",
        leader: Router | None = None,
    ) -> None:
        super().__init__()
        self.experts = Experts(
            ffn,
            num_experts,
            config.routed_share,
            backend,
            granularity=config.granularity,
            drop_share=config.drop_share if config.init == "drop" else 0.0,
            rank=config.expert_rank,
            dropout=config.expert_dropout,
        )
        last: Any = ffn.get_submodule("fc2")
        router = make_router(config, last.out_features, num_experts, leader)
        self.router = router.to(last.weight.device, last.weight.dtype)
        self.shared_expert: nn.Module | None = None
        if config.shared_expert:
            self.shared_expert = ffn
            with torch.no_grad():
                for parameter in last.parameters():
                    parameter.mul_(config.shared_share)
        self.routing: Routing = config.routing
        self.gate_input: GateInput = config.gate_input
        self.num_prefix_tokens = num_prefix_tokens
        self.last_selection: Selection | None = None
        self.uncounted = 0
        self.train(ffn.training)

    def forward(self, x: Tensor) -> Tensor:
        """`[B, T, D]` to `[B, T, D]`.

        Raises UserError if the input has another shape, or holds no token to route by.
        """
        if x.ndim != 3:
            raise UserError(f"an MoE layer takes [batch, tokens, width], got a shape of {tuple(x.shape)}")
        per_token = self.routing == "token"
        routed = self.router(x if per_token else self._image_features(x)[:, None])
        again = is_exporting() or is_recomputing()
        if isinstance(routed, Selection) and not again:
            self._note(routed)
        rows = x.flatten(0, 1)[:, None] if per_token else x
        y = self.router.send(rows, routed, self.experts).view_as(x)
        return y if self.shared_expert is None else y + self.shared_expert(x)

    def _note(self, selection: Selection) -> None:
        self.last_selection = selection
        if self.training and torch.is_grad_enabled():
            self.router.count(selection)
        if self.training and selection.gates.requires_grad and not torch.compiler.is_compiling():
            self.uncounted += 1
            selection.gates.register_hook(partial(_backward_has_passed, weakref.ref(self)))

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
        return {**self.__dict__, "last_selection": None, "uncounted": 0}

    def extra_repr(self) -> str:
        return f"routing={self.routing}, gate_input={self.gate_input}, num_prefix_tokens={self.num_prefix_tokens}"


def moe_modules(model: nn.Module) -> dict[str, MoELayer]:
    """The MoE layers of a model by their full names, in order. Raises UserError if it is no torch module."""
    if not isinstance(model, nn.Module):
        raise UserError(f"the model must be a torch module, got {type(model).__name__}")
    return {name: module for name, module in model.named_modules() if isinstance(module, MoELayer)}


def _backward_has_passed(layer: weakref.ref[MoELayer], _gradient: Tensor) -> None:
    if (alive := layer()) is not None:
        alive.uncounted = 0
