import dataclasses
from collections.abc import Mapping

import pytest
import torch
from torch import Tensor, nn

from tests.analysis import examples
from tests.analysis.toy import COIN, MARK, NAMES, STYLE, blank, codes, copy_code, layer_of, route_by, say, show
from vimoe.analysis.analysis import analyze
from vimoe.analysis.analysis_result import Analysis, ExpertAnalysis
from vimoe.analysis.planning import plan_layers, superfluous
from vimoe.vit.plan import Plan

# On models whose right answer is known


def judged(model: nn.Module, labels: Tensor, size: int = 64) -> tuple[Analysis, Plan]:
    images = show(*codes(size))
    assert (model(images).argmax(-1) == labels).all()
    _, analysis, plan = analyze(model, lambda: [(images, labels)], NAMES, shuffles=99)
    return analysis, plan


@pytest.mark.parametrize("shared_expert", [False, True], ids=["unshared", "shared"])
def test_a_layer_that_routes_by_class_and_matters_is_kept(shared_expert: bool) -> None:
    model = blank([1], shared_expert=shared_expert)
    route_by(layer_of(model, 1), MARK, 4)
    for e in range(4):
        say(layer_of(model, 1), e, e)
    analysis, plan = judged(model, codes(64)[0])
    assert analysis.layer(1).specialisation.normalised == pytest.approx(1)
    assert plan.layers[0].experts == (0, 1, 2, 3)
    assert plan.layers[0].reason.startswith("needed: -75.0 points without it")
    lost = {ablation.name: ablation.lost.value for ablation in analysis.layer(1).ablations}
    assert lost["mean"] == lost["pruned"] == 75
    assert lost["second"] == 100
    assert 50 < lost["random"] < 95
    assert ("shared" in lost) == shared_expert


def test_a_layer_that_routes_by_class_and_does_not_matter_is_pruned() -> None:
    model = blank([1])
    route_by(layer_of(model, 1), MARK, 4)
    for e in range(4):
        copy_code(layer_of(model, 1), e, turn=0)
        layer_of(model, 1).experts.fc2.bias.data[e, e] = 9.0  # answers differ, in dimensions that nobody reads
    analysis, plan = judged(model, codes(64)[0])
    assert analysis.layer(1).specialisation.normalised == pytest.approx(1)
    assert plan.layers[0].pruned
    assert "tells 100% of what it could" in plan.layers[0].reason


def test_a_layer_that_matters_without_following_the_class_is_kept() -> None:
    """The style says how to read the mark, and has nothing to do with the class."""
    model = blank([1], experts=2)
    route_by(layer_of(model, 1), STYLE, 2)
    copy_code(layer_of(model, 1), 0, turn=0)
    copy_code(layer_of(model, 1), 1, turn=1)
    mark, style, _ = codes(64)
    analysis, plan = judged(model, (mark + style) % 4)
    assert analysis.layer(1).specialisation.normalised < 0.05
    assert plan.layers[0].experts == (0, 1)
    assert "follows the class no more than chance" in plan.layers[0].reason
    assert plan.layers[0].reason.startswith("needed")


def test_a_layer_that_routes_at_random_is_pruned() -> None:
    model = blank([1], experts=2)
    route_by(layer_of(model, 1), COIN, 2)
    for e in range(2):
        copy_code(layer_of(model, 1), e, turn=0, size=1 + e)
    analysis, plan = judged(model, codes(64)[0])
    assert analysis.layer(1).specialisation.p_value > 0.1
    assert plan.layers[0].pruned


def test_a_collapsed_layer_is_pruned_to_its_only_used_expert() -> None:
    model = blank([1])
    layer_of(model, 1).router.weight.data.zero_()
    layer_of(model, 1).router.weight.data[2, :8] = 1.0
    for e in range(4):
        copy_code(layer_of(model, 1), e, turn=0 if e == 2 else 1)
    analysis, plan = judged(model, codes(64)[0])
    assert plan.layers[0].pruned
    assert plan.layers[0].load == (0, 0, 1, 0)
    assert "collapsed to one expert" in plan.layers[0].reason
    assert analysis.layer(1).ablations[0].lost.value == 0


