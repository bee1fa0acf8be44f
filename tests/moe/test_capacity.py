"""Routers with a capacity, against slow references of the papers' algorithms."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from vimoe.moe.capacity import ExpertChoiceRouter, PrioritisedRouter, expert_capacity

from .support import make_ffn, property_test, upcycled


def priority_by_hand(logits: torch.Tensor, top_k: int, factor: float) -> list[list[int]]:
    """V-MoE's algorithm for the tokens of one group, as its paper tells it (algorithm 1 with sorted tokens)."""
    tokens, experts = logits.shape
    gates = logits.softmax(-1)
    room = [min(tokens * top_k, max(1, math.ceil(tokens * top_k * factor / experts)))] * experts
    chosen = gates.topk(top_k, -1).indices.tolist()
    answer = [[experts] * top_k for _ in range(tokens)]
    by_priority = sorted(range(tokens), key=lambda token: -gates[token].max().item())
    for choice in range(top_k):
        for token in by_priority:
            expert = chosen[token][choice]
            if room[expert] > 0:
                room[expert] -= 1
                answer[token][choice] = expert
    return answer


@st.composite
def groups(draw):
    experts = draw(st.integers(1, 6))
    generator = torch.Generator().manual_seed(draw(st.integers(0, 999)))
    logits = torch.randn(draw(st.integers(1, 3)), draw(st.integers(1, 12)), experts, generator=generator)
    return logits.double(), draw(st.integers(1, experts)), draw(st.sampled_from([0.25, 0.5, 1.0, 1.5, 8.0]))


@property_test
@given(case=groups())
def test_prioritised_routing_is_v_moe_s_algorithm_within_each_image(case):
    logits, top_k, factor = case
    router = PrioritisedRouter(4, logits.shape[-1], top_k, "softmax", capacity=factor)
    chosen = router.select(logits)
    wanted = [priority_by_hand(image, top_k, factor) for image in logits]
    assert chosen.expert_ids.tolist() == [token for image in wanted for token in image]
    served = chosen.expert_ids < logits.shape[-1]
    plain = logits.flatten(0, 1).softmax(-1).topk(top_k, -1).values
    torch.testing.assert_close(chosen.gates, plain * served)


@pytest.mark.parametrize("gate", ["softmax", "straight_through"])
@property_test
@given(case=groups())
def test_every_expert_takes_its_most_probable_tokens_of_each_image(gate, case):
    logits, _, factor = case
    experts, tokens = logits.shape[-1], logits.shape[1]
    capacity = min(tokens, max(1, math.ceil(tokens * factor / experts)))
    chosen = ExpertChoiceRouter(4, experts, 1, gate, capacity=factor).select(logits)
    probs = logits.softmax(-1)
    taken = torch.zeros(*logits.shape, dtype=torch.bool)
    for b, image in enumerate(probs):
        for e in range(experts):
            for token in sorted(range(tokens), key=lambda t, e=e, image=image: -image[t, e].item())[:capacity]:
                taken[b, token, e] = True
    found = torch.zeros(len(chosen.expert_ids), experts + 1).scatter(1, chosen.expert_ids, 1.0)[:, :experts] > 0
    assert torch.equal(found, taken.flatten(0, 1))
    weights = torch.zeros(len(found), experts + 1).double().scatter(1, chosen.expert_ids, chosen.gates)[:, :experts]
    wanted = probs.flatten(0, 1) * found
    if gate == "straight_through":
        wanted = wanted / wanted.sum(-1, keepdim=True).clamp(min=1e-300)
    torch.testing.assert_close(weights, wanted)
    served = chosen.expert_ids < experts
    assert (served.int().diff(dim=1) <= 0).all()  # the unserved columns come last


@pytest.mark.parametrize("gate", ["softmax", "straight_through"])
def test_the_gates_of_taken_tokens_have_the_gradient_of_gate_times_log_p(gate):
    logits = torch.randn(2, 6, 3, dtype=torch.float64, requires_grad=True)
    chosen = ExpertChoiceRouter(4, 3, 1, gate, capacity=1.5).select(logits)
    weights = torch.randn(chosen.gates.shape, dtype=torch.float64)
    (found,) = torch.autograd.grad((chosen.gates * weights).sum(), logits)
    log_probs = logits.flatten(0, 1).log_softmax(-1)
    ids = chosen.expert_ids.clamp(max=2)
    (wanted,) = torch.autograd.grad((chosen.gates.detach() * weights * log_probs.gather(1, ids)).sum(), logits)
    torch.testing.assert_close(found, wanted)


@pytest.mark.parametrize("settings", [{"router": "expert_choice"}, {"router": "prioritised", "top_k": 2}])
@pytest.mark.parametrize("capacity", [0.3, 1.0, 2.5])
def test_an_image_s_answer_does_not_depend_on_the_others_in_the_batch(settings, capacity):
    layer = upcycled(make_ffn(), 4, routing="token", capacity=capacity, init="copy", **settings).eval()
    with torch.no_grad():
        layer.router.weight.normal_()
    x = torch.randn(5, 9, 16)
    together = layer(x)
    for number in range(5):
        torch.testing.assert_close(layer(x[number : number + 1]), together[number : number + 1])


@pytest.mark.parametrize(("choices", "experts", "factor", "wanted"), [(65, 8, 1.0, 9), (65, 8, 0.1, 1), (3, 2, 9.0, 3)])
def test_a_capacity_is_a_share_rounded_up_and_bounded(choices, experts, factor, wanted):
    assert expert_capacity(choices, experts, factor) == wanted


def test_tokens_that_no_expert_serves_get_the_shared_expert_alone():
    layer = upcycled(make_ffn(), 2, routing="token", router="prioritised", capacity=0.25, init="copy").eval()
    x = torch.randn(1, 8, 16)
    y = layer(x)
    assert layer.last_selection is not None
    unserved = (layer.last_selection.expert_ids == 2).all(1)
    assert 6 <= int(unserved.sum()) < 8
    torch.testing.assert_close(y[0, unserved], layer.shared_expert(x)[0, unserved])
    assert not torch.allclose(y[0, ~unserved], layer.shared_expert(x)[0, ~unserved])
