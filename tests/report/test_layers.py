from dataclasses import replace

from tests.analysis.examples import analysis
from tests.report.examples import counts, rows
from vimoe.report.layers import change_span, layer_views
from vimoe.vit.plan import LayerPlan, Plan

PLAN = Plan((LayerPlan(1, ()), LayerPlan(2, (0,))))


def views(**changes: object) -> list:  # type: ignore[type-arg]
    arguments = {"plan": PLAN, "analysis": analysis(), "rows": rows(), "shown": {3: None, 0: None}, **changes}
    return layer_views(counts(), **arguments)  # type: ignore[arg-type]


def test_the_last_block_comes_first_with_what_becomes_of_it() -> None:
    last, first = views()
    assert (last.number, last.fate, last.pruned) == (2, "keep 1 of 2 experts", False)
    assert (first.number, first.fate, first.pruned) == (1, "prune", True)
    assert [view.fate for view in views(plan=Plan(()))] == ["keep", "keep"]


def test_losses_are_told_as_changes_all_on_one_scale() -> None:
    last, first = views()
    assert last.without.told == "-4.5 (-6.5 to -2.5)"
    assert [bar.told.split()[0] for bar in last.ablations] == ["-3.0", "-6.0", "-8.0", "-4.0", "-4.5"]
    low, high = change_span(analysis())
    assert low < -10
    assert high >= 0
    assert last.specialised.told == "60 % (50 to 70)"
    assert last.neighbours == [(1, 0.3)]
    assert first.neighbours == [(2, 0.3)]


def test_experts_stand_in_the_order_of_their_load_with_the_images_there_are() -> None:
    heavy, light = views()[0].experts
    assert (heavy.number, light.number) == (1, 0)
    assert light.confident == [3]
    assert light.unsure == [0]
    assert heavy.confident == []
    assert heavy.like == (0, 0.4)
    assert light.classes[0] == ("a", 0.7, 1.4)
    assert heavy.colour != light.colour


def test_an_unused_expert_has_no_card() -> None:
    found = analysis()
    last = found.layers[-1]
    idle = replace(last.experts[0], load=0.0, classes=(), confident=(), unsure=())
    found = replace(found, layers=(found.layers[0], replace(last, experts=(idle, last.experts[1]))))
    view = views(analysis=found)[0]
    assert [expert.number for expert in view.experts] == [1]
    assert view.experts[0].like is None


def test_what_was_not_measured_is_left_out() -> None:
    found = analysis()
    found = replace(found, layers=tuple(replace(layer, ablations=()) for layer in found.layers), neighbours=())
    last = views(analysis=found, rows=[])[0]
    assert (last.without, last.ablations, last.load, last.neighbours) == (None, [], None, [])
