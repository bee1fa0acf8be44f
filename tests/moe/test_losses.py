"""The losses on numbers small enough to work out by hand, for one process, two processes and whole models."""

import copy
import gc
import socket
import time
import weakref
from statistics import NormalDist

import pytest
import torch
import torch.distributed as dist
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from vimoe.errors import UserError
from vimoe.moe.losses import (
    balance_loss,
    expert_load,
    guide_loss,
    importance_loss,
    last_selections,
    load_balance_loss,
    load_loss,
    routing_loss,
    z_loss,
)

from .support import D, make_layer, property_test
from .two_processes import GLOBAL_IDS, GLOBAL_PROBS, count_together, share

PROBS = torch.tensor([[0.6, 0.2, 0.1, 0.1], [0.3, 0.5, 0.1, 0.1], [0.3, 0.2, 0.4, 0.1]])


def test_the_load_is_the_share_of_assignments():
    # 6 assignments: expert 0 has 3, expert 1 has 2, expert 2 has 1, expert 3 none
    load = expert_load(torch.tensor([[0, 1], [1, 0], [2, 0]]), 4)
    torch.testing.assert_close(load, torch.tensor([3 / 6, 2 / 6, 1 / 6, 0.0]))


def test_no_assignments_are_no_load():
    assert expert_load(torch.zeros(0, 2, dtype=torch.int64), 3).tolist() == [0.0, 0.0, 0.0]


@property_test
@given(selections=st.integers(1, 30), num_experts=st.integers(1, 8), data=st.data())
def test_the_load_sums_to_1(selections, num_experts, data):
    k = data.draw(st.integers(1, num_experts))
    ids = torch.rand(selections, num_experts).argsort(1)[:, :k]
    assert expert_load(ids, num_experts).sum().item() == pytest.approx(1, abs=1e-6)


def test_the_guide_loss_is_the_mean_surprise_at_each_images_expert():
    logits, labels, expert_of = (
        torch.randn(7, 3, requires_grad=True),
        torch.arange(7) % 5,
        torch.tensor([0, 2, 2, 1, 0]),
    )
    slow = 0.0
    for row, label in zip(logits, labels, strict=True):
        slow = slow - (row[expert_of[label]] - row.exp().sum().log()) / 7
    loss = guide_loss(logits, labels, expert_of)
    torch.testing.assert_close(loss, slow)
    for found, wanted in zip(
        torch.autograd.grad(loss, logits), torch.autograd.grad(slow, logits, retain_graph=True), strict=True
    ):
        torch.testing.assert_close(found, wanted)


def test_the_guide_loss_of_mixed_images_is_the_mean_of_their_classes_losses():
    logits, expert_of = torch.randn(4, 3), torch.tensor([0, 2, 2, 1, 0])
    shares = torch.rand(4, 5).softmax(-1)
    each = [
        guide_loss(row[None], torch.tensor([c]), expert_of) * s[c] / 4
        for row, s in zip(logits, shares)
        for c in range(5)
    ]
    torch.testing.assert_close(guide_loss(logits, shares, expert_of), torch.stack(each).sum())
    assert guide_loss(torch.zeros(0, 3), torch.zeros(0, dtype=torch.int64), expert_of) == 0


def test_the_balance_loss_of_one_choice_each():
    # P = [1.2, 0.9, 0.6, 0.3] / 3 = [0.4, 0.3, 0.2, 0.1]; f = [1, 1, 1, 0] / 3
    # 4 · (0.4 + 0.3 + 0.2) / 3 = 1.2
    loss = load_balance_loss(PROBS, torch.tensor([[0], [1], [2]]))
    torch.testing.assert_close(loss, torch.tensor(1.2))


def test_the_balance_loss_of_two_choices_each():
    # f = [3, 2, 1, 0] / 6; 4 · (3 · 0.4 + 2 · 0.3 + 1 · 0.2) / 6 = 4 · 2.0 / 6
    loss = load_balance_loss(PROBS, torch.tensor([[0, 1], [1, 0], [2, 0]]))
    torch.testing.assert_close(loss, torch.tensor(8 / 6))


@pytest.mark.parametrize("k", [1, 2, 3, 4])
def test_the_balance_loss_is_1_at_perfect_balance_for_every_k(k):
    probs = torch.full((4, 4), 0.25)
    ids = (torch.arange(4)[:, None] + torch.arange(k)) % 4
    torch.testing.assert_close(load_balance_loss(probs, ids), torch.tensor(1.0))


