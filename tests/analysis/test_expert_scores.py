"""Layers with one vital and one useless expert: which criteria see the difference, and by what each is fooled."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn

import vimoe
from tests.analysis.toy import ANSWER, MARK, NAMES, STYLE, blank, copy_code, layer_of, route_by, show
from tests.vit.families import make, randomise, refused, spread_routing
from vimoe.analysis.analysis import analyze
from vimoe.analysis.analysis_result import Analysis
from vimoe.analysis.expert_criteria import CRITERIA
from vimoe.analysis.held_out import HeldOut
from vimoe.moe.layer import MoELayer

VITAL, USELESS = 0, 1


@torch.no_grad()
def built(loudness: float = 0.1, gain: float = 5.0, **settings: Any) -> nn.Module:
    """Block 0 knows the mark of images of style 1, and the vital expert of block 1 that of style 0.

    The useless expert gets style 1 and says something of this loudness in a dimension that nobody reads. Each style's
    router row has the size `gain`.
    """
    model = blank([1], experts=2, **settings)
    layer = layer_of(model, 1)
    layer.router.weight.zero_()
    for e in (VITAL, USELESS):
        layer.router.weight[e, STYLE + e] = gain
    for mark in range(4):
        for weight, bias, style in (
            (model.blocks[0].mlp.fc1.weight, model.blocks[0].mlp.fc1.bias, 1),
            (layer.experts.fc1.weight[VITAL], layer.experts.fc1.bias[VITAL], 0),
        ):
            weight[mark, MARK + mark] = weight[mark, STYLE + style] = 1
            bias[mark] = -1
        model.blocks[0].mlp.fc2.weight[ANSWER + mark, mark] = layer.experts.fc2.weight[VITAL, ANSWER + mark, mark] = 1
    layer.experts.fc2.bias[USELESS, 15] = loudness
    return model


def seen(to_useless: int = 1, size: int = 64) -> HeldOut:
    """So many images, of which so many of every four are of style 1."""
    mark, four = torch.arange(size) % 4, torch.arange(size) // 4 % 4
    images = show(mark, (four < to_useless).long(), torch.zeros(size, dtype=torch.long))
    return HeldOut(lambda: [(images[:40], mark[:40]), (images[40:], mark[40:])])


def right_about(model: nn.Module, images: HeldOut, before: Tensor | None = None) -> set[str]:
    """The criteria that rank the vital expert above the useless one; `before` are the initial router's rows."""
    initial = torch.zeros(2, 16) if before is None else before
    _, found, _ = analyze(model, images, NAMES, shuffles=9, criteria=tuple(CRITERIA), initial_routers={1: initial})
    assert found.score.value == 100
    experts = found.layer(1).experts
    return {name for name in CRITERIA if experts[VITAL].scores[name] > experts[USELESS].scores[name]}


def test_every_criterion_sees_a_vital_expert_that_is_busier_louder_and_whose_row_grew_more() -> None:
    model = built()
    layer_of(model, 1).router.weight.data[USELESS] /= 2
    assert right_about(model, seen()) == set(CRITERIA)


def test_load_is_fooled_where_most_images_need_nothing_of_their_expert() -> None:
    assert set(CRITERIA) - right_about(built(), seen(to_useless=3)) == {"load", "router-change"}  # both rows grew alike


def test_norms_are_fooled_by_a_loud_expert_that_nobody_listens_to() -> None:
    model = built(loudness=9.0)
    layer_of(model, 1).router.weight.data[USELESS] /= 2
    assert set(CRITERIA) - right_about(model, seen()) == {"reap", "activation"}


def test_reap_hears_less_of_a_loud_expert_whose_gates_are_low_and_activation_does_not() -> None:
    """Raw probabilities: the router is sure of the vital expert's images alone."""
    model = built(loudness=1.5, gate="softmax")
    layer_of(model, 1).router.weight.data[USELESS] /= 20
    assert set(CRITERIA) - right_about(model, seen()) == {"activation"}


def test_the_router_s_change_is_fooled_by_a_vital_row_that_began_long() -> None:
    before = torch.zeros(2, 16)
    before[VITAL, STYLE] = 8.0
    assert set(CRITERIA) - right_about(built(), seen(), before) == {"router-change"}


@pytest.mark.parametrize("criterion", CRITERIA)
def test_the_plan_removes_the_useless_expert_and_a_fooled_order_costs_size_alone(criterion: str) -> None:
    for to_useless, kept in ((1, {VITAL}), (3, {VITAL, USELESS} if criterion in ("load", "ablation") else {VITAL})):
        model = built()
        layer_of(model, 1).router.weight.data[USELESS] /= 2
        for mark in range(4):  # of units that it never turns on: the mean of both experts would be spoiled
            layer_of(model, 1).experts.fc2.weight.data[USELESS, ANSWER + (mark + 1) % 4, mark] = 100
        images = seen(to_useless, size=512)
        settings = {"criteria": (criterion,), "initial_routers": {1: torch.zeros(2, 16)}}
        *_, plan = analyze(model, images, NAMES, shuffles=9, **settings)
        assert set(plan.layers[0].experts) == kept
        vimoe.prune(model, plan)
        assert all((model(batch).argmax(-1) == labels).all() for batch, labels in images.batches())


