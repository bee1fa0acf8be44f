"""Stacked parameters meet the rows of their experts: four ways, one interface.

The backward passes are written out because autograd's own would fill or copy a full weight gradient for every
expert, and would add up indexed gradients, which is slow and not deterministic on CUDA; here each expert's
gradient is written once, where it belongs.
"""

from __future__ import annotations

from typing import Any, Protocol

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

# R rows, E experts; weight [E, out, in], bias [E, out], other parameters [E, H].


class Rows(Protocol):
    """How the experts' stacked parameters are applied to rows."""

    def linear(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        """`x @ weight[e].T + bias[e]` with e the expert of each row: `[R, in]` to `[R, out]`."""
        ...

    def expand(self, parameter: Tensor) -> Tensor:
        """`parameter[e]` for each row: `[E, H]` to `[R, H]`, or to `[H]` where all rows are one expert's."""
        ...


class RowsOfOne:
    """All rows belong to one expert: plain torch operations."""

    def __init__(self, expert: int) -> None:
        self.expert = expert

    def linear(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        return F.linear(x, weight[self.expert], None if bias is None else bias[self.expert])

    def expand(self, parameter: Tensor) -> Tensor:
        return parameter[self.expert]


class LoopRows:
    """All rows belong to one expert, and the others' rows follow: any device and float dtype, no double backward.

    All experts of one forward share `slices`.
    """

    def __init__(self, expert: int, slices: Slices) -> None:
        self.expert = expert
        self.slices = slices

    def linear(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        dtype = autocast_dtype(x) or x.dtype
        weights, gradient = self.slices.of_weight(weight, autocast_dtype(x))
        own_bias = None if bias is None else self.slices.of(bias)[self.expert].to(dtype)
        return _LoopLinear.apply(x.to(dtype), weights[self.expert], own_bias, gradient, self.expert)

    def expand(self, parameter: Tensor) -> Tensor:
        return self.slices.of(parameter)[self.expert]


class Slices:
    """Stacked parameters taken apart into those of each expert, once in a forward."""

    def __init__(self) -> None:
        self._taken: dict[int, tuple[Tensor, ...]] = {}
        self._gradients: dict[int, _StackedGradient] = {}

    def of(self, parameter: Tensor) -> tuple[Tensor, ...]:
        """`[E, H]` to E times `[H]`."""
        if id(parameter) not in self._taken:
            self._taken[id(parameter)] = parameter.unbind(0)
        return self._taken[id(parameter)]

    def of_weight(self, weight: Tensor, dtype: torch.dtype | None) -> tuple[tuple[Tensor, ...], _StackedGradient]:
        """`[E, out, in]` to E times `[out, in]` in `dtype` (None keeps its own), and where their gradients go."""
        if id(weight) not in self._taken:
            cast = weight if dtype is None else weight.to(dtype)
            gradient = _StackedGradient(cast)
            self._taken[id(weight)] = _Unstack.apply(cast, gradient)
            self._gradients[id(weight)] = gradient
        return self._taken[id(weight)], self._gradients[id(weight)]


class GroupedRows:
    """`torch.nn.functional.grouped_mm`: one kernel for all experts and no host synchronisation.

    fp32, bf16 and fp16; every width must fill whole 16-byte units; no double backward. `ends` are `[E]` int32, the row
    at which each expert ends.
    """

    def __init__(self, ends: Tensor, num_rows: int) -> None:
        self.ends = ends
        self.num_rows = num_rows

    def linear(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        x, weight, bias = _autocast(x, weight, bias)
        # Its backward refuses the stride 0 of an expanded gradient; `combine` hands back whole ones.
        out = F.grouped_mm(x, weight.transpose(1, 2), offs=self.ends)
        return out if bias is None else out + self.expand(bias)

    def expand(self, parameter: Tensor) -> Tensor:
        return _GroupedExpand.apply(parameter, self.ends, self.num_rows)


class GatheredRows:
    """Each selection multiplies its rows with a copy of its own expert's weights: plain torch operations.

    `expert_ids` are `[S]` int64, and each selection has `rows_each` rows.
    """

    def __init__(self, expert_ids: Tensor, rows_each: int) -> None:
        self.expert_ids = expert_ids
        self.rows_each = rows_each

    def linear(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        rows = x.reshape(self.expert_ids.shape[0], self.rows_each, x.shape[-1])
        out = torch.bmm(rows, weight[self.expert_ids].transpose(1, 2))
        out = out if bias is None else out + bias[self.expert_ids].unsqueeze(1).to(out.dtype)
        return out.flatten(0, 1)

    def expand(self, parameter: Tensor) -> Tensor:
        return parameter[self.expert_ids].repeat_interleave(self.rows_each, 0)


def autocast_dtype(x: Tensor) -> torch.dtype | None:
    """What autocast would multiply `x` in; None where it leaves `x` alone, as it does with fp64."""
    device = x.device.type
    if x.dtype == torch.float64 or not torch.is_autocast_enabled(device):
        return None
    return torch.get_autocast_dtype(device)


def _autocast(x: Tensor, weight: Tensor, bias: Tensor | None) -> tuple[Tensor, Tensor, Tensor | None]:
    """What autocast does for `F.linear`; custom autograd functions have to ask for it."""
    dtype = autocast_dtype(x)
    if dtype is None:
        return x, weight, bias
    return x.to(dtype), weight.to(dtype), None if bias is None else bias.to(dtype)


class _StackedGradient:
    """One tensor for the gradients of all experts' weights, made when the backward first asks for it."""

    def __init__(self, weight: Tensor) -> None:
        self._shape, self._dtype, self._device = weight.shape, weight.dtype, weight.device
        self._stacked: Tensor | None = None

    def of(self, expert: int) -> Tensor:
        """Where the gradient of this expert's weight is to be written."""
        if self._stacked is None:
            self._stacked = torch.empty(self._shape, dtype=self._dtype, device=self._device)
        return self._stacked[expert]

    def gather(self, parts: tuple[Tensor | None, ...]) -> Tensor:
        """All of them: what was written here already, what autograd brings from elsewhere, 0 for what never came."""
        for expert, part in enumerate(parts):
            here = self.of(expert)
            if part is None:
                here.zero_()
            elif part.data_ptr() != here.data_ptr():
                here.copy_(part)
        stacked, self._stacked = self._stacked, None
        assert stacked is not None
        return stacked


class _Unstack(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, weight: Tensor, gradient: _StackedGradient) -> tuple[Tensor, ...]:
        ctx.gradient = gradient
        ctx.set_materialize_grads(False)
        return weight.unbind(0)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor | None) -> tuple[Tensor, None]:
        return ctx.gradient.gather(grads), None


class _LoopLinear(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None, gradient: _StackedGradient, expert: int
    ) -> Tensor:
        ctx.save_for_backward(x, weight)
        ctx.gradient, ctx.expert = gradient, expert
        return F.linear(x, weight, bias)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, weight = ctx.saved_tensors
        need_x, need_weight, need_bias = ctx.needs_input_grad[:3]
        grad_weight = torch.mm(grad.t(), x, out=ctx.gradient.of(ctx.expert)) if need_weight else None
        return grad @ weight if need_x else None, grad_weight, grad.sum(0) if need_bias else None, None, None


class _GroupedExpand(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, parameter: Tensor, ends: Tensor, num_rows: int) -> Tensor:
        ctx.save_for_backward(ends)
        rows = torch.arange(num_rows, device=ends.device, dtype=ends.dtype)
        return parameter[torch.searchsorted(ends, rows, right=True)]

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        (ends,) = ctx.saved_tensors
        # A sum over each expert's rows, as a product with ones: grouped_mm wants 16 bytes of them.
        ones = grad.new_ones(grad.shape[0], 16).t()
        return F.grouped_mm(ones, grad.contiguous(), offs=ends)[:, 0], None, None
