"""Dispatch and combine: a permutation and its inverse, nothing dropped, exact gradients."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from vimoe.moe.dispatch import combine, dispatch, fill_up, sort_by_expert

from .support import property_test


def random_ids(selections: int, num_experts: int, k: int, seed: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.rand(selections, num_experts, generator=generator).argsort(1)[:, :k]


@st.composite
def choices(draw):
    num_experts = draw(st.integers(1, 8))
    ids = random_ids(
        draw(st.integers(0, 20)), num_experts, draw(st.integers(1, num_experts)), draw(st.integers(0, 999))
    )
    return ids, num_experts


def test_assignments_are_sorted_by_expert_and_keep_their_order_within_one():
    # places in [[2, 0], [0, 1], [2, 0]]: expert 0 has 1, 2, 5; expert 1 has 3; expert 2 has 0, 4; expert 3 none
    order = sort_by_expert(torch.tensor([[2, 0], [0, 1], [2, 0]]), 4)
    assert order.forward.tolist() == [1, 2, 5, 3, 0, 4]
    assert order.inverse.tolist() == [4, 0, 1, 3, 5, 2]
    assert order.counts.tolist() == [3, 1, 2, 0]


@property_test
@given(case=choices())
def test_nothing_is_dropped_and_the_order_is_stable(case):
    ids, num_experts = case
    order = sort_by_expert(ids, num_experts)
    assert order.counts.tolist() == torch.bincount(ids.flatten(), minlength=num_experts).tolist()
    assert order.counts.sum() == ids.numel()
    places = torch.arange(ids.numel())
    assert torch.equal(order.forward[order.inverse], places)
    assert torch.equal(order.inverse[order.forward], places)
    assert order.forward.tolist() == sorted(places.tolist(), key=lambda place: ids.flatten()[place].item())


@property_test
@given(case=choices())
def test_combining_what_was_dispatched_with_gates_that_sum_to_1_gives_it_back(case):
    ids, num_experts = case
    x = torch.randn(ids.shape[0], 3, 4, dtype=torch.float64)
    order = sort_by_expert(ids, num_experts)
    sent = dispatch(x, order, ids.shape[1])
    assert sent.shape == (ids.numel(), 3, 4)
    gates = torch.rand(ids.shape, dtype=torch.float64).softmax(1)
    torch.testing.assert_close(combine(sent, order, gates), x, rtol=1e-14, atol=1e-14)


@property_test
@given(case=choices())
def test_every_expert_receives_the_inputs_that_chose_it(case):
    ids, num_experts = case
    numbers = torch.arange(ids.shape[0]).double()[:, None, None]
    order = sort_by_expert(ids, num_experts)
    sent = dispatch(numbers, order, ids.shape[1]).flatten().split(order.counts.tolist())
    for expert, received in enumerate(sent):
        assert received.tolist() == (ids == expert).any(1).nonzero().flatten().tolist()


@pytest.mark.parametrize("k", [1, 2, 4])
def test_dispatch_and_combine_have_the_gradients_of_finite_differences(k):
    torch.manual_seed(0)
    order = sort_by_expert(random_ids(3, 4, k, seed=0), 4)
    x = torch.randn(3, 2, 2, dtype=torch.float64, requires_grad=True)
    y = torch.randn(3 * k, 2, 2, dtype=torch.float64, requires_grad=True)
    gates = torch.randn(3, k, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda x: dispatch(x, order, k), (x,))
    assert torch.autograd.gradcheck(lambda y, gates: combine(y, order, gates), (y, gates))


@pytest.mark.parametrize("k", [1, 3])
def test_an_expanded_upstream_gradient_is_taken(k):
    ids = random_ids(5, 4, k, seed=0)
    order = sort_by_expert(ids, 4)
    x = torch.ones(5, 2, 3, requires_grad=True)
    gates = torch.full((5, k), 0.5, requires_grad=True)
    combine(dispatch(x, order, k), order, gates).sum().backward()
    assert x.grad.unique().tolist() == [0.5 * k]  # each of k copies comes back with its gate
    assert gates.grad.unique().tolist() == [6.0]  # 2 rows of 3 ones


def test_gates_in_fp32_get_an_fp32_gradient_from_half_precision_outputs():
    order = sort_by_expert(torch.tensor([[1], [0]]), 2)
    gates = torch.ones(2, 1, requires_grad=True)
    out = combine(torch.randn(2, 3, 4, dtype=torch.bfloat16), order, gates)
    out.float().sum().backward()
    assert out.dtype == torch.bfloat16
    assert gates.grad.dtype == torch.float32


def test_only_the_gradients_that_are_asked_for_are_made():
    order = sort_by_expert(torch.tensor([[1], [0]]), 2)
    y, gates = torch.randn(2, 3, 4), torch.ones(2, 1)
    combine(y.requires_grad_(), order, gates).sum().backward()
    assert gates.grad is None
    combine(y.detach(), order, gates.requires_grad_()).sum().backward()
    assert gates.grad is not None


@property_test
@given(case=choices(), multiple=st.integers(1, 9))
def test_filled_up_experts_have_multiples_and_everything_comes_back(case, multiple):
    ids, num_experts = case
    plain = sort_by_expert(ids, num_experts)
    order = fill_up(plain, ids, multiple)
    assert order.counts.tolist() == [-(-count // multiple) * multiple for count in plain.counts.tolist()]
    x = torch.randn(ids.shape[0], 3, 4, dtype=torch.float64)
    sent = dispatch(x, order, ids.shape[1])
    assert sent.shape[0] == order.counts.sum()
    for kept, full in zip(
        dispatch(x, plain, ids.shape[1]).split(plain.counts.tolist()), sent.split(order.counts.tolist()), strict=True
    ):
        assert torch.equal(full[: len(kept)], kept)
    gates = torch.rand(ids.shape, dtype=torch.float64).softmax(1)
    torch.testing.assert_close(combine(sent, order, gates), x, rtol=1e-14, atol=1e-14)


@pytest.mark.parametrize("k", [1, 2])
def test_what_fills_up_has_no_gradient_and_the_others_have_those_of_finite_differences(k):
    torch.manual_seed(0)
    ids = random_ids(5, 4, k, seed=0)
    order = fill_up(sort_by_expert(ids, 4), ids, 3)
    x = torch.randn(5, 2, 2, dtype=torch.float64, requires_grad=True)
    y = torch.randn(len(order.forward), 2, 2, dtype=torch.float64, requires_grad=True)
    gates = torch.randn(5, k, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda y, gates: combine(y, order, gates), (y, gates))
    assert torch.autograd.gradcheck(lambda x, gates: combine(dispatch(x, order, k) ** 2, order, gates), (x, gates))
    combine(y, order, gates).sum().backward()
    filling = torch.ones(len(y), dtype=torch.bool).index_fill_(0, order.inverse, False)
    assert filling.sum() == len(y) - 5 * k > 0
    assert not y.grad[filling].any()
