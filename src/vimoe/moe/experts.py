"""E feed-forward networks as stacked parameters.

An expert is a copy of the FFN it replaces: two linear maps around an activation (`fc1`, `fc2`), or gated
(`fc1` packed as in `SwiGLUPacked`, or `fc1_g` and `fc1_x`), with whatever biases, dropout and inner norm
that FFN has. Submodules keep the FFN's own names, so that `experts.fc1.weight[e]` is `ffn.fc1.weight`.
"""

import copy
from collections.abc import Sequence
from typing import get_args

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from vimoe.errors import UserError
from vimoe.moe.compute import Backend, compute_experts
from vimoe.moe.config import one_of
from vimoe.moe.rows import Rows

# S selections, k experts chosen for each, n rows a selection, E experts, D width, H hidden width, R rows in all.


class Stacked(nn.Module):
    """The `weight` and `bias` of an `nn.Linear` or `nn.LayerNorm`, copied for E experts.

    `weight` becomes `[E, out, in]` or `[E, H]`, `bias` `[E, out]` or `[E, H]`, None where the module has none.
    """

    weight: nn.Parameter
    bias: nn.Parameter | None

    def __init__(self, module: nn.Linear | nn.LayerNorm, num_experts: int) -> None:
        super().__init__()
        for name in ("weight", "bias"):
            value = getattr(module, name)
            if value is not None:
                stacked = value.detach().expand(num_experts, *value.shape).clone()
                value = nn.Parameter(stacked, requires_grad=value.requires_grad)
            self.register_parameter(name, value)

    def extra_repr(self) -> str:
        return f"weight={list(self.weight.shape)}, bias={self.bias is not None}"


def check_ffn(ffn: nn.Module) -> None:
    """Accept an FFN that can be copied into experts.

    Raises UserError if it is not a two-matrix or gated FFN of `nn.Linear`s.
    """
    linears = ("fc1_g", "fc1_x", "fc2") if hasattr(ffn, "fc1_g") else ("fc1", "fc2")
    children = dict(ffn.named_children())
    if not (
        all(isinstance(children.get(name), nn.Linear) for name in linears)
        and "act" in children
        and set(children) <= {*linears, "act", "drop1", "norm", "drop2"}
        and isinstance(children.get("norm"), nn.Identity | nn.LayerNorm | None)
        and not any(True for _ in children["act"].parameters())
    ):
        raise UserError(
            f"an FFN of type {type(ffn).__name__} cannot become experts: supported are two linear layers "
            "fc1/fc2 around an activation, and SwiGLU (packed fc1, or fc1_g/fc1_x)"
        )


class Experts(nn.Module):
    """E copies of an FFN.

    Args:
        ffn: The FFN to copy (see `check_ffn`); its dropout and activation are taken over.
        scale: Factor on the copies' output (on the weight and bias of `fc2`).
        backend: How to compute them, see `vimoe.moe.compute`.

    Raises UserError if the FFN or the backend is not one we know.
    """

    fc1: Stacked
    fc1_g: Stacked
    fc1_x: Stacked
    act: nn.Module
    norm: Stacked
    fc2: Stacked

    def __init__(self, ffn: nn.Module, num_experts: int, scale: float = 1.0, backend: Backend = "auto") -> None:
        super().__init__()
        check_ffn(ffn)
        one_of("backend", backend, get_args(Backend))
        self.num_experts = num_experts
        self.backend: Backend = backend
        for name, child in ffn.named_children():
            if isinstance(child, nn.Linear | nn.LayerNorm):
                self.add_module(name, Stacked(child, num_experts))
            else:
                self.add_module(name, copy.deepcopy(child))
        with torch.no_grad():
            for parameter in self.fc2.parameters():
                parameter.mul_(scale)
        self.norm_eps: float | None = getattr(getattr(ffn, "norm", None), "eps", None)
        self.unpacked = hasattr(ffn, "fc1_g")
        self.packed = not self.unpacked and self.fc1.weight.shape[1] != self.fc2.weight.shape[2]
        self.gate_last: bool = getattr(ffn, "gate_last", False)
        # A tuple hides the weightless skeleton from torch: it is the form to give an expert back in, not a submodule.
        self._skeleton = (_without_storage(ffn),)
        self.train(ffn.training)

    def forward(self, x: Tensor, expert_ids: Tensor, gates: Tensor) -> Tensor:
        """Σ_i gate_i · E_i(x), `[S, n, D]` for S selections of n rows; ids (int64) and gates are `[S, k]`."""
        return compute_experts(self.feed_forward, self.num_experts, self.backend, x, expert_ids, gates)

    def feed_forward(self, x: Tensor, rows: Rows) -> Tensor:
        """The FFN's own arithmetic on `x` `[R, D]`; `rows` says which expert each row belongs to."""
        if self.unpacked:
            gate = rows.linear(x, self.fc1_g.weight, self.fc1_g.bias)
            hidden = self.act(gate) * rows.linear(x, self.fc1_x.weight, self.fc1_x.bias)
        else:
            hidden = rows.linear(x, self.fc1.weight, self.fc1.bias)
            if self.packed:
                first, second = hidden.chunk(2, dim=-1)
                hidden = first * self.act(second) if self.gate_last else self.act(first) * second
            else:
                hidden = self.act(hidden)
        hidden = self._drop("drop1", hidden)
        if self.norm_eps is not None:
            hidden = F.layer_norm(hidden, hidden.shape[-1:], eps=self.norm_eps)
            hidden = hidden if self.norm.weight is None else hidden * rows.expand(self.norm.weight)
            hidden = hidden if self.norm.bias is None else hidden + rows.expand(self.norm.bias)
        out = rows.linear(hidden, self.fc2.weight, self.fc2.bias)
        return self._drop("drop2", out)

    def _drop(self, name: str, x: Tensor) -> Tensor:
        dropout = self._modules.get(name)
        return x if dropout is None else dropout(x)

    def keep(self, experts: Sequence[int]) -> None:
        """Remove all experts but these, in place; the kept ones take the given order."""
        for module in self.modules():
            for name, parameter in list(module.named_parameters(recurse=False)):
                kept = parameter.detach()[list(experts)]
                setattr(module, name, nn.Parameter(kept, requires_grad=parameter.requires_grad))
        self.num_experts = len(experts)

    def to_ffn(self, weights: Tensor) -> nn.Module:
        """A plain FFN whose parameters are the sum of the experts' by `weights` `[E]`; one-hot gives back an expert."""
        ffn = copy.deepcopy(self._skeleton[0])
        for path, _ in list(ffn.named_parameters()):
            stacked = self.get_parameter(path)
            mixed = torch.einsum("e,e...->...", weights.to(stacked), stacked.detach())
            owner, _, name = path.rpartition(".")
            setattr(ffn.get_submodule(owner), name, nn.Parameter(mixed, requires_grad=stacked.requires_grad))
        return ffn.train(self.training)

    def extra_repr(self) -> str:
        return f"num_experts={self.num_experts}, backend={self.backend}"


def _without_storage(ffn: nn.Module) -> nn.Module:
    """A copy on the meta device, made without first copying the weights."""
    memo = {id(p): nn.Parameter(p.detach().to("meta"), requires_grad=p.requires_grad) for p in ffn.parameters()}
    return copy.deepcopy(ffn, memo)
