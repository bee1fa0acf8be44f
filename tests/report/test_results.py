from dataclasses import replace
from typing import NamedTuple

from tests.analysis.examples import analysis
from vimoe.analysis.analysis_result import Estimate
from vimoe.report.results import (
    blocks,
    change,
    plan_conclusion,
    plan_table,
    planned_loss,
    pruning_conclusion,
    pruning_table,
)
from vimoe.vit.cost import Cost
from vimoe.vit.plan import LayerPlan, Plan

BEFORE, AFTER = Cost(4_000_000, 1_000_000, 20_000_000), Cost(1_000_000, 750_000, 15_000_000)
ONE_KEPT = Plan((LayerPlan(1, ()), LayerPlan(2, (0,))))


class Timing(NamedTuple):
    seconds: float
    peak_bytes: int = 2**20
    batch_size: int = 32


class State(NamedTuple):
    name: str
    score: Estimate
    lost: Estimate
    cost: Cost
    speed: Timing


STATES = [
    State("before", Estimate(90, 88, 92), Estimate(0, -1, 1), BEFORE, Timing(0.004)),
    State("right after", Estimate(85, 83, 87), Estimate(5, 3, 7), AFTER, Timing(0.003)),
    State("recovered", Estimate(90.5, 88, 92), Estimate(-0.5, -2, 1), AFTER, Timing(0.003)),
]


def test_a_loss_is_told_as_a_change_without_minus_zero() -> None:
    assert change(Estimate(1.0, -0.5, 2.5)) == "-1.0 (-2.5 to +0.5)"
    assert change(Estimate(0.0, 0.0, 0.0)) == "+0.0 (+0.0 to +0.0)"


def test_runs_of_blocks_are_drawn_together() -> None:
    assert blocks([]) == "no block"
    assert blocks([3]) == "block 3"
    assert blocks([11, 10]) == "blocks 10, 11"
    assert blocks(range(12)) == "blocks 0 to 11"
    assert blocks([0, 1, 2, 5]) == "blocks 0 to 2, 5"


def test_the_plan_loses_what_its_last_accepted_step_lost() -> None:
    assert planned_loss(analysis()) == Estimate(0.5, -1.0, 2.0)
    assert planned_loss(replace(analysis(), steps=())) is None


def test_the_plans_table_has_the_model_as_it_is_and_as_planned() -> None:
    rows = plan_table(analysis(), ONE_KEPT, BEFORE, AFTER).rows
    assert rows == [
        ["as it is: MoE in blocks 1, 2", "90.0 (82.5 to 97.5)", "", "1.00 M", "4.00 M", "20.0 MMAC"],
        ["as planned: MoE in block 2", "89.5", "-0.5 (-2.0 to +1.0)", "0.75 M", "1.00 M", "15.0 MMAC"],
    ]
    nothing = replace(analysis(), steps=())
    assert len(plan_table(nothing, ONE_KEPT, BEFORE, BEFORE).rows) == 1


def test_the_plan_in_a_sentence() -> None:
    told = plan_conclusion(analysis(), ONE_KEPT, BEFORE, AFTER)
    assert told == (
        "Of 2 MoE layers 1 earns its keep, block 2; the others become plain FFNs. On 40 images of “val” this changes "
        "the accuracy by -0.5 points (95 %: -2.0 to +1.0), within noise, before any recovery training; multiply-adds "
        "change by -25 %, stored parameters by -75 %."
    )
    none = plan_conclusion(analysis(), Plan((LayerPlan(1, ()), LayerPlan(2, ()))), BEFORE, AFTER)
    assert none.startswith("None of the 2 MoE layers is needed")
    everything = Plan((LayerPlan(1, (0, 1)), LayerPlan(2, (0, 1))))
    kept = plan_conclusion(replace(analysis(), steps=()), everything, BEFORE, BEFORE)
    assert kept.startswith("All 2 MoE layers are needed as they are")
    assert plan_conclusion(analysis(), everything, BEFORE, AFTER).startswith("All 2 MoE layers stay, some with fewer")


def test_what_pruning_did_in_a_table_and_a_sentence() -> None:
    table = pruning_table(STATES, "top1", 400)
    assert table.header[1] == "test top-1 % (95 %)"
    assert [row[2] for row in table.rows] == ["", "-5.0 (-7.0 to -3.0)", "+0.5 (-1.0 to +2.0)"]
    assert table.rows[0][-2:] == ["4.00", "1.0"]
    told = pruning_conclusion(STATES, "top1", 400)
    assert told == (
        "Pruned and recovered, the model has 90.5 % of 400 test images right against 90.0 % before: +0.5 points "
        "(95 %: -1.0 to +2.0), within noise. Multiply-adds change by -25 %, stored parameters by -75 %, the time for "
        "an image by -25 %."
    )
    told = pruning_conclusion(STATES[:2], "pixels", 400)
    assert told.startswith("Pruned, without recovery training, the model has 85.0 % of the pixels of 400 test images")
    assert "-5.0 points (95 %: -7.0 to -3.0), beyond noise" in told
