from dataclasses import replace

from tests.analysis.examples import analysis
from tests.report.test_comparison import AFTER, BEFORE
from vimoe.report.results import (
    decision_table,
    edited_blocks,
    fate_of,
    plan_sentence,
    plan_table,
    reason_of,
)
from vimoe.vit.plan import LayerPlan, Plan

# What the steps of the example lead to: block 1 pruned, block 2 without expert 1.
AS_DECIDED = Plan((LayerPlan(1, ()), LayerPlan(2, (0,))))
EVERYTHING = Plan((LayerPlan(1, (0, 1)), LayerPlan(2, (0, 1))))


def test_the_plans_table_has_the_model_as_it_is_and_as_planned() -> None:
    table = plan_table(analysis(), AS_DECIDED, BEFORE, AFTER)
    assert table.header[1] == "val top-1 % (95 %)"
    lost = "-0.5 (-2.0 to +1.0)"  # of the last accepted step
    assert table.rows == [
        ["as it is", "90.0 (82.5 to 97.5)", "", "1.00 M", "4.00 M", "20.0 MMAC"],
        ["as planned, before any recovery training", "89.5", lost, "0.750 M", "1.00 M", "15.0 MMAC"],
    ]
    nothing = replace(analysis(), steps=())
    assert len(plan_table(nothing, EVERYTHING, BEFORE, BEFORE).rows) == 1


def test_the_plan_in_a_sentence() -> None:
    assert plan_sentence(analysis(), AS_DECIDED, BEFORE, AFTER) == (
        "1 of 2 MoE layers stays, block 2; the others become plain FFNs. “as planned, before any recovery training” "
        "reaches 89.5 % top-1 on 40 val images, “as it is” 90.0 %: -0.5 points (95 %: -2.0 to +1.0), within noise. "
        "Multiply-adds -25 %, stored parameters -75 %."
    )
    steps = tuple(replace(step, outcome="needed" if step.drop else "accepted") for step in analysis().steps)
    none = plan_sentence(replace(analysis(), steps=steps), Plan((LayerPlan(1, ()), LayerPlan(2, ()))), BEFORE, AFTER)
    assert none.startswith("None of the 2 MoE layers is needed")
    kept = plan_sentence(replace(analysis(), steps=()), EVERYTHING, BEFORE, BEFORE)
    assert kept.startswith("All 2 MoE layers stay as they are")
    fewer = replace(analysis(), steps=analysis().steps[2:])
    some = plan_sentence(fewer, Plan((LayerPlan(2, (0,)), LayerPlan(1, (0, 1)))), BEFORE, AFTER)
    assert some.startswith("All 2 MoE layers stay, some with fewer")


def test_one_table_has_every_step_in_the_order_tried_with_what_it_cost_and_the_decision() -> None:
    table = decision_table(analysis(), AS_DECIDED)
    assert table.rows == [
        ["1", "10 % (0 to 20)", "-0.5 (-2.0 to +1.0)", "-0.5 (-2.0 to +1.0)", "prune"],
        ["2", "60 % (50 to 70)", "-5.5 (-9.0 to -2.0)", "-6.0 (-10.0 to -2.0)", "keep 1 of 2 experts, needed"],
        ["2, without expert 1", "", "+0.0 (-1.0 to +1.0)", "-0.5 (-2.0 to +1.0)", "dropped"],
    ]
    assert "both intervals show a loss of at most 2 points" in table.notes[0]
    assert table.notes[1].startswith("With 40 images losses below 1.5 points cannot be told from none")


def test_a_layer_that_the_images_cannot_decide_is_marked_so() -> None:
    steps = tuple(replace(step, outcome="undecided") for step in analysis().steps[:2])
    table = decision_table(replace(analysis(), steps=steps), EVERYTHING)
    assert [row[-1] for row in table.rows] == ["keep, not decidable"] * 2
    assert "2 of 2 layers are not decidable and stay" in table.notes[1]


def test_a_decision_that_the_analysis_did_not_make_is_marked_as_edited_by_hand() -> None:
    assert edited_blocks(analysis(), AS_DECIDED) == []
    merged = Plan((LayerPlan(1, ()), LayerPlan(2, (0,), merge=True)))
    assert edited_blocks(analysis(), merged) == [2]
    assert fate_of(analysis().layers[-1], merged) == "merge into 1 of 2 experts"
    by_hand = Plan((LayerPlan(1, (0, 1)),))  # block 2 is not named and stays whole
    assert edited_blocks(analysis(), by_hand) == [1, 2]
    decisions = [row[-1] for row in decision_table(analysis(), by_hand).rows]
    assert decisions == ["keep, edited by hand", "keep, edited by hand", "dropped"]
    assert plan_sentence(analysis(), by_hand, BEFORE, BEFORE).startswith("The plan was edited by hand in blocks 1, 2")
    assert len(plan_table(analysis(), by_hand, BEFORE, BEFORE).rows) == 1  # what it would score was never measured


def test_a_plans_decision_on_a_layer_in_a_word_and_in_a_sentence() -> None:
    last = analysis().layers[-1]
    assert fate_of(last, AS_DECIDED) == "keep 1 of 2 experts"
    assert fate_of(last, EVERYTHING) == fate_of(last, Plan(())) == "keep"
    assert fate_of(last, Plan((LayerPlan(2, ()),))) == "prune"
    explained = Plan((LayerPlan(1, (), reason="dispensable"), LayerPlan(2, (0,))))
    assert reason_of(1, analysis(), explained) == "Dispensable."
    assert reason_of(2, analysis(), explained) == ""
    assert reason_of(1, analysis(), EVERYTHING) == "Edited by hand: the analysis decided otherwise."
