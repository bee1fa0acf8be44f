"""Balance by a bias on the choice."""

import copy

import pytest
import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from vimoe import UserError, update_balance
from vimoe.moe.router import select_experts

from .support import D, E, make_ffn, upcycled


def balanced(**settings):
    torch.manual_seed(0)
    layer = upcycled(make_ffn(), balance="bias", **settings)
    nn.init.normal_(layer.router.weight)
    return layer


def test_the_bias_decides_the_choice_and_no_gate():
    logits = torch.tensor([[2.0, 1.0, 0.0]])
    plain, moved = (select_experts(logits, 1, "softmax", bias=bias) for bias in (None, torch.tensor([0.0, 0.0, 0.9])))
    assert plain.expert_ids.tolist() == [[0]]
    assert moved.expert_ids.tolist() == [[2]]
    assert moved.gates.item() == pytest.approx(logits.softmax(-1)[0, 2].item())
    assert torch.equal(moved.probs, plain.probs)


def test_the_bias_moves_by_a_fixed_step_against_the_load_and_keeps_its_mean():
    layer = balanced()
    layer.router.assigned = torch.tensor([9, 4, 4, 3])
    update_balance(layer, 0.1)
    wanted = torch.tensor([-0.1, 0.1, 0.1, 0.1]) - 0.05
    torch.testing.assert_close(layer.router.bias, wanted)
    layer.router.assigned = torch.tensor([5, 5, 5, 5])
    update_balance(layer, 0.1)
    torch.testing.assert_close(layer.router.bias, wanted)


def step(parts: int, recompute: bool) -> torch.Tensor:
    layer, images = balanced(top_k=2), torch.randn(32, 5, D, generator=torch.Generator().manual_seed(1))
    for _ in range(3):
        for part in images.chunk(parts):
            run = checkpoint(layer, part, use_reentrant=False) if recompute else layer(part)
            run.square().sum().backward()
        update_balance(layer)
    return layer.router.bias


@pytest.mark.parametrize(("parts", "recompute"), [(8, False), (1, True), (8, True)])
def test_accumulation_and_checkpointing_change_no_bit(parts, recompute):
    assert step(1, False).abs().sum() > 0
    assert torch.equal(step(parts, recompute), step(1, False))


def test_a_collapsed_router_is_spread():
    layer = balanced(routing="token", gate_input="mean")
    with torch.no_grad():
        layer.router.weight.mul_(0.05)
        layer.router.weight[0] += 0.2
    x = torch.randn(16, 8, D) + 0.5
    share = []
    for _ in range(300):
        layer(x)
        counts = torch.bincount(layer.last_selection.expert_ids.flatten(), minlength=E)
        share.append((counts.max() / counts.sum()).item())
        update_balance(layer, 0.01)
    assert share[0] > 0.6
    assert share[-1] < 0.35


def test_inference_and_forwards_without_gradient_do_not_count():
    layer = balanced()
    with torch.no_grad():
        layer(torch.randn(3, 5, D))
    layer.eval()(torch.randn(3, 5, D))
    with pytest.raises(UserError, match="chose nothing in training"):
        update_balance(layer)


def test_the_bias_is_saved_and_a_copy_begins_to_count_anew():
    layer = balanced()
    layer(torch.randn(3, 5, D))
    assert "router.bias" in layer.state_dict()
    assert not any("assigned" in name for name in layer.state_dict())
    assert copy.deepcopy(layer).router.assigned is None
    assert int(layer.router.assigned.sum()) == 3
    layer.router.keep([1, 3])
    assert layer.router.bias.shape == (2,)


def test_a_model_without_a_bias_is_refused():
    with pytest.raises(UserError, match="no router of this model has a bias"):
        update_balance(upcycled(make_ffn()))