def test_the_balance_loss_of_a_collapsed_router_is_the_number_of_experts():
    probs = torch.zeros(3, 4).index_fill(1, torch.tensor(2), 1.0)
    ids = torch.full((3, 1), 2)
    torch.testing.assert_close(load_balance_loss(probs, ids), torch.tensor(4.0))


def test_the_balance_loss_has_its_gradient_through_the_mean_probability_alone():
    probs = PROBS.clone().requires_grad_()
    load_balance_loss(probs, torch.tensor([[0], [1], [2]])).backward()
    # d loss / d probs[s, e] = E · f_e / S = 4 · (1/3) / 3 for the three chosen experts, 0 for the fourth
    torch.testing.assert_close(probs.grad, torch.tensor([4 / 9, 4 / 9, 4 / 9, 0.0]).expand(3, 4))


def test_the_importance_loss_is_the_squared_coefficient_of_variation():
    # importance [1.2, 0.9, 0.6, 0.3], mean 0.75, deviations ±0.45 and ±0.15
    # variance (2 · 0.2025 + 2 · 0.0225) / 4 = 0.1125; 0.1125 / 0.5625 = 0.2
    torch.testing.assert_close(importance_loss(PROBS), torch.tensor(0.2))


def test_the_importance_loss_of_equal_totals_is_0():
    torch.testing.assert_close(importance_loss(torch.eye(4)), torch.tensor(0.0))


def test_the_importance_loss_of_a_collapsed_router_is_one_less_than_the_number_of_experts():
    # importance [3, 0, 0, 0], mean 3/4; variance (9 - 9/4) / 4 = 27/16; 27/16 / (9/16) = 3
    probs = torch.zeros(3, 4).index_fill(1, torch.tensor(0), 1.0)
    torch.testing.assert_close(importance_loss(probs), torch.tensor(3.0))


def test_the_z_loss_is_the_mean_squared_log_partition():
    # logits log [1, 2, 5] sum to a partition of 8, log [1, 1, 1] of 3
    logits = torch.tensor([[1.0, 2.0, 5.0], [1.0, 1.0, 1.0]]).log()
    wanted = (torch.tensor(8.0).log() ** 2 + torch.tensor(3.0).log() ** 2) / 2
    torch.testing.assert_close(z_loss(logits), wanted)


def test_nothing_to_route_costs_nothing_and_leaves_finite_gradients():
    probs, logits = torch.zeros(0, 4, requires_grad=True), torch.zeros(0, 4, requires_grad=True)
    ids = torch.zeros(0, 2, dtype=torch.int64)
    total = load_balance_loss(probs, ids) + importance_loss(probs) + z_loss(logits)
    assert total.item() == 0
    total.backward()


def test_the_losses_have_the_gradients_of_finite_differences():
    torch.manual_seed(0)
    logits = torch.randn(3, 4, dtype=torch.float64, requires_grad=True)
    ids = torch.tensor([[0, 1], [1, 0], [2, 0]])
    assert torch.autograd.gradcheck(lambda z: importance_loss(z.softmax(-1)), (logits,))
    assert torch.autograd.gradcheck(z_loss, (logits,))
    # The load is the one of an fp32 count, so it is exact here: sixths in fp32 times fp64 probabilities.
    assert torch.autograd.gradcheck(lambda z: load_balance_loss(z.softmax(-1), ids), (logits,))


def test_the_balance_loss_of_a_model_is_the_sum_over_its_layers():
    model = nn.Sequential(make_layer(top_k=2, routing="token"), nn.Linear(D, D), make_layer(num_experts=3))
    model(torch.randn(5, 3, D))
    parts = [load_balance_loss(layer.last_selection.probs, layer.last_selection.expert_ids) for layer in model[::2]]
    torch.testing.assert_close(balance_loss(model), parts[0] + parts[1])
    assert [selection.probs.shape for selection in last_selections(model)] == [(15, 4), (5, 3)]


def test_the_losses_of_a_model_s_routing_are_weighed_and_added():
    model = nn.Sequential(make_layer(top_k=2, routing="token"), make_layer(num_experts=3))
    model(torch.randn(5, 3, D))
    chosen = [layer.last_selection for layer in model]
    wanted = sum(
        0.5 * load_balance_loss(s.probs, s.expert_ids) + 0.25 * importance_loss(s.probs) + 2 * z_loss(s.logits)
        for s in chosen
    )
    torch.testing.assert_close(routing_loss(model, balance=0.5, importance=0.25, z=2), wanted)
    torch.testing.assert_close(routing_loss(model, z=1), sum(z_loss(s.logits) for s in chosen))
    assert routing_loss(model).item() == 0