def test_ablation_is_fooled_by_experts_that_stand_in_for_each_other() -> None:
    """Both know everything: neither is missed alone, both together are. So the plan removes one after the other."""
    model = blank([1], experts=2)
    route_by(layer_of(model, 1), STYLE, 2)
    for e in range(2):
        copy_code(layer_of(model, 1), e, turn=0)
    _, found, _ = analyze(model, seen(), NAMES, shuffles=9, criteria=("ablation",))
    assert [e.scores["ablation"] for e in found.layer(1).experts] == [0, 0]
    assert next(k.lost.value for k in found.layer(1).ablations if k.name == "pruned") == 0  # their mean knows it too


@pytest.mark.parametrize(
    "settings",
    [
        {"routing": "image"},
        {"routing": "token", "top_k": 2},
        {"routing": "token", "gate": "softmax", "shared_expert": True},
        {"routing": "token", "balance": "bias"},
    ],
)
def test_ablation_is_a_router_row_of_minus_infinity(settings: dict[str, Any]) -> None:
    torch.manual_seed(0)
    model = vimoe.upcycle(make(), last=2, num_experts=4, **{"shared_expert": False, **settings})
    randomise(model)
    images, labels = torch.randn(24, 3, 32, 32), torch.randint(0, 5, (24,))
    spread_routing(model, images)
    for number in (1, 2):
        if (bias := model.blocks[number].mlp.router.bias) is not None:
            bias.copy_(torch.randn(4) / 10)

    def sureness(outputs: Tensor, targets: Tensor) -> Tensor:
        """A score that every change shows."""
        return outputs.softmax(-1).gather(1, targets[:, None])[:, 0]

    data = HeldOut(lambda: [(images[:10], labels[:10]), (images[10:], labels[10:])], score=sureness)
    _, found, _ = analyze(model, data, tuple("abcde"), shuffles=9, criteria=("ablation",))
    with torch.no_grad():
        right = sureness(model(images), labels).mean()
        for number in (1, 2):
            for e in range(4):

                def masked(router: nn.Module, _: object, chosen: Any, e: int = e) -> Any:
                    assert isinstance(router, vimoe.moe.router.TopKRouter)
                    logits = chosen.logits.index_fill(1, torch.tensor([e]), -torch.inf)
                    return router.select(logits)

                handle = model.blocks[number].mlp.router.register_forward_hook(masked)
                left = sureness(model(images), labels).mean()
                handle.remove()
                lost = found.layer(number).experts[e].lost
                assert lost is not None
                assert lost.value == found.layer(number).experts[e].scores["ablation"]
                assert lost.value == pytest.approx(100 * (right - left).item(), abs=1e-4)
    for layer in found.layers:
        assert sum(abs(e.scores["ablation"]) > 1e-3 for e in layer.experts) >= 3


def analyzed(*criteria: str) -> Analysis:
    model = blank([0, 1], experts=2)
    for number in (0, 1):
        route_by(layer_of(model, number), STYLE, 2)
        copy_code(layer_of(model, number), 0, turn=0)
    return analyze(model, seen(2), NAMES, shuffles=9, criteria=criteria, initial_routers={0: torch.zeros(2, 16)})[1]


def test_only_what_was_asked_for_is_scored_in_the_order_in_which_it_was() -> None:
    found = analyzed("activation", "load")
    assert [list(e.scores) for layer in found.layers for e in layer.experts] == [["activation", "load"]] * 4
    assert not found.agreements
    assert all(e.lost is None for layer in found.layers for e in layer.experts)
    assert not any(e.scores for layer in analyzed().layers for e in layer.experts)


def test_agreement_is_told_of_each_layer_and_of_all() -> None:
    found = analyzed("ablation", "activation").agreements
    assert [(one.criterion, one.layers, one.experts) for one in found] == [
        ("ablation", (0,), 2),
        ("ablation", (1,), 2),
        ("ablation", (0, 1), 4),
        ("activation", (0,), 2),
        ("activation", (1,), 2),
        ("activation", (0, 1), 4),
    ]
    assert found[3].rank_correlation is None or found[3].rank_correlation.low == -1


def test_what_cannot_be_scored_gets_one_line() -> None:
    with refused("unknown criterion 'loud', did you mean 'load'?"):
        analyzed("loud")
    with refused("criterion 'router-change': the initial router of block 1 is not of this model"):
        analyzed("router-change")
    with refused("criterion 'ablation': every choice takes all experts of its layer, and none can be left out"):
        analyze(blank([1], experts=2, top_k=2), seen(), NAMES, criteria=("ablation",))
    with refused("this model has no MoE layer to analyze: it is dense, or was pruned"):
        analyze(make(), seen(), NAMES, criteria=("ablation",))
    soft = vimoe.upcycle(make(), last=1, num_experts=2, routing="token", router="soft")
    with refused("router 'soft' mixes all tokens for all experts: there are no choices to analyze"):
        analyze(soft, seen(), NAMES, criteria=("load",))


def test_a_layer_that_needs_all_its_experts_is_passed_over() -> None:
    model = vimoe.prune(blank([0, 1], experts=2), {0: [1]})
    assert isinstance(layer_of(model, 0), MoELayer)
    _, found, _ = analyze(model, seen(), NAMES, shuffles=9, criteria=("ablation", "load"))
    assert [list(layer.experts[0].scores) for layer in found.layers] == [["load"], ["ablation", "load"]]
    assert {one.layers for one in found.agreements} == {(1,)}
