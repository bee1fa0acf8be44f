"""E feed-forward networks as stacked parameters.

An expert is a copy of the FFN it replaces: two linear maps around an activation (`fc1`, `fc2`), or gated
(`fc1` packed as in `SwiGLUPacked`, or `fc1_g` and `fc1_x`), with whatever biases, dropout and inner norm
that FFN has. Submodules keep the FFN's own names, so that `experts.fc1.weight[e]` is `ffn.fc1.weight`.
"""

import copy
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, Self, get_args

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from vimoe.errors import UserError
from vimoe.moe.compute import Backend, compute_experts
from vimoe.moe.config import one_of
from vimoe.moe.expert_merging import merged_experts
from vimoe.moe.low_rank import LowRank
from vimoe.moe.rows import Rows
from vimoe.moe.slices import join_slices, redraw_units, take_slice

# S selections, k experts chosen for each, n rows a selection, E experts, D width, H hidden width, R rows in all.


class Stacked(nn.Module):
    """The `weight` and `bias` of an `nn.Linear` or `nn.LayerNorm`, copied for E experts.

    `weight` becomes `[E, out, in]` or `[E, H]`, `bias` `[E, out]` or `[E, H]`, None where the module has none. `cut`
    gives the parts of a parameter by its name, which the experts take in turn.
    """

    weight: nn.Parameter
    bias: nn.Parameter | None

    def __init__(
        self,
        module: nn.Linear | nn.LayerNorm,
        num_experts: int,
        cut: Callable[[str, Tensor], list[Tensor]] = lambda _, value: [value],
    ) -> None:
        super().__init__()
        for name in ("weight", "bias"):
            value = getattr(module, name)
            if value is not None:
                parts = torch.stack(cut(name, value.detach()))
                order = torch.arange(num_experts, device=value.device) % len(parts)
                value = nn.Parameter(parts[order], requires_grad=value.requires_grad)
            self.register_parameter(name, value)

    def forward(self, x: Tensor, rows: Rows) -> Tensor:
        """The linear map of each row's expert: `[R, in]` to `[R, out]`."""
        return rows.linear(x, self.weight, self.bias)

    def mixed(self, weights: Tensor) -> dict[str, nn.Parameter]:
        """`weight` and `bias` of the weighted sum of the experts; `weights` is `[E]`."""
        return {
            name: nn.Parameter(
                torch.einsum("e,e...->...", weights.to(value), value.detach()), requires_grad=value.requires_grad
            )
            for name, value in self.named_parameters()
        }

    def extra_repr(self) -> str:
        return f"weight={list(self.weight.shape)}, bias={self.bias is not None}"


