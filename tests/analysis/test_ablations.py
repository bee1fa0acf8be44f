import copy

import pytest
import torch
from torch import Tensor, nn

import vimoe
from tests.vit.families import make, make_images, randomise, run, spread_routing
from vimoe.analysis.ablations import ablated, layer_ablations, without_experts
from vimoe.moe.config import MoEConfig
from vimoe.moe.layer import MoELayer
from vimoe.vit.blocks import moe_layers
from vimoe.vit.plan import LayerPlan, Plan
from vimoe.vit.upcycle import get_config

LOAD = torch.tensor([0.5, 0.3, 0.2, 0.0])


def upcycled(**settings: object) -> tuple[nn.Module, MoELayer, MoEConfig]:
    model = vimoe.upcycle(make(), **{"last": 2, "num_experts": 4, **settings})
    randomise(model)
    spread_routing(model, make_images(model, 16))
    config = get_config(model)
    assert config is not None
    return model, moe_layers(model)[1], config


def by_hand(layer: MoELayer, x: Tensor, ids: Tensor, gates: Tensor) -> Tensor:
    """Choice by choice, expert by expert."""
    rows = x.flatten(0, 1)[:, None] if layer.routing == "token" else x
    out = torch.zeros_like(rows)
    for i, row in enumerate(rows):
        for e, gate in zip(ids[i].tolist(), gates[i], strict=True):
            out[i] += gate * layer.experts.to_ffn(torch.eye(layer.experts.num_experts)[e])(row)
    y = out.view_as(x)
    return y if layer.shared_expert is None else y + layer.shared_expert(x)


@pytest.mark.parametrize("routing", ["image", "token"])
@pytest.mark.parametrize("top_k", [1, 2])
@torch.no_grad()
def test_second_choice_and_random_change_who_answers_and_not_how_loud(routing: str, top_k: int) -> None:
    _, layer, config = upcycled(routing=routing, top_k=top_k)
    x = torch.randn(5, 5, 32)
    layer(x)
    selection = layer.last_selection
    assert selection is not None
    answers = layer_ablations(1, layer, config, LOAD, 1.0)
    order = selection.probs.argsort(-1, descending=True)
    expected = by_hand(layer, x, order[:, 1 : top_k + 1], selection.gates)
    torch.testing.assert_close(answers["second"](x), expected, rtol=1e-4, atol=1e-5)
    at_random = answers["random"](x)
    drawn = layer.last_selection
    assert drawn is not None
    torch.testing.assert_close(at_random, by_hand(layer, x, drawn.expert_ids, selection.gates), rtol=1e-4, atol=1e-5)
    assert torch.equal(drawn.gates, selection.gates)


@torch.no_grad()
def test_random_choices_are_even_distinct_and_the_same_every_time() -> None:
    _, layer, config = upcycled(routing="token", top_k=2)
    x = torch.randn(40, 25, 32)
    chosen = []
    for _ in range(2):
        layer_ablations(1, layer, config, LOAD, 1.0)["random"](x)
        assert layer.last_selection is not None
        chosen.append(layer.last_selection.expert_ids)
    assert torch.equal(*chosen)
    assert (chosen[0][:, 0] != chosen[0][:, 1]).all()
    shares = torch.bincount(chosen[0].flatten(), minlength=4) / chosen[0].numel()
    assert (shares - 0.25).abs().max() < 0.03


@torch.no_grad()
def test_mean_and_shared_answer_as_they_say() -> None:
    _, layer, config = upcycled()
    x = torch.randn(3, 5, 32)
    answers = layer_ablations(1, layer, config, LOAD, 0.6)
    assert layer.shared_expert is not None
    mean = layer.experts.to_ffn(LOAD)(x)
    torch.testing.assert_close(answers["mean"](x), 0.6 * mean + layer.shared_expert(x), rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(answers["shared"](x), 2 * layer.shared_expert(x))


@pytest.mark.parametrize("settings", [{}, {"shared_expert": False}, {"preset": "paper"}, {"top_k": 2}])
def test_pruned_is_what_pruning_leaves_bit_by_bit(settings: dict[str, object]) -> None:
    model, layer, config = upcycled(**settings)
    images = make_images(model)
    answers = layer_ablations(1, layer, config, LOAD, 1.0)
    with ablated(model, {1: answers["pruned"]}):
        stood_in = run(model, images)
    vimoe.prune(model, Plan((LayerPlan(1, (), tuple(LOAD.tolist())),)))
    assert torch.equal(run(model, images), stood_in)


@pytest.mark.parametrize("merged", [False, True])
@pytest.mark.parametrize(
    "settings",
    [
        {"top_k": 1},
        {"top_k": 2, "gate": "softmax"},
        {"router": "prioritised", "routing": "token", "capacity": 0.5},
        {"balance": "bias"},
    ],
)
def test_fewer_experts_are_what_pruning_leaves(settings: dict[str, object], merged: bool) -> None:
    if merged and {"router", "balance"} & set(settings):
        pytest.skip("experts of these routers do not merge")
    model, layer, _ = upcycled(num_experts=5 if merged else 4, **settings)
    if layer.router.bias is not None:
        layer.router.bias.copy_(torch.tensor([0.3, -0.3, 0.0, 0.2]))
    if merged:
        vimoe.prune(model, Plan((LayerPlan(1, (0, 1, 2, 3), merge=True),)))
    images = make_images(model, 8)
    with ablated(model, {1: without_experts(layer, (3, 1))}):
        stood_in = run(model, images)
    vimoe.prune(model, {1: [1, 3]})
    torch.testing.assert_close(run(model, images), stood_in, rtol=1e-6, atol=1e-6)


def test_what_a_layer_does_not_allow_is_not_offered() -> None:
    _, layer, config = upcycled(shared_expert=False, num_experts=2, top_k=2)
    assert set(layer_ablations(1, layer, config, LOAD[:2], 1.0)) == {"mean", "random", "pruned"}


def test_nothing_is_left_behind_also_after_an_exception() -> None:
    model, layer, config = upcycled()
    images = make_images(model)
    before, state = run(model, images), copy.deepcopy(model.state_dict())
    answers = layer_ablations(1, layer, config, LOAD, 1.0)
    for answer in answers.values():
        with ablated(model, {1: answer}):
            assert not torch.equal(run(model, images), before)

    def broken(_: Tensor) -> Tensor:
        raise RuntimeError("on purpose")

    with pytest.raises(RuntimeError, match="on purpose"), ablated(model, {1: broken}):
        run(model, images)
    assert torch.equal(run(model, images), before)
    assert all(torch.equal(value, state[key]) for key, value in model.state_dict().items())
    assert not layer.router._forward_hooks