def test_the_balance_loss_moves_the_routers_and_not_the_experts():
    model = make_layer(routing="token")
    model(torch.randn(5, 3, D))
    balance_loss(model).backward()
    assert model.router.weight.grad.abs().max() > 0
    assert all(parameter.grad is None for parameter in model.experts.parameters())


def test_descending_the_balance_loss_balances_a_collapsed_router():
    layer = make_layer(routing="token")
    x = torch.randn(256, 1, D)
    x[:, :, 0] = 1  # every router has a bias in this column
    with torch.no_grad():
        layer.router.weight[:, 0] = torch.tensor([4.0, 0.0, 0.0, 0.0])
    layer(x)
    before = balance_loss(layer).item()
    optimizer = torch.optim.SGD([layer.router.weight], lr=0.1)
    for _ in range(100):
        optimizer.zero_grad()
        layer(x)
        balance_loss(layer).backward()
        optimizer.step()
    assert before > 2
    assert balance_loss(layer).item() < 1.1


def test_a_model_without_moe_layers_is_told_to_upcycle():
    with pytest.raises(UserError, match=r"this model has no MoE layer: call vimoe\.upcycle first"):
        balance_loss(nn.Linear(2, 2))


def test_a_model_that_has_not_run_is_told_to_run():
    with pytest.raises(UserError, match="this model has not run yet: call it before asking for a loss"):
        balance_loss(make_layer())


NO_GRADIENT = "left no gradient for the router: run the model in training, without no_grad, and checkpoint .*"


def test_a_forward_without_gradients_in_training_is_refused():
    layer = make_layer()
    with torch.no_grad():
        layer(torch.randn(2, 3, D))
        balance_loss(layer)  # asked for a number only, which there is
    with pytest.raises(UserError, match=NO_GRADIENT):
        balance_loss(layer)


def test_after_an_evaluation_the_line_says_to_run_the_model_in_training():
    layer = make_layer().eval()
    with torch.no_grad():
        layer(torch.randn(2, 3, D))
    with pytest.raises(UserError, match=NO_GRADIENT):
        balance_loss(layer.train())


def test_a_forward_without_gradients_is_fine_in_evaluation_and_for_a_frozen_router():
    layer = make_layer().eval()
    with torch.no_grad():
        layer(torch.randn(2, 3, D))
    assert balance_loss(layer).item() > 0
    layer.train().router.requires_grad_(False)
    with torch.no_grad():
        layer(torch.randn(2, 3, D))
    assert balance_loss(layer).item() > 0


# Several forwards


def two_crops() -> tuple[torch.Tensor, torch.Tensor]:
    return torch.randn(4, 5, D), torch.randn(6, 3, D)


def test_two_forwards_in_one_step_are_refused_rather_than_half_counted():
    layer = make_layer()
    outputs = [layer(crop) for crop in two_crops()]
    with pytest.raises(UserError, match=r"the model ran 2 times since its last step .* call balance_loss after each"):
        balance_loss(layer)
    sum(y.sum() for y in outputs).backward()


def test_the_losses_of_two_forwards_add_up_and_go_backward_together():
    layer, crops = make_layer(), two_crops()
    parts = []
    for crop in crops:
        layer(crop)
        parts.append(balance_loss(layer))
    sum(parts).backward()
    both = layer.router.weight.grad.clone()
    layer.zero_grad()
    for crop in crops:  # as gradient accumulation has it
        layer(crop)
        balance_loss(layer).backward()
    torch.testing.assert_close(layer.router.weight.grad, both)


@pytest.mark.parametrize("gate", ["straight_through", "softmax"])
def test_a_step_without_a_balance_loss_is_not_held_against_the_next_one(gate):
    layer = make_layer(gate=gate, top_k=2)
    for _ in range(3):
        layer(torch.randn(4, 3, D)).sum().backward()
    layer(torch.randn(4, 3, D))
    assert balance_loss(layer).item() > 0