def check_ffn(ffn: nn.Module, granularity: int = 1) -> None:
    """Accept an FFN that can be copied into experts, or cut into so many slices.

    Raises UserError if it is not a two-matrix or gated FFN of `nn.Linear`s, or cannot be cut so.
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
    fc2: Any = children["fc2"]
    hidden = fc2.in_features
    if granularity > 1 and isinstance(children.get("norm"), nn.LayerNorm):
        raise UserError("granularity must be 1: this model's FFNs have a norm over all their hidden units")
    if hidden % granularity:
        raise UserError(f"granularity must divide the {hidden} hidden units of this model's FFNs, got {granularity}")


def is_packed(ffn: nn.Module) -> bool:
    """Whether `fc1` of an FFN holds a gate beside its map."""
    first, second = getattr(ffn, "fc1", None), ffn.get_submodule("fc2")
    return isinstance(first, nn.Linear) and first.out_features != second.in_features


class Experts(nn.Module):
    """E copies of an FFN, or slices of copies, or low-rank differences from it.

    Args:
        ffn: The FFN to copy (see `check_ffn`); its dropout and activation are taken over.
        scale: Factor on the experts' output (on the weight and bias of `fc2`).
        backend: How to compute them, see `vimoe.moe.compute`.
        granularity: m: expert e is slice e mod m of a copy's hidden units. A slice is scaled up by m, so that the mean
            of all slices is the copy.
        drop_share: Share of each expert's hidden units that is drawn anew.
        rank: Rank of the differences; 0 for experts of their own, else the FFN stays the shared expert's.
        dropout: Rate of dropout on the hidden units instead of the FFN's own; 0 keeps that.

    Raises UserError if the FFN or the backend is not one we know, or the FFN cannot be cut so.
    """

    fc1: Stacked | LowRank
    fc1_g: Stacked | LowRank
    fc1_x: Stacked | LowRank
    act: nn.Module
    norm: Stacked
    fc2: Stacked | LowRank
    slice_of: Tensor | None

    def __init__(
        self,
        ffn: nn.Module,
        num_experts: int,
        scale: float = 1.0,
        backend: Backend = "auto",
        *,
        granularity: int = 1,
        drop_share: float = 0.0,
        rank: int = 0,
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        check_ffn(ffn, granularity)
        one_of("backend", backend, get_args(Backend))
        self.num_experts = num_experts
        self.granularity = granularity
        self.backend: Backend = backend
        self.unpacked = hasattr(ffn, "fc1_g")
        self.packed = is_packed(ffn)
        for name, child in ffn.named_children():
            if isinstance(child, nn.Linear) and rank:
                self.add_module(name, LowRank(child, num_experts, rank, based=name != "fc2"))
            elif isinstance(child, nn.Linear | nn.LayerNorm):
                self.add_module(name, Stacked(child, num_experts, partial(self._cut, name)))
            else:
                self.add_module(name, copy.deepcopy(child))
        if isinstance(self.fc2, Stacked):
            if drop_share:
                redraw_units(dict(self.named_parameters()), drop_share, self.packed)
            with torch.no_grad():
                self.fc2.weight.mul_(scale * granularity)
                if self.fc2.bias is not None:
                    self.fc2.bias.mul_(scale)
        if dropout:
            self.drop1 = nn.Dropout(dropout)
        # Of floats, as all of a model's buffers: it is cast and saved with the weights.
        numbers = torch.arange(num_experts, device=next(ffn.parameters()).device) % granularity
        self.register_buffer("slice_of", numbers * 1.0 if granularity > 1 else None)
        self.norm_eps: float | None = getattr(getattr(ffn, "norm", None), "eps", None)
        self.gate_last: bool = getattr(ffn, "gate_last", False)
        # A tuple hides the weightless skeleton from torch: it is the form to give an expert back in, not a submodule.
        self._skeleton = (_without_storage(ffn),)
        self.train(ffn.training)

    def _cut(self, module: str, name: str, value: Tensor) -> list[Tensor]:
        m = self.granularity
        return [take_slice(f"{module}.{name}", value, number, m, self.packed) for number in range(m)]

    def forward(self, x: Tensor, expert_ids: Tensor, gates: Tensor, dropless: bool = True) -> Tensor:
        """Σ_i gate_i · E_i(x), `[S, n, D]` for S selections of n rows; ids (int64) and gates are `[S, k]`.

        Unless it is `dropless`, the id E stands for no expert.
        """
        return compute_experts(self.feed_forward, self.num_experts, self.backend, x, expert_ids, gates, dropless)

    def feed_forward(self, x: Tensor, rows: Rows) -> Tensor:
        """The FFN's own arithmetic on `x` `[R, D]`; `rows` says which expert each row belongs to."""
        if self.unpacked:
            hidden = self.act(self.fc1_g(x, rows)) * self.fc1_x(x, rows)
        else:
            hidden = self.fc1(x, rows)
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
        return self._drop("drop2", self.fc2(hidden, rows))

    def _drop(self, name: str, x: Tensor) -> Tensor:
        dropout = self._modules.get(name)
        return x if dropout is None else dropout(x)

    def keep(self, experts: Sequence[int]) -> None:
        """Remove all experts but these, in place; the kept ones take the given order."""
        for module in self.modules():
            for name, parameter in list(module.named_parameters(recurse=False)):
                kept = parameter.detach()[list(experts)]
                setattr(module, name, nn.Parameter(kept, requires_grad=parameter.requires_grad))
        self.slice_of = None if self.slice_of is None else self.slice_of[list(experts)]
        self.num_experts = len(experts)

    @torch.no_grad()
    def merge(self, kept: Sequence[int], load: Tensor) -> list[int]:
        """Merge all experts into these, in place, and say which place each of the E went to (see `merged_experts`)."""
        merged, places = merged_experts(dict(self.named_parameters()), kept, load, self.packed)
        self.keep(kept)
        for name, parameter in self.named_parameters():
            parameter.copy_(merged[name])
        return places

    def to_ffn(self, weights: Tensor) -> nn.Module:
        """A plain FFN whose parameters are the sum of the experts' by `weights` `[E]`; one-hot gives back an expert.

        Raises UserError if a slice of the FFN is in none of the experts.
        """
        ffn, parts = copy.deepcopy(self._skeleton[0]), self._by_slice(weights)
        for path, _ in list(ffn.named_parameters()):
            owner, _, name = path.rpartition(".")
            map_of_experts: Any = self.get_submodule(owner)
            mixed = [map_of_experts.mixed(part)[name] for part in parts]
            whole = join_slices(path, [value.detach() for value in mixed], self.packed)
            whole = whole / self.granularity if path == "fc2.weight" and self.granularity > 1 else whole
            setattr(ffn.get_submodule(owner), name, nn.Parameter(whole, requires_grad=mixed[0].requires_grad))
        return ffn.train(self.training)

    def _by_slice(self, weights: Tensor) -> list[Tensor]:
        """For each slice the weights of the experts that hold it; all of them count alike if none has a weight."""
        if self.slice_of is None:
            return [weights]
        self.check_whole()
        parts = []
        for number in range(self.granularity):
            held = (self.slice_of == number).to(weights)
            part = weights * held if (weights * held).any() else held
            parts.append(part / part.sum() * weights.sum())
        return parts

    def check_whole(self) -> None:
        """Raise a `UserError` where the experts that are left hold no longer every slice of an FFN."""
        if self.slice_of is not None and self.slice_of.unique().numel() < self.granularity:
            raise UserError("the experts left hold only some slices of the FFN: they cannot become a plain FFN again")

    def materialised(self) -> Self:
        """The same experts with whole maps of their own instead of low-rank differences."""
        experts = type(self)(self.to_ffn(torch.ones(self.num_experts)), self.num_experts, backend=self.backend)
        with torch.no_grad():
            for name, module in self.named_children():
                values = module.dense() if isinstance(module, LowRank) else dict(module.named_parameters())
                for part, value in values.items():
                    experts.get_submodule(name).get_parameter(part).copy_(value)
        if "drop1" in self._modules:
            experts.drop1 = copy.deepcopy(self.drop1)
        return experts.train(self.training)

    def extra_repr(self) -> str:
        return f"num_experts={self.num_experts}, backend={self.backend}"


def _without_storage(ffn: nn.Module) -> nn.Module:
    """A copy on the meta device, made without first copying the weights."""
    memo = {id(p): nn.Parameter(p.detach().to("meta"), requires_grad=p.requires_grad) for p in ffn.parameters()}
    return copy.deepcopy(ffn, memo)
