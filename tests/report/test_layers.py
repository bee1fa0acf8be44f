from dataclasses import replace

from tests.analysis.examples import analysis
from vimoe.report.layers import layer_views
from vimoe.vit.plan import LayerPlan, Plan

PLAN = Plan((LayerPlan(1, (), reason="dispensable"), LayerPlan(2, (0,), reason="needed")))


def test_the_last_block_comes_first_with_what_becomes_of_it() -> None:
    last, first = layer_views(PLAN, analysis())
    assert (last.analysed.layer, last.fate, last.pruned, last.reason) == (2, "keep 1 of 2 experts", False, "Needed.")
    assert (first.analysed.layer, first.fate, first.pruned) == (1, "prune", True)
    edited = layer_views(Plan(()), analysis())
    assert [view.fate for view in edited] == ["keep", "keep"]
    assert edited[0].reason == "Edited by hand: the analysis decided otherwise."


def test_losses_are_written_as_changes_and_neighbours_from_both_sides() -> None:
    last, first = layer_views(PLAN, analysis())
    assert last.ablations is not None
    assert [row[1].split()[0] for row in last.ablations.rows] == ["-3.0", "-6.0", "-8.0", "-4.0", "-4.5"]
    assert last.ablations.rows[-1][1] == "-4.5 (-6.5 to -2.5)"
    assert last.neighbours == [(1, 0.3)]
    assert first.neighbours == [(2, 0.3)]


def test_experts_stand_in_the_order_of_their_load_each_with_its_nearest() -> None:
    heavy, light = layer_views(PLAN, analysis())[0].experts
    assert (heavy.analysed.expert, light.analysed.expert) == (1, 0)
    assert heavy.like == (0, 0.4)
    assert heavy.colour != light.colour
    assert light.colour == "#0072b2"


def test_an_unused_expert_has_no_card() -> None:
    found = analysis()
    last = found.layers[-1]
    idle = replace(last.experts[0], load=0.0, classes=(), confident=(), unsure=())
    found = replace(found, layers=(found.layers[0], replace(last, experts=(idle, last.experts[1]))))
    view = layer_views(PLAN, found)[0]
    assert [expert.analysed.expert for expert in view.experts] == [1]
    assert view.experts[0].like is None


def test_what_was_not_measured_is_left_out() -> None:
    found = analysis()
    found = replace(found, layers=tuple(replace(layer, ablations=()) for layer in found.layers), neighbours=())
    last = layer_views(PLAN, found)[0]
    assert (last.ablations, last.neighbours) == (None, [])
