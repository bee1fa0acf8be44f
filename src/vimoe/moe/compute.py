"""Five ways to compute Σ_i gate_i · E_i(x), equal in value and in every gradient.

- `reference`: one token and one expert at a time; slow and obvious, the oracle for the others.
- `loop`: sort by expert, one expert after the other, un-sort; any device and dtype. In inference, idle experts are left
  out, and few selections are computed one by one, without sorting.
- `grouped`: the same with one grouped product for all experts; the host never waits for the device.
- `dense`: every expert for every input, no shape that depends on data; for counting, and export under token routing.
- `gathered`: each selection multiplies with a copy of its own expert's weights; no shape that depends on data and no
  needless multiply-adds; for few selections of many rows: export and small batches under image routing.
"""

from collections.abc import Callable
from functools import reduce
from operator import add
from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.utils.module_tracker import ModuleTracker

from vimoe.moe.dispatch import Order, combine, dispatch, fill_up, sort_by_expert
from vimoe.moe.rows import GatheredRows, GroupedRows, Rows, RowsOfOne, autocast_dtype, loop_in_groups

# S selections, k experts chosen for each, n rows a selection, E experts, D width, R rows in all.

Backend = Literal["auto", "reference", "loop", "grouped", "dense", "gathered"]
FeedForward = Callable[[Tensor, Rows], Tensor]

# Up to so many selections, inference neither sorts them nor copies rows: the products are all that takes time.
FEW = 8
# Rows of an expert that are worth telling apart by their sixteenths.
SHORT = 256


def compute_experts(
    feed_forward: FeedForward,
    num_experts: int,
    backend: Backend,
    x: Tensor,
    expert_ids: Tensor,
    gates: Tensor,
    dropless: bool = True,
) -> Tensor:
    """Send every input to its experts and add up what they answer.

    Args:
        feed_forward: `[R, D]` rows and their experts to `[R, D]`.
        num_experts: Number of experts E.
        backend: One of the five above; `auto` takes `grouped` on CUDA in bf16 and fp16, else `loop`. In inference
            with few selections of several rows it takes `gathered` on CUDA and in compiled code.
            In exported and traced graphs `gathered` replaces all others where a selection has several rows, and
            `dense` where it has one; on the meta device `dense` does. torch.compile runs `loop` for `grouped` in a
            dtype in which it cannot trace `grouped_mm`.
        x: `[S, n, D]`: S selections of n rows each.
        expert_ids: `[S, k]` int64; E stands for no expert.
        gates: `[S, k]`, 0 where there is no expert.
        dropless: Whether every assignment has an expert.

    Returns:
        `[S, n, D]`.
    """
    way = _WAYS[_pick_backend(backend, x)]
    if way is _grouped and not dropless:
        way = _grouped_some
    return way(feed_forward, num_experts, x, expert_ids, gates, dropless)


def _pick_backend(backend: Backend, x: Tensor) -> Backend:
    # The others sort by choices: weightless there are none, and in a traced graph one input's would hold for all.
    if x.device.type == "meta":
        return "dense"
    if is_exporting() and backend not in ("dense", "gathered"):
        return "gathered" if x.shape[1] > 1 else "dense"
    half = _in_half_precision(x)
    if backend == "auto":
        few = x.shape[0] <= FEW and x.shape[1] > 1 and not torch.is_grad_enabled()
        if few and (x.is_cuda or torch.compiler.is_compiling()):
            return "gathered"
        return "grouped" if x.is_cuda and half and x.shape[-1] % 8 == 0 else "loop"
    if backend == "grouped" and not half and torch.compiler.is_compiling() and not _grouped_mm_traces_fp32():
        return "loop"
    return backend


def _in_half_precision(x: Tensor) -> bool:
    """Whether `x` is multiplied in bf16 or fp16, its own dtype or autocast's."""
    return (autocast_dtype(x) or x.dtype) in (torch.bfloat16, torch.float16)


def is_exporting() -> bool:
    """Whether this forward is only looked at, by `torch.export` or `torch.jit.trace`."""
    return torch.compiler.is_exporting() or torch.jit.is_tracing()  # type: ignore[attr-defined]


_TRACKER = ModuleTracker()


def is_recomputing() -> bool:
    """Whether this forward runs inside a backward, as activation checkpointing does: then it must not count again."""
    return not torch.compiler.is_compiling() and _TRACKER.is_bw


@torch.compiler.assume_constant_result  # type: ignore[untyped-decorator]
def _grouped_mm_traces_fp32() -> bool:
    """Whether this torch knows the shapes of `grouped_mm` in fp32 without computing it (2.14 does not)."""
    x, weight = torch.empty(4, 4, device="meta"), torch.empty(1, 4, 4, device="meta")
    try:
        F.grouped_mm(x, weight, offs=torch.empty(1, dtype=torch.int32, device="meta"))
    except RuntimeError:
        return False
    return True


def _reference(
    feed_forward: FeedForward, num_experts: int, x: Tensor, expert_ids: Tensor, gates: Tensor, dropless: bool
) -> Tensor:
    outputs = []
    for selection, ids, weights in zip(x, expert_ids.tolist(), gates, strict=True):
        for row in selection:
            pairs = [(feed_forward(row[None], RowsOfOne(e))[0], w) for e, w in zip(ids, weights) if e < num_experts]
            outputs.append(sum(w.to(y.dtype) * y for y, w in pairs) if pairs else torch.zeros_like(row))
    return torch.stack(outputs).view(x.shape) if outputs else x * gates.sum().to(x.dtype)


