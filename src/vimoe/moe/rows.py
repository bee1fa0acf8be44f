"""Stacked parameters meet rows that are sorted by expert: three ways, one interface.

The backward passes are written out because autograd's own would fill and stack a full weight gradient for
every expert, and would add up indexed gradients, which is slow and not deterministic on CUDA; here each
expert's gradient is written once, where it belongs.
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
    """All rows belong to one expert: plain torch operations.

    Args:
        expert: The expert's number.
    """

    def __init__(self, expert: int) -> None:
        self.expert = expert

    def linear(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        return F.linear(x, weight[self.expert], None if bias is None else bias[self.expert])

    def expand(self, parameter: Tensor) -> Tensor:
        return parameter[self.expert]


class LoopRows:
    """A loop of GEMMs, one an expert: any device and float dtype, no double backward.

    Args:
        counts: How many rows each expert has, E numbers that sum to R.
    """

    def __init__(self, counts: list[int]) -> None:
        self.counts = counts

    def linear(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        return _LoopLinear.apply(*_autocast(x, weight, bias), self.counts)

    def expand(self, parameter: Tensor) -> Tensor:
        return _LoopExpand.apply(parameter, self.counts)


class GroupedRows:
    """`torch.nn.functional.grouped_mm`: one kernel for all experts and no host synchronisation.

    fp32, bf16 and fp16; every width must fill whole 16-byte units; no double backward.

    Args:
        ends: `[E]` int32, the row at which each expert ends.
        num_rows: R.
    """

    def __init__(self, ends: Tensor, num_rows: int) -> None:
        self.ends = ends
        self.num_rows = num_rows

    def linear(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        x, weight, bias = _autocast(x, weight, bias)
        out = _GroupedLinear.apply(x, weight, self.ends)
        return out if bias is None else out + self.expand(bias)

    def expand(self, parameter: Tensor) -> Tensor:
        return _GroupedExpand.apply(parameter, self.ends, self.num_rows)


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
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None, counts: list[int]) -> Tensor:
        ctx.save_for_backward(x, weight)
        ctx.counts, ctx.has_bias = counts, bias is not None
        out = x.new_empty(x.shape[0], weight.shape[1])
        for e, (x_e, out_e) in enumerate(zip(x.split(counts), out.split(counts), strict=True)):
            if bias is None:
                torch.mm(x_e, weight[e].t(), out=out_e)
            else:
                torch.addmm(bias[e], x_e, weight[e].t(), out=out_e)
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, weight = ctx.saved_tensors
        need_x, need_weight, need_bias, _ = ctx.needs_input_grad
        grad_x = torch.empty_like(x) if need_x else None
        grad_weight = torch.empty_like(weight) if need_weight else None
        grad_bias = weight.new_empty(weight.shape[:2]) if ctx.has_bias and need_bias else None
        parts = zip(x.split(ctx.counts), grad.split(ctx.counts), strict=True)
        start = 0
        for e, (x_e, grad_e) in enumerate(parts):
            if grad_x is not None:
                torch.mm(grad_e, weight[e], out=grad_x[start : start + len(x_e)])
            if grad_weight is not None:
                torch.mm(grad_e.t(), x_e, out=grad_weight[e])
            if grad_bias is not None:
                torch.sum(grad_e, 0, out=grad_bias[e])
            start += len(x_e)
        return grad_x, grad_weight, grad_bias, None


class _LoopExpand(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, parameter: Tensor, counts: list[int]) -> Tensor:
        ctx.counts = counts
        repeats = torch.tensor(counts, device=parameter.device)
        return parameter.repeat_interleave(repeats, dim=0, output_size=sum(counts))

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        return torch.stack([part.sum(0) for part in grad.split(ctx.counts)]), None


class _GroupedLinear(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, ends: Tensor) -> Tensor:
        ctx.save_for_backward(x, weight, ends)
        return F.grouped_mm(x, weight.transpose(1, 2), offs=ends)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, weight, ends = ctx.saved_tensors
        need_x, need_weight, _ = ctx.needs_input_grad
        grad = grad.contiguous()  # grouped_mm refuses the stride 0 of an expanded gradient
        grad_x = F.grouped_mm(grad, weight, offs=ends) if need_x else None
        grad_weight = F.grouped_mm(grad.t(), x, offs=ends) if need_weight else None
        return grad_x, grad_weight, None


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
