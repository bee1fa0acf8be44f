"""The router: choices, gates and their gradients, noise, precision."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from vimoe.moe.router import TopKRouter, select_experts, straight_through_gates

from .support import property_test


def logits(selections: int, num_experts: int, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(selections, num_experts, generator=generator, dtype=torch.float64)


@st.composite
def routed(draw):
    num_experts = draw(st.integers(1, 8))
    return logits(draw(st.integers(0, 20)), num_experts, draw(st.integers(0, 999))), draw(st.integers(1, num_experts))


@pytest.mark.parametrize("gate", ["straight_through", "softmax"])
@property_test
@given(case=routed())
def test_every_input_gets_k_distinct_experts_the_most_probable_first(gate, case):
    scores, k = case
    chosen = select_experts(scores, k, gate)
    assert chosen.expert_ids.shape == chosen.gates.shape == (len(scores), k)
    assert chosen.expert_ids.dtype == torch.int64
    assert all(len(set(row)) == k for row in chosen.expert_ids.tolist())
    picked = chosen.probs.gather(1, chosen.expert_ids)
    assert (picked.diff(dim=1) <= 0).all()
    rest = chosen.probs.scatter(1, chosen.expert_ids, -1.0).amax(1)
    assert (picked[:, -1] >= rest).all()


@property_test
@given(case=routed())
def test_straight_through_gates_sum_to_1(case):
    scores, k = case
    gates = select_experts(scores, k, "straight_through").gates
    torch.testing.assert_close(gates.sum(1), torch.ones(len(scores), dtype=torch.float64), rtol=0, atol=1e-15)


@property_test
@given(case=routed())
def test_softmax_gates_are_the_probabilities_of_the_chosen_experts(case):
    scores, k = case
    chosen = select_experts(scores, k, "softmax")
    torch.testing.assert_close(chosen.gates, chosen.probs.gather(1, chosen.expert_ids), rtol=1e-14, atol=1e-16)


def test_straight_through_gates_share_out_the_chosen_probabilities():
    # softmax of log [1, 2, 5] is [1, 2, 5] / 8; the best two share 5/7 and 2/7
    chosen = select_experts(torch.tensor([[1.0, 2.0, 5.0]]).log(), 2, "straight_through")
    assert chosen.expert_ids.tolist() == [[2, 1]]
    torch.testing.assert_close(chosen.gates, torch.tensor([[5 / 7, 2 / 7]]))
    torch.testing.assert_close(chosen.probs, torch.tensor([[1 / 8, 2 / 8, 5 / 8]]))


def gate_gradient(scores: torch.Tensor, k: int, gate: str, weights: torch.Tensor) -> torch.Tensor:
    scores = scores.clone().requires_grad_()
    (select_experts(scores, k, gate).gates * weights).sum().backward()
    return scores.grad


@pytest.mark.parametrize("k", [1, 2, 3, 5])
def test_the_gradient_of_a_straight_through_gate_is_the_gate_times_that_of_log_p(k):
    scores, weights = logits(6, 5), logits(6, k, seed=1)
    chosen = select_experts(scores, k, "straight_through")
    # d log p_i / d z_j = [i = j] - p_j, so Σ_i w_i g_i (e_i - p)
    weighted = weights * chosen.gates
    wanted = torch.zeros(6, 5, dtype=torch.float64).scatter(1, chosen.expert_ids, weighted)
    wanted = wanted - weighted.sum(1, keepdim=True) * chosen.probs
    torch.testing.assert_close(gate_gradient(scores, k, "straight_through", weights), wanted, rtol=1e-13, atol=1e-14)


def test_with_one_expert_chosen_the_gate_is_exactly_1_and_its_gradient_is_that_of_log_p():
    scores = logits(100, 7).float()
    scores.requires_grad_()
    chosen = select_experts(scores, 1, "straight_through")
    assert (chosen.gates == 1).all()
    (found,) = torch.autograd.grad(chosen.gates.sum(), scores)
    (wanted,) = torch.autograd.grad(scores.log_softmax(-1).gather(1, chosen.expert_ids).sum(), scores)
    torch.testing.assert_close(found, wanted, rtol=1e-6, atol=1e-8)
    assert found.abs().max() > 0.1


def test_with_all_experts_chosen_the_gates_are_the_softmax_with_its_own_gradient():
    scores, weights = logits(6, 4).requires_grad_(), logits(6, 4, seed=1)
    chosen = select_experts(scores, 4, "straight_through")
    torch.testing.assert_close(chosen.gates, chosen.probs.gather(1, chosen.expert_ids), rtol=1e-14, atol=0)
    (found,) = torch.autograd.grad((chosen.gates * weights).sum(), scores)
    softmax = scores.softmax(-1).gather(1, chosen.expert_ids)
    (wanted,) = torch.autograd.grad((softmax * weights).sum(), scores)
    torch.testing.assert_close(found, wanted, rtol=1e-13, atol=1e-15)


def test_softmax_gates_have_the_gradient_of_the_softmax():
    select = lambda scores: select_experts(scores, 2, "softmax").gates  # noqa: E731
    assert torch.autograd.gradcheck(select, logits(3, 4).requires_grad_())


def test_a_hopeless_expert_makes_no_gate_and_no_gradient_nan():
    log_probs = torch.tensor([[0.0, -1e30]], requires_grad=True)
    gates = straight_through_gates(log_probs)
    assert gates.tolist() == [[1.0, 0.0]]
    gates.sum().backward()
    assert log_probs.grad.isfinite().all()


def test_huge_logits_stay_finite():
    scores = torch.tensor([[1e38, -1e38, 0.0]], requires_grad=True)
    chosen = select_experts(scores, 3, "straight_through")
    chosen.gates[:, 0].sum().backward()
    assert all(value.isfinite().all() for value in (chosen.gates, chosen.probs, scores.grad))


def test_noise_moves_the_choice_and_the_gates_but_never_the_probabilities():
    scores = torch.tensor([[1.0, 0.0]])
    chosen = select_experts(scores, 2, "softmax", noise=torch.tensor([[0.0, 3.0]]))
    assert chosen.expert_ids.tolist() == [[1, 0]]
    torch.testing.assert_close(chosen.gates, torch.tensor([[1.0, 3.0]]).softmax(-1).flip(1))
    assert torch.equal(chosen.logits, scores)
    assert torch.equal(chosen.probs, scores.softmax(-1))


def test_the_router_is_one_matrix_without_bias_drawn_with_deviation_002():
    torch.manual_seed(0)
    router = TopKRouter(512, 64, 1, "straight_through")
    assert [name for name, _ in router.named_parameters()] == ["weight"]
    assert router.weight.shape == (64, 512)
    assert router.weight.std().item() == pytest.approx(0.02, rel=0.02)
    assert abs(router.weight.mean().item()) < 1e-3


def test_noise_is_drawn_in_training_only():
    torch.manual_seed(0)
    noisy, clean = TopKRouter(8, 4, 2, "softmax", noise=True), TopKRouter(8, 4, 2, "softmax")
    clean.load_state_dict(noisy.state_dict())
    x = torch.randn(32, 8)
    first, second, without = noisy(x), noisy(x), clean(x)
    assert not torch.equal(first.gates, second.gates)
    for found in (first, second):
        assert torch.equal(found.logits, without.logits)
        assert torch.equal(found.probs, without.probs)
    noisy.eval()
    for found, wanted in zip(noisy(x)[:4], without[:4], strict=True):
        assert torch.equal(found, wanted)


def test_noise_has_a_deviation_of_one_over_the_number_of_experts():
    torch.manual_seed(0)
    router = TopKRouter(8, 5, 5, "softmax", noise=True)
    chosen = router(torch.zeros(20_000, 8))  # all logits are 0: what the gates show is the noise alone
    noise = torch.empty(20_000, 5).scatter(1, chosen.expert_ids, chosen.gates.log())
    # The softmax takes the mean of each row away: σ² (1 - 1/E) is left.
    left = (noise - noise.mean(1, keepdim=True)).square().sum(1).mean() / 4
    assert left.sqrt().item() == pytest.approx(1 / 5, rel=0.02)


@pytest.mark.parametrize("half", [torch.bfloat16, torch.float16])
def test_autocast_leaves_the_router_in_fp32_to_the_bit(half):
    torch.manual_seed(0)
    router = TopKRouter(8, 4, 2, "straight_through")
    x = torch.randn(6, 8)
    wanted = router(x)
    with torch.autocast("cpu", dtype=half):
        found = router(x)
    for value, same in zip(found[1:4], wanted[1:4], strict=True):
        assert value.dtype == torch.float32
        assert torch.equal(value, same)


@pytest.mark.parametrize("half", [torch.bfloat16, torch.float16])
def test_half_precision_inputs_and_weights_are_multiplied_in_fp32(half):
    torch.manual_seed(0)
    router = TopKRouter(8, 4, 2, "straight_through").to(half)
    x = torch.randn(6, 8).to(half)
    found = router(x)
    torch.testing.assert_close(found.logits, x.float() @ router.weight.float().T, rtol=1e-6, atol=1e-7)
    assert found.probs.dtype == found.gates.dtype == torch.float32


def test_double_precision_inputs_are_routed_in_double_precision():
    router = TopKRouter(8, 4, 2, "straight_through").double()
    assert {value.dtype for value in router(logits(6, 8))[1:4]} == {torch.float64}


def test_no_inputs_give_no_choices():
    chosen = TopKRouter(8, 4, 2, "straight_through")(torch.zeros(0, 8))
    assert [tuple(value.shape) for value in chosen[:4]] == [(0, 2), (0, 2), (0, 4), (0, 4)]


def test_the_meta_device_gives_shapes():
    router = TopKRouter(8, 4, 2, "straight_through").to("meta")
    assert router(torch.zeros(6, 8, device="meta")).gates.shape == (6, 2)


def test_a_printed_router_says_what_it_does():
    text = repr(TopKRouter(8, 4, 2, "softmax", noise=True))
    assert "dim=8, num_experts=4, top_k=2, gate=softmax, noise=True" in text


def test_renormalised_gates_are_mixtrals_in_value_and_gradient():
    mixtral = pytest.importorskip("transformers.models.mixtral.modeling_mixtral")
    from transformers import MixtralConfig

    config = MixtralConfig(hidden_size=8, num_local_experts=5, num_experts_per_tok=3)
    theirs, ours = mixtral.MixtralTopKRouter(config), TopKRouter(8, 5, 3, "renormalised")
    with torch.no_grad():
        theirs.weight.copy_(ours.weight.normal_())
    x, upstream = torch.randn(6, 8), torch.randn(6, 3)
    scores, ids = theirs(x)[1:]
    chosen = ours(x)
    assert torch.equal(chosen.expert_ids, ids)
    torch.testing.assert_close(chosen.gates, scores)
    for gates in (scores, chosen.gates):
        gates.backward(upstream)
    torch.testing.assert_close(ours.weight.grad, theirs.weight.grad)


@property_test
@given(case=routed())
def test_renormalised_gates_are_the_chosen_probabilities_over_their_sum(case):
    scores, k = case
    scores = scores.requires_grad_()
    values, _ = scores.softmax(-1).topk(k, dim=-1)
    wanted = values / values.sum(-1, keepdim=True)
    gates = select_experts(scores, k, "renormalised").gates
    torch.testing.assert_close(gates, wanted)
    if len(scores):
        weights = torch.arange(1.0, k + 1, dtype=torch.float64)
        (ours,), (theirs,) = (torch.autograd.grad((g * weights).sum(), scores) for g in (gates, wanted))
        torch.testing.assert_close(ours, theirs, atol=1e-12, rtol=1e-9)
