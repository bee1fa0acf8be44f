"""Stacked parameters on sorted rows: every way gives what plain indexing gives, gradients included."""

from itertools import pairwise

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from vimoe.moe.rows import GroupedRows, LoopRows, RowsOfOne, group_experts

COUNTS = {
    "spread": [3, 1, 4, 2],
    "empty first and last": [0, 5, 4, 0],
    "one expert takes everything": [0, 0, 9, 0],
    "one row": [0, 1, 0, 0],
    "no rows": [0, 0, 0, 0],
}
INNER, OUTER = 8, 16


def make_rows(way: str, counts: list[int]) -> LoopRows | GroupedRows:
    if way == "loop":
        return LoopRows(counts)
    return GroupedRows(torch.tensor(counts).cumsum(0).to(torch.int32), sum(counts))


def leaves(counts: list[int], dtype: torch.dtype) -> list[torch.Tensor]:
    torch.manual_seed(0)
    shapes = (sum(counts), INNER), (len(counts), OUTER, INNER), (len(counts), OUTER)
    return [torch.randn(shape, dtype=torch.float64).to(dtype).requires_grad_() for shape in shapes]


def owners(counts: list[int]) -> torch.Tensor:
    return torch.arange(len(counts)).repeat_interleave(torch.tensor(counts))


@pytest.mark.parametrize("counts", COUNTS.values(), ids=COUNTS)
@pytest.mark.parametrize("expanded", [False, True], ids=["full gradient", "expanded gradient"])
@pytest.mark.parametrize("has_bias", [True, False], ids=["bias", "no bias"])
@pytest.mark.parametrize(("way", "dtype"), [("loop", torch.float64), ("grouped", torch.float32)])
def test_a_linear_map_and_its_gradients_are_those_of_indexed_weights(way, dtype, has_bias, expanded, counts):
    x, weight, bias = leaves(counts, dtype)
    bias = bias if has_bias else None
    out = make_rows(way, counts).linear(x, weight, bias)
    e = owners(counts)
    wanted = torch.einsum("ri,roi->ro", x, weight[e]) + (0 if bias is None else bias[e])
    inputs = [tensor for tensor in (x, weight, bias) if tensor is not None]
    # The gradients of `combine` are never expanded ones, which grouped_mm refuses.
    upstream = out.new_ones(()).expand_as(out) if expanded and way == "loop" else torch.randn_like(out)
    tolerance = 1e-12 if dtype == torch.float64 else 1e-5
    torch.testing.assert_close(out, wanted, rtol=tolerance, atol=tolerance)
    found_grads = torch.autograd.grad(out, inputs, upstream)
    wanted_grads = torch.autograd.grad(wanted, inputs, upstream)
    for found, same in zip(found_grads, wanted_grads, strict=True):
        torch.testing.assert_close(found, same, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("counts", COUNTS.values(), ids=COUNTS)
@pytest.mark.parametrize(("way", "dtype"), [("loop", torch.float64), ("grouped", torch.float32)])
def test_an_expanded_parameter_and_its_gradient_are_those_of_indexing(way, dtype, counts):
    *_, parameter = leaves(counts, dtype)
    out = make_rows(way, counts).expand(parameter)
    wanted = parameter[owners(counts)]
    assert torch.equal(out, wanted)
    upstream = torch.randn_like(out)
    (found,) = torch.autograd.grad(out, parameter, upstream)
    (same,) = torch.autograd.grad(wanted, parameter, upstream)
    tolerance = 1e-12 if dtype == torch.float64 else 1e-5
    torch.testing.assert_close(found, same, rtol=tolerance, atol=tolerance)


def test_rows_of_one_expert_use_its_parameters_alone():
    x, weight, bias = leaves([0, 0, 4, 0], torch.float64)
    rows = RowsOfOne(2)
    torch.testing.assert_close(rows.linear(x, weight, bias), x @ weight[2].T + bias[2])
    torch.testing.assert_close(rows.linear(x, weight, None), x @ weight[2].T)
    assert torch.equal(rows.expand(bias), bias[2])


@pytest.mark.parametrize("way", ["loop", "grouped"])
@pytest.mark.parametrize("frozen", ["x", "weight", "bias", "weight and bias"])
def test_what_is_frozen_gets_no_gradient_and_the_rest_keeps_its_own(way, frozen):
    counts = COUNTS["spread"]
    named = dict(zip(("x", "weight", "bias"), leaves(counts, torch.float32), strict=True))
    wanted = torch.autograd.grad(make_rows(way, counts).linear(*named.values()).square().sum(), list(named.values()))
    for name in frozen.split(" and "):
        named[name].requires_grad_(False)
    make_rows(way, counts).linear(*named.values()).square().sum().backward()
    for (name, tensor), gradient in zip(named.items(), wanted, strict=True):
        if name in frozen:
            assert tensor.grad is None
        else:
            assert torch.equal(tensor.grad, gradient)


@pytest.mark.parametrize("way", ["loop", "grouped"])
@pytest.mark.parametrize("half", [torch.bfloat16, torch.float16])
def test_autocast_multiplies_in_half_precision_and_leaves_fp32_gradients(way, half):
    counts = COUNTS["spread"]
    x, weight, bias = leaves(counts, torch.float32)
    with torch.autocast("cpu", dtype=half):
        out = make_rows(way, counts).linear(x, weight, bias)
    assert out.dtype == half
    out.float().sum().backward()
    assert {tensor.grad.dtype for tensor in (x, weight, bias)} == {torch.float32}


def test_autocast_leaves_double_precision_alone_as_it_does_for_a_linear_layer():
    counts = COUNTS["spread"]
    x, weight, bias = leaves(counts, torch.float64)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.nn.functional.linear(x, weight[0], bias[0]).dtype == torch.float64
        assert make_rows("loop", counts).linear(x, weight, bias).dtype == torch.float64


def test_a_second_derivative_of_the_loop_is_refused_rather_than_wrong():
    x, weight, bias = leaves(COUNTS["spread"], torch.float32)
    out = make_rows("loop", COUNTS["spread"]).linear(x, weight, bias).square().sum()
    (gradient,) = torch.autograd.grad(out, x, create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        gradient.sum().backward()


@pytest.mark.parametrize("way", ["loop", "grouped"])
def test_the_same_rows_give_the_same_bits(way):
    counts = COUNTS["spread"]
    inputs = leaves(counts, torch.float32)
    runs = []
    for _ in range(2):
        out = make_rows(way, counts).linear(*inputs)
        runs.append((out, *torch.autograd.grad(out.square().sum(), inputs)))
    assert all(torch.equal(first, second) for first, second in zip(*runs, strict=True))


@given(st.lists(st.integers(0, 20), max_size=12), st.integers(0, 30))
def test_groups_hold_every_expert_in_order_and_no_more_rows_than_may_be_or_one_expert(counts, most):
    groups = group_experts(counts, most)
    assert [count for group in groups for count in group] == counts
    assert all(len(group) == 1 or sum(group) <= most for group in groups)
    assert all(sum(first) + second[0] > most for first, second in pairwise(groups))