# Compiled code would be traced anew for every set of counts (torch 2.15 even fails on the second one).
@torch.compiler.disable  # type: ignore[untyped-decorator]
def _loop(
    feed_forward: FeedForward, num_experts: int, x: Tensor, expert_ids: Tensor, gates: Tensor, dropless: bool
) -> Tensor:
    if expert_ids.numel() <= FEW and dropless and not torch.is_grad_enabled():
        return _one_by_one(feed_forward, x, expert_ids, gates)
    rows, counts, order = rows_by_expert(x, expert_ids, num_experts, dropless)
    if torch.is_grad_enabled():
        y = loop_in_groups(feed_forward, rows, counts)
    else:  # Expert by expert through the whole FFN: what an expert's rows become stays in the cache.
        parts = enumerate(rows.split(counts))
        y = torch.cat([feed_forward(part, RowsOfOne(e)) for e, part in parts if len(part)] or [rows])
    return combine(y.view(-1, x.shape[1], y.shape[-1]), order, gates)


def rows_by_expert(x: Tensor, expert_ids: Tensor, num_experts: int, dropless: bool) -> tuple[Tensor, list[int], Order]:
    """All experts' rows `[R, D]` one expert after the other, how many each has, and the order to `combine` them by."""
    order = sort_by_expert(expert_ids, num_experts, dropless)
    multiple = _fill_to(x, expert_ids.numel() // num_experts)
    if dropless and multiple > 1:
        order = fill_up(order, expert_ids, multiple)
    rows = dispatch(x, order, expert_ids.shape[1]).flatten(0, 1)
    return rows, [count * x.shape[1] for count in order.counts.tolist()], order


def _fill_to(x: Tensor, mean: int) -> int:
    """The multiple to which each expert's selections are filled up, where experts have so many on average.

    In half precision on a CPU, oneDNN compiles a product for each number of rows that it does not know, which takes ten
    times as long as the product, and it knows the last 1,024. By multiples of a sixteenth of the mean there are few.
    """
    if x.device.type != "cpu" or not _in_half_precision(x):
        return 1
    sixteenth = max(mean, SHORT // x.shape[1]) // 16
    return 1 << max(sixteenth.bit_length() - 1, 0)


def _one_by_one(feed_forward: FeedForward, x: Tensor, expert_ids: Tensor, gates: Tensor) -> Tensor:
    outputs = [
        reduce(add, (gate * feed_forward(rows, RowsOfOne(e)) for e, gate in zip(ids, weights, strict=True)))
        for rows, ids, weights in zip(x, expert_ids.tolist(), gates, strict=True)
    ]
    return torch.stack(outputs) if outputs else x


def _grouped(
    feed_forward: FeedForward, num_experts: int, x: Tensor, expert_ids: Tensor, gates: Tensor, dropless: bool
) -> Tensor:
    order = sort_by_expert(expert_ids, num_experts, dropless)
    y = dispatch(x, order, expert_ids.shape[1])
    ends = order.counts.cumsum(0) * x.shape[1]
    out = feed_forward(y.flatten(0, 1), GroupedRows(ends.to(torch.int32), y.shape[0] * y.shape[1]))
    return combine(out.view(y.shape[0], y.shape[1], out.shape[-1]), order, gates)


# Compiled code would be traced anew for every number of assignments that are served.
_grouped_some = torch.compiler.disable(_grouped)


def _dense(
    feed_forward: FeedForward, num_experts: int, x: Tensor, expert_ids: Tensor, gates: Tensor, dropless: bool
) -> Tensor:
    weights = gates.new_zeros(gates.shape[0], num_experts + 1).scatter_add(1, expert_ids, gates)
    outputs = []
    for e in range(num_experts):
        y = feed_forward(x.flatten(0, 1), RowsOfOne(e)).unflatten(0, (x.shape[0], x.shape[1]))
        outputs.append(y * weights[:, e, None, None].to(y.dtype))
    return torch.stack(outputs).sum(0)


def _gathered(
    feed_forward: FeedForward, num_experts: int, x: Tensor, expert_ids: Tensor, gates: Tensor, dropless: bool
) -> Tensor:
    top_k = expert_ids.shape[1]
    rows = x if top_k == 1 else x.repeat_interleave(top_k, 0)
    ids = expert_ids if dropless else expert_ids.clamp(max=num_experts - 1)
    y = feed_forward(rows.flatten(0, 1), GatheredRows(ids.flatten(), x.shape[1]))
    y = y.unflatten(0, (-1, top_k, x.shape[1])) if y.shape[0] else y.reshape(0, top_k, *x.shape[1:])
    y = y * gates[..., None, None].to(y.dtype)
    return y.squeeze(1) if top_k == 1 else y.sum(1)


_WAYS: dict[str, Callable[[FeedForward, int, Tensor, Tensor, Tensor, bool], Tensor]] = {
    "reference": _reference,
    "loop": _loop,
    "grouped": _grouped,
    "dense": _dense,
    "gathered": _gathered,
}
