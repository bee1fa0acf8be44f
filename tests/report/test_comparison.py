from pathlib import Path

from vimoe.analysis.paired import Estimate
from vimoe.report.comparison import (
    Evidence,
    Speed,
    Variant,
    change,
    comparison_sentence,
    comparison_table,
    pruning_table,
)
from vimoe.vit.cost import Cost

BEFORE, AFTER = Cost(4_000_000, 1_000_000, 20_000_000), Cost(1_000_000, 750_000, 15_000_000)
STATES = [
    Variant("before", Estimate(90, 88, 92), BEFORE, speed=Speed(0.004, 2**20, 32)),
    Variant("right after", Estimate(85, 83, 87), AFTER, Estimate(5, 3, 7), Speed(0.003, 2**20, 32)),
    Variant("recovered", Estimate(90.5, 88, 92), AFTER, Estimate(-0.5, -2, 1), Speed(0.003, 2**20, 32)),
]


def test_a_loss_is_written_as_a_change_without_minus_zero() -> None:
    assert change(Estimate(1.0, -0.5, 2.5)) == "-1.0 (-2.5 to +0.5)"
    assert change(Estimate(0.0, 0.0, 0.0)) == "+0.0 (+0.0 to +0.0)"
    assert change(Estimate(0.04, 0.01, 0.049)) == "+0.0 (+0.0 to +0.0)"


def test_what_pruning_did_is_a_table_of_scores_changes_cost_and_speed() -> None:
    table = pruning_table(Evidence(tuple(STATES), "top1", "test", 400, False, 4, Path("pruned")))
    assert table.header[1] == "test top-1 % (95 %)"
    assert [row[2] for row in table.rows] == ["", "-5.0 (-7.0 to -3.0)", "+0.5 (-1.0 to +2.0)"]
    assert table.rows[0][-2:] == ["4.00", "1.0"]
    assert "400 test images" in table.notes[0]
    assert "a batch of 32" in table.notes[1]


def test_models_that_were_trained_side_by_side_have_seconds_and_no_speed() -> None:
    table = comparison_table([Variant("dense", Estimate(96.7, 95, 98), AFTER, training=57.4)], "pixels", 9, "A note.")
    assert table.header[1] == "test pixel accuracy % (95 %)"
    assert table.rows == [["dense", "96.7 (95.0 to 98.0)", "", "0.750 M", "1.00 M", "15.0 MMAC", "57"]]
    assert table.header[-1] == "training s"
    assert "A note." in table.notes[0]


def test_the_verdict_comes_from_the_paired_interval_and_from_nothing_else() -> None:
    """Two scores whose own intervals overlap widely differ all the same where the paired interval leaves out 0."""
    control = Variant("dense", Estimate(90, 86, 94), BEFORE)
    sure = Variant("moe", Estimate(92, 88, 96), BEFORE, Estimate(-2, -3, -1))
    assert comparison_sentence(sure, control, "top1", 300) == (
        "“moe” reaches 92.0 % top-1 on 300 test images, “dense” 90.0 %: +2.0 points (95 %: +1.0 to +3.0), beyond "
        "noise. Multiply-adds +0 %, stored parameters +0 %."
    )
    unsure = Variant("moe", Estimate(92, 88, 96), AFTER, Estimate(-2, -5, 1))
    assert "+2.0 points (95 %: -1.0 to +5.0), within noise. Multiply-adds -25 %" in comparison_sentence(
        unsure, control, "top1", 300
    )


def test_time_is_compared_where_both_have_one() -> None:
    assert comparison_sentence(STATES[2], STATES[0], "miou", 400) == (
        "“recovered” reaches 90.5 % mean IoU on 400 test images, “before” 90.0 %: +0.5 points (95 %: -1.0 to +2.0), "
        "within noise. Multiply-adds -25 %, stored parameters -75 %, time for an image -25 %."
    )