def test_of_two_layers_that_stand_in_for_each_other_one_stays() -> None:
    model = blank([0, 2])
    for number in (0, 2):
        route_by(layer_of(model, number), MARK, 4)
        for e in range(4):
            say(layer_of(model, number), e, e)
    analysis, plan = judged(model, codes(64)[0])
    alone = {layer.layer: layer.ablations[-1].lost.value for layer in analysis.layers}
    assert alone == {0: 0, 2: 0}
    assert [part.pruned for part in plan.layers] == [True, False]
    assert [step.accepted for step in analysis.steps[:2]] == [True, False]
    assert analysis.neighbours[0].agreement > 0.9


def test_unused_experts_and_twins_are_dropped_from_a_layer_that_stays() -> None:
    """Marks 0 and 1 go to twins, 2 to an expert of its own; expert 3 gets mark 3, expert 4 nothing."""
    model = blank([1], experts=5)
    route_by(layer_of(model, 1), MARK, 4)
    for e, answer in enumerate((0, 0, 2, 3, 1)):
        say(layer_of(model, 1), e, answer)
    layer_of(model, 1).router.weight.data[0, MARK + 1] = 4.0  # the second choice of the twin's images
    mark = codes(64)[0]
    analysis, plan = judged(model, torch.where(mark == 1, 0, mark))
    assert superfluous(analysis.layer(1)) == (1, 4)
    assert plan.layers[0].experts == (0, 2, 3)
    assert "without experts 1, 4" in plan.layers[0].reason
    assert analysis.steps[-1].lost.value == 0


# The rule alone

SIZE = 200


def scores(wrong: int) -> Tensor:
    """All right but the first so many."""
    return (torch.arange(SIZE) >= wrong).float()


def outcome(costs: Mapping[int, int], max_drop: float = 0.0) -> list[int]:
    """Blocks that are pruned where each costs so many of 200 images, whatever else is pruned."""

    def try_out(changes: Mapping[int, tuple[int, ...]]) -> Tensor:
        return scores(sum(costs[number] for number in changes))

    plan, _ = plan_layers([examples.layer(number) for number in costs], scores(0), try_out, max_drop)
    return [part.layer for part in plan.layers if part.pruned]


def test_a_loss_beyond_noise_is_refused_and_one_within_it_accepted() -> None:
    assert outcome({3: 2, 4: 30, 5: 0}) == [3, 5]


def test_small_losses_do_not_add_up_to_a_large_one() -> None:
    """Each one is within noise; two together are, four are not."""
    assert outcome({1: 3, 2: 3, 3: 3, 4: 3}) == [1]
    assert outcome({1: 2, 2: 2, 3: 2, 4: 2}) == [1, 2]


def test_what_may_be_lost_is_lost_and_no_more() -> None:
    costs = {1: 10, 2: 10, 3: 10}
    assert outcome(costs, max_drop=0) == []
    assert outcome(costs, max_drop=4) == [1]
    assert outcome(costs, max_drop=8) == [1, 2]
    assert outcome(costs, max_drop=100) == [1, 2, 3]


def test_what_one_change_gains_does_not_pay_for_what_another_loses() -> None:
    def try_out(changes: Mapping[int, tuple[int, ...]]) -> Tensor:
        return scores(20 - 20 * (1 in changes) + 20 * (2 in changes))

    layers = [examples.layer(1), examples.layer(2)]
    plan, steps = plan_layers(layers, scores(20), try_out)
    assert [part.pruned for part in plan.layers] == [True, False]
    assert steps[1].lost.value == 0
    assert steps[1].own.value == 10


def test_the_plan_carries_the_numbers_that_decided() -> None:
    plan, _ = plan_layers([examples.layer(1)], scores(0), lambda _: scores(30))
    assert plan.layers[0].evidence["lost"] == 15
    assert plan.layers[0].evidence["lost_low"] > 0
    assert plan.layers[0].evidence["normalised_information"] == 0.5
    assert Plan.from_dict(plan.to_dict()) == plan


@pytest.mark.parametrize("top_k", [1, 2, 3])
def test_experts_are_never_dropped_below_what_a_choice_needs(top_k: int) -> None:
    alike = tuple((1.0,) * 3 for _ in range(3))
    experts = tuple(ExpertAnalysis(e, (0.2, 0.8, 0.0)[e], (), (), ()) for e in range(3))
    layer = dataclasses.replace(examples.layer(1), experts=experts, output_similarity=alike)
    assert superfluous(layer, top_k) == {1: (0, 2), 2: (2,), 3: ()}[top_k]
