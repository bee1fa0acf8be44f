"""Bringing inputs to their experts and back: a permutation and its inverse."""

from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

# S selections of k experts each; n rows belong to one selection (all T tokens of an image, or one token).


class Order(NamedTuple):
    """The S·k assignments sorted by expert.

    Attributes:
        forward: `[R]` int64, which assignment stands at each sorted place; R is S·k less what no expert serves, or
            more where places are filled up.
        inverse: `[S·k]` int64, at which sorted place each assignment stands.
        counts: `[E]` int64, places of each expert.
    """

    forward: Tensor
    inverse: Tensor
    counts: Tensor


def sort_by_expert(expert_ids: Tensor, num_experts: int, dropless: bool = True) -> Order:
    """Stable order of the assignments `[S, k]` by expert.

    Unless it is `dropless`, E stands for an assignment that no expert serves, and the host waits to learn how many.
    """
    flat = expert_ids.flatten()
    sorted_ids, forward = flat.sort(stable=True)
    inverse = _inverse(forward, len(forward))
    ends = torch.searchsorted(sorted_ids, torch.arange(num_experts, device=flat.device), right=True)
    counts = ends.diff(prepend=ends.new_zeros(1))
    return Order(forward if dropless else forward[: int(ends[-1])], inverse, counts)


def fill_up(order: Order, expert_ids: Tensor, multiple: int) -> Order:
    """The same order, of assignments that are all served, with each expert's places filled up to a multiple.

    What fills them up is a copy of the first assignment: nobody reads its output, and its gradient is 0. The host waits
    to learn how much it is.
    """
    counts = -(-order.counts // multiple) * multiple
    filling = counts - order.counts
    inverse = order.inverse + (filling.cumsum(0) - filling)[expert_ids.flatten()]
    return Order(_inverse(inverse, int(counts.sum())), inverse, counts)


def _inverse(places: Tensor, size: int) -> Tensor:
    """Who stands at each of so many places, from the place of each; the first one where nobody does."""
    return places.new_zeros(size).scatter_(0, places, torch.arange(len(places), device=places.device))


def dispatch(x: Tensor, order: Order, top_k: int) -> Tensor:
    """Copy every input to its k experts: `[S, n, D]` to `[R, n, D]`, sorted by expert."""
    return _Dispatch.apply(x, order.forward, order.inverse, top_k)


def combine(y: Tensor, order: Order, gates: Tensor) -> Tensor:
    """Weighted sum of the experts' outputs: `[R, n, D]`, sorted by expert, and gates `[S, k]` to `[S, n, D]`."""
    return _Combine.apply(y, order.forward, order.inverse, gates)


def _unsort(rows: Tensor, forward: Tensor, inverse: Tensor) -> Tensor:
    """Rows in the order of the assignments; 0 for one that no expert serves."""
    if len(forward) >= len(inverse):
        return rows.index_select(0, inverse)
    return rows.new_zeros(len(inverse), *rows.shape[1:]).index_copy_(0, forward, rows)


class _Dispatch(torch.autograd.Function):
    """Gather forward, gather backward: neither slow nor nondeterministic as index_add would be."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, forward: Tensor, inverse: Tensor, top_k: int) -> Tensor:
        ctx.save_for_backward(forward, inverse)
        ctx.top_k = top_k
        return x.index_select(0, forward if top_k == 1 else forward // top_k)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        grad = _unsort(grad, *ctx.saved_tensors)
        if ctx.top_k > 1:
            grad = grad.unflatten(0, (-1, ctx.top_k)).sum(1)
        return grad, None, None, None


class _Combine(torch.autograd.Function):
    """Un-sort, weigh and sum in one step; what the backward needs of it is the experts' own output."""

    @staticmethod
    def forward(ctx: Any, y: Tensor, forward: Tensor, inverse: Tensor, gates: Tensor) -> Tensor:
        gates = gates.to(y.dtype)
        ctx.save_for_backward(y, forward, inverse, gates)
        weighted = _unsort(y, forward, inverse).mul_(gates.view(-1, 1, 1))
        return weighted if gates.shape[1] == 1 else weighted.unflatten(0, gates.shape).sum(1)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        y, forward, inverse, gates = ctx.saved_tensors
        top_k = gates.shape[1]
        grad_y = grad.index_select(0, forward if top_k == 1 else forward // top_k)
        grad_gates = None
        if ctx.needs_input_grad[3]:
            dots = torch.linalg.vecdot(y.flatten(1), grad_y.flatten(1))
            grad_gates = _unsort(dots, forward, inverse).view_as(gates)
        # By place, which need not be an assignment's: what fills up has no gradient.
        weights = gates.new_zeros(max(len(forward), len(inverse))).index_copy_(0, inverse, gates.flatten())
        return grad_y.mul_(weights[: len(forward)].view(-1, 1, 1)), None, None, grad_gates
