"""Stacked parameters meet the rows of their experts: four ways, one interface.

The backward passes are written out because autograd's own would fill or copy a full weight gradient for every
expert, and would add up indexed gradients, which is slow and not deterministic on CUDA; here each expert's
gradient is written once, where it belongs.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, Protocol

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

# Bytes of rows that a group of experts takes at once: with the hidden ones, which are four times as many, about what
# the second level of a CPU's cache holds.
CACHED = 2**19

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
    """Rows sorted by expert, `counts` of each: one product after the other; any float dtype, no double backward.

    `own` gives these experts' part of a stacked parameter.
    """

    def __init__(self, counts: list[int], own: Callable[[Tensor], Tensor] = lambda stacked: stacked) -> None:
        self.counts = counts
        self.own = own

    def linear(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        bias = None if bias is None else self.own(bias)
        return _LoopLinear.apply(*_autocast(x, self.own(weight), bias), self.counts)

    def expand(self, parameter: Tensor) -> Tensor:
        return _LoopExpand.apply(self.own(parameter), self.counts)


def loop_in_groups(feed_forward: Callable[[Tensor, Rows], Tensor], x: Tensor, counts: list[int]) -> Tensor:
    """`feed_forward` of rows sorted by expert, `[R, D]` to `[R, D]`: neighbouring experts together while rows are few.

    A group goes through the whole FFN before the next: its hidden rows stay in the cache, and its buffers are small
    enough for the allocator to hand out again. Small experts share a group, since each operation has its price.
    """
    groups = group_experts(counts, CACHED // (x.shape[1] * x.element_size()))
    if len(groups) == 1:
        return feed_forward(x, LoopRows(counts))
    sizes, parts = [len(group) for group in groups], dict[int, tuple[Tensor, ...]]()

    def own(stacked: Tensor, group: int) -> Tensor:
        if id(stacked) not in parts:
            parts[id(stacked)] = stacked.split(sizes)
        return parts[id(stacked)][group]

    rows = x.split([sum(group) for group in groups])
    return torch.cat([feed_forward(part, LoopRows(groups[i], partial(own, group=i))) for i, part in enumerate(rows)])


def group_experts(counts: list[int], most: int) -> list[list[int]]:
    """The experts' numbers of rows in groups of at most so many rows, or of one expert; at least one group."""
    groups: list[list[int]] = [[]]
    for count in counts:
        if groups[-1] and sum(groups[-1]) + count > most:
            groups.append([])
        groups[-1].append(count)
    return groups


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


class _LoopLinear(torch.autograd.Function):
    """All products of one map in one step of autograd, each written where it belongs."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None, counts: list[int]) -> Tensor:
        ctx.save_for_backward(x, weight)
        ctx.counts = counts
        out = x.new_empty(x.shape[0], weight.shape[1])
        biases = [None] * len(counts) if bias is None else bias.unbind()
        for rows, w, b, y in zip(x.split(counts), weight.mT.unbind(), biases, out.split(counts), strict=True):
            torch.mm(rows, w, out=y) if b is None else torch.addmm(b, rows, w, out=y)
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        (x, weight), counts = ctx.saved_tensors, ctx.counts
        need_x, need_weight, need_bias = ctx.needs_input_grad[:3]
        parts = grad.split(counts)
        grad_x = grad_weight = grad_bias = None
        if need_x:
            grad_x = torch.empty_like(x)
            for part, w, y in zip(parts, weight.unbind(), grad_x.split(counts), strict=True):
                torch.mm(part, w, out=y)
        if need_weight:
            grad_weight = torch.empty_like(weight)
            for part, rows, y in zip(parts, x.split(counts), grad_weight.unbind(), strict=True):
                torch.mm(part.t(), rows, out=y)
        if need_bias:
            grad_bias = _sums(grad, counts)
        return grad_x, grad_weight, grad_bias, None


def _sums(rows: Tensor, counts: list[int]) -> Tensor:
    """`[E, H]` sums of each expert's rows."""
    return torch.stack([part.sum(0) for part in rows.split(counts)])


class _LoopExpand(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, parameter: Tensor, counts: list[int]) -> Tensor:
        ctx.counts = counts
        repeats = torch.tensor(counts, device=parameter.device)
        return parameter.repeat_interleave(repeats, 0, output_size=sum(counts))

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        return _sums(grad, ctx.counts), None


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