def test_forwards_that_train_nothing_are_not_counted():
    layer = make_layer()
    with torch.no_grad():
        layer(torch.randn(4, 3, D))
    layer.eval()(torch.randn(4, 3, D))
    layer.train()(torch.randn(4, 3, D))
    assert balance_loss(layer).requires_grad
    assert balance_loss(layer).requires_grad  # asking twice is asking for the same


def test_a_layer_does_not_outlive_its_last_reference():
    layer = make_layer()
    layer(torch.randn(4, 3, D))
    alive = weakref.ref(layer)
    del layer
    gc.collect()
    assert alive() is None


@pytest.mark.parametrize("ema_has_run", [False, True])
def test_an_averaged_copy_in_the_same_module_does_not_count(ema_has_run):
    model = nn.ModuleDict({"student": make_layer()})
    model["ema"] = copy.deepcopy(model["student"]).eval()
    if ema_has_run:
        model["ema"](torch.randn(9, 3, D))
    model["student"](torch.randn(4, 3, D))
    assert torch.equal(balance_loss(model), balance_loss(model["student"]))


@pytest.mark.skipif(not dist.is_gloo_available(), reason="torch was built without gloo")
def test_two_processes_count_the_load_of_their_batches_together(tmp_path):
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    workers = torch.multiprocessing.spawn(count_together, args=(port, str(tmp_path)), nprocs=2, join=False)
    deadline = time.monotonic() + 120
    while not workers.join(timeout=5):
        if time.monotonic() > deadline:
            for process in workers.processes:
                process.kill()
            pytest.fail("the processes did not end")
    # 10 assignments: expert 0 has 4, the others 2 each
    load = torch.tensor([0.4, 0.2, 0.2, 0.2])
    assert torch.equal(expert_load(GLOBAL_IDS, 4), load)
    for rank in range(2):
        found = torch.load(tmp_path / f"{rank}.pt", weights_only=True)
        mine = GLOBAL_PROBS[share(rank)]
        assert torch.equal(found["load"], load)
        torch.testing.assert_close(found["loss"], 4 * (load * mine.mean(0)).sum())
        torch.testing.assert_close(found["grad"], (4 * load / len(mine)).expand_as(mine))


def slow_load_loss(logits, noise, top_k):
    """V-MoE, eq. 8 to 10, as it stands there: one image and one expert at a time."""
    experts = logits.shape[1]
    normal = NormalDist(0, 1 / experts)
    load = [0.0] * experts
    for row, added in zip(logits.tolist(), noise.tolist(), strict=True):
        threshold = sorted((a + b for a, b in zip(row, added, strict=True)), reverse=True)[top_k - 1]
        for expert in range(experts):
            load[expert] += 1 - normal.cdf(threshold - row[expert])
    mean = sum(load) / experts
    return sum((value - mean) ** 2 for value in load) / experts / mean**2


@pytest.mark.parametrize("top_k", [1, 2, 5])
def test_the_load_loss_is_v_moes_in_value_and_gradient(top_k):
    torch.manual_seed(0)
    logits = torch.randn(7, 5, dtype=torch.float64, requires_grad=True)
    noise = torch.randn(7, 5, dtype=torch.float64) / 5
    loss = load_loss(logits, noise, top_k)
    assert loss.item() == pytest.approx(slow_load_loss(logits, noise, top_k), rel=1e-12)
    (gradient,) = torch.autograd.grad(loss, logits)
    for place in ((0, 0), (3, 2), (6, 4)):
        moved = [logits.detach().clone() for _ in range(2)]
        for each, step in zip(moved, (1e-6, -1e-6), strict=True):
            each[place] += step
        slope = (slow_load_loss(moved[0], noise, top_k) - slow_load_loss(moved[1], noise, top_k)) / 2e-6
        assert gradient[place].item() == pytest.approx(slope, rel=1e-5, abs=1e-9)


def test_the_load_loss_needs_noise_and_pulls_on_the_router():
    layer = make_layer(router_noise=True, top_k=2).train()
    layer(torch.randn(6, 5, D))
    selection = layer.last_selection
    wanted = load_loss(selection.logits, selection.noise, 2)
    loss = routing_loss(layer, load=0.5)
    assert loss.item() == pytest.approx(0.5 * wanted.item())
    loss.backward()
    assert layer.router.weight.grad.abs().sum() > 0
    still = make_layer().train()
    still(torch.randn(6, 5, D))
    with pytest.raises(UserError, match="load_weight needs routers that choose with noise"):
        routing_loss(still, load=1.0)
