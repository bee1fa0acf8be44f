import math
from dataclasses import replace

import numpy as np
import pytest

from tests.study.support import row
from vimoe.study.comparisons import Comparison, adjusted, comparisons, spread, tuned, without
from vimoe.study.study_table import StudyRow


def seeds(setting: str, *tests: float, **changes: object) -> list[StudyRow]:
    return [row(setting, seed, test, **changes) for seed, test in enumerate(tests)]


def asked(rows: list[StudyRow]) -> dict[tuple[str, str, str], dict[int, float]]:
    return {(c.question, c.one, c.other): c.differences for c in comparisons(rows)}


DENSE = seeds("dense", 80.0, 81.0)


def test_moe_is_compared_with_dense_seed_by_seed() -> None:
    rows = [*seeds("start", 70.0, 70.0), *DENSE, *seeds("N8-L2-shared", 81.0, 81.5), *seeds("N8-L2", 80.5, 80.0)]
    found = asked(rows)
    assert found[("MoE with a shared expert against dense", "N8-L2-shared", "dense")] == {0: 1.0, 1: 0.5}
    assert found[("MoE without a shared expert against dense", "N8-L2", "dense")] == {0: 0.5, 1: -1.0}
    assert found[("MoE: shared_expert true against false", "N8-L2-shared", "N8-L2")] == {0: 0.5, 1: 1.5}
    assert len(found) == 3  # nothing with the pretraining


def test_with_a_frozen_trunk_moe_is_compared_with_the_dense_model_that_learns_in_the_same_blocks() -> None:
    rows = [
        *seeds("dense", 80.0, 81.0, freeze="trunk"),
        *seeds("dense-L1", 82.0, 83.0, freeze="trunk"),
        *seeds("N8-L1-shared", 85.0, 84.0, freeze="trunk"),
    ]
    assert asked(rows) == {
        ("MoE with a shared expert against dense", "N8-L1-shared", "dense-L1"): {0: 3.0, 1: 1.0},
    }


def test_a_planned_run_is_compared_with_all_that_it_stands_for_and_nothing_else() -> None:
    rows = [
        *DENSE,
        *seeds("dense-epochs=10", 80.25, 81.25, epochs=10),
        *seeds("N8-L2-shared", 81.0, 81.5, val=70.0),
        *seeds("N8-L4-shared", 80.0, 80.5, val=75.0),
        *seeds("N8-L2", 70.0, 70.0, val=99.0),
        *seeds("N4-L2-shared", 70.0, 70.0, val=99.0),
        *seeds("N8-L4-shared-planned", 80.5, 82.0, epochs=10),
    ]
    rows = [replace(row, values=row.values | {"val_top1": 60.0}) if row.kind == "dense" else row for row in rows]
    found = {(q, other): d for (q, one, other), d in asked(rows).items() if one.endswith("planned")}
    assert found == {
        ("planned against each L of the sweep", "dense"): {0: 0.5, 1: 1.0},
        ("planned against each L of the sweep", "N8-L2-shared"): {0: -0.5, 1: 0.5},
        ("planned against each L of the sweep", "N8-L4-shared"): {0: 0.5, 1: 1.5},
        ("planned against the best L on val", "N8-L4-shared"): {0: 0.5, 1: 1.5},
        ("planned against dense with as many epochs", "dense-epochs=10"): {0: 0.25, 1: 0.75},
    }


def test_the_wide_control_fits_its_own_number_of_layers_and_a_shared_expert_alone() -> None:
    rows = [
        *DENSE,
        *seeds("N8-L2-shared", 81.0),
        *seeds("N8-L2", 80.0),
        *seeds("wide2-L2", 80.5),
        *seeds("wide2-L4", 80.75),
    ]
    question = "MoE with a shared expert against dense of equal activated parameters"
    controls = {
        (one, other): d for (q, one, other), d in asked(rows).items() if q.endswith("equal activated parameters")
    }
    assert controls == {("N8-L2-shared", "wide2-L2"): {0: 0.5}}
    assert (question, "N8-L2-shared", "wide2-L2") in asked(rows)
    assert ("dense with more parameters against dense", "wide2-L4", "dense") in asked(rows)


def test_a_control_of_equal_size_is_held_against_the_moe_that_it_was_made_for() -> None:
    special = {"expert_rank": 8, "init": ""}
    rows = [
        *seeds("N8-L2-shared", 81.0, expert_rank=0, init=""),
        *seeds("N8-L2-shared-expert_rank=8", 82.0, **special),
        *seeds("wide2-L2", 80.0, expert_rank=0, init=""),
        *seeds("wide-L2-expert_rank=8", 79.0, **special),
        *seeds("lora-L2", 78.0, expert_rank=0, init=""),
        *seeds("vpt", 77.0, expert_rank=0, init=""),
    ]
    pairs = {(one, other) for _, one, other in asked(rows)}
    assert {pair for pair in pairs if pair[0].startswith("N8") and not pair[1].startswith("N8")} == {
        ("N8-L2-shared", "wide2-L2"),
        ("N8-L2-shared-expert_rank=8", "wide-L2-expert_rank=8"),
        ("N8-L2-shared", "lora-L2"),
        ("N8-L2-shared", "vpt"),
        ("N8-L2-shared-expert_rank=8", "vpt"),
    }


def test_a_seed_that_one_of_the_two_lacks_does_not_count() -> None:
    rows = [row("dense", 0, 80.0), row("dense", 2, 82.0), row("N8-L2", 1, 99.0), row("N8-L2", 2, 83.0)]
    assert list(asked(rows).values()) == [{2: 1.0}]


def test_other_keys_are_compared_one_by_one_within_models_of_one_kind() -> None:
    rows = [
        *seeds("N8-L2", 80.0),
        *seeds("N8-L2-paper", 79.0),
        *seeds("N8-L4-paper", 70.0),
        *seeds("N8-L2-shared", 85.0),
    ]
    found = asked(rows)
    assert found[("MoE without a shared expert: preset paper against preserve", "N8-L2-paper", "N8-L2")] == {0: -1.0}
    assert [q for q, _, _ in found if "preset" in q] == ["MoE without a shared expert: preset paper against preserve"]


def test_a_question_asked_of_several_settings_is_asked_of_their_mean() -> None:
    rows = [*DENSE, *seeds("N8-L2", 81.0, 83.0), *seeds("N8-L4", 82.0, 80.0)]
    many = [c for c in comparisons(rows) if c.of_many]
    assert [(c.one, c.differences) for c in many] == [("mean of 2", {0: 1.5, 1: 0.5})]


def test_a_mean_over_settings_holds_the_seeds_that_all_of_them_have_by_image_too() -> None:
    rows = [*DENSE, *seeds("N8-L2", 81.0, 83.0), *seeds("N8-L4", 82.0)]
    right = {row.run: np.array([row.seed == 1 and row.setting == "N8-L2", True]) for row in rows}
    right["seed0/N8-L4"] = np.array([True, True])
    mean = next(c for c in comparisons(rows, right) if c.of_many)
    assert list(mean.differences) == [0]
    assert mean.right is not None
    assert mean.right.tolist() == [[0.5, 1.0], [0.0, 1.0]]


def test_the_best_number_of_layers_is_chosen_on_the_validation_split() -> None:
    rows = [
        *seeds("N8-L1", 99.0, 99.0, val=50.0),  # best on the test split, which must not choose
        *seeds("N8-L2", 80.0, 82.0, val=70.0),
        *seeds("N8-L4", 79.0, 80.0, val=60.0),
    ]
    found = {(q, one, other): d for (q, one, other), d in asked(rows).items() if "best L on val" in q}
    question = "N = 8, MoE without a shared expert: most layers against the best L on val"
    assert found == {(question, "N8-L4", "N8-L2"): {0: -1.0, 1: -2.0}}


def test_spread_and_adjustment_leave_means_alone() -> None:
    rows = [*DENSE, *seeds("N8-L2", 81.0, 83.0), *seeds("N8-L4", 82.0, 80.0)]
    found = [c for c in comparisons(rows) if c.question == "MoE without a shared expert against dense"]
    # Differences 1, 2 and 2, -1: squared deviations 0.5 and 4.5 over 2 degrees of freedom.
    assert spread(found) == pytest.approx(math.sqrt(2.5))
    plain = [c.paired.p_value for c in found]
    assert adjusted(found) == pytest.approx([min(1.0, 2 * plain[0]), max(2 * plain[0], plain[1]), plain[2]])


def test_without_a_second_seed_there_is_no_spread() -> None:
    assert math.isnan(spread([Comparison("q", "a", "b", {0: 1.0})]))
    assert comparisons([]) == []


def test_differences_are_paired_by_image_within_and_over_seeds() -> None:
    rows = [*seeds("dense", 50.0, 50.0), *seeds("N8-L2", 75.0, 50.0), *seeds("N8-L4", 50.0, 75.0)]
    right = {
        **{"seed0/dense": [1, 1, 0, 0], "seed1/dense": [1, 0, 1, 0]},
        **{"seed0/N8-L2": [1, 1, 1, 0], "seed1/N8-L2": [0, 1, 1, 0]},
        **{"seed0/N8-L4": [1, 1, 0, 0], "seed1/N8-L4": [1, 0, 1, 1]},
    }
    found = comparisons(rows, {run: np.array(images, dtype=bool) for run, images in right.items()})
    one, other, mean = (c for c in found if c.question == "MoE without a shared expert against dense")
    gained = [list(c.right[0] - c.right[1]) for c in (one, other, mean) if c.right is not None]
    assert gained == [[-0.5, 0.5, 0.5, 0.0], [0.0, 0.0, 0.0, 0.5], [-0.25, 0.25, 0.25, 0.25]]
    assert one.by_image is not None
    assert one.by_image.value == pytest.approx(12.5)  # as the mean over seeds of the test scores says
    assert one.by_image.low < 0 < one.by_image.high


def test_without_all_images_of_a_comparison_there_is_no_interval_over_images() -> None:
    rows = [*DENSE, *seeds("N8-L2", 81.0, 83.0)]
    right = {row.run: np.ones(4, dtype=bool) for row in rows}
    assert all(c.by_image is not None for c in comparisons(rows, right))
    assert all(c.by_image is None for c in comparisons(rows, right | {"seed1/N8-L2": np.ones(3, dtype=bool)}))
    assert all(c.by_image is None for c in comparisons(rows, {"seed0/dense": right["seed0/dense"]}))
    assert all(c.by_image is None for c in comparisons(rows))


def test_each_setting_is_compared_with_its_own_best_rate_on_the_validation_split() -> None:
    rows = [
        *seeds("dense", 80.0, lr=0.1, val=70.0),
        *seeds("dense-lr=0.2", 81.0, lr=0.2, val=75.0),
        *seeds("dense-lr=0.4", 99.0, lr=0.4, val=60.0),  # best on the test split, which must not choose
        *seeds("N8-L2-lr=0.4", 84.0, lr=0.4, val=75.0),
        *seeds("N8-L2-lr=0.2", 83.0, lr=0.2, val=70.0),
        *seeds("N8-L2-lr=0.4-planned", 85.0, lr=0.4),
        *seeds("N8-L2-lr=0.2-planned", 86.0, lr=0.2),
    ]
    assert [row.setting for row in tuned(rows)] == ["dense-lr=0.2", "N8-L2-lr=0.4", "N8-L2-lr=0.4-planned"]
    found = asked(rows)
    assert found[("MoE without a shared expert against dense", "N8-L2-lr=0.4", "dense-lr=0.2")] == {0: 3.0}
    assert not [question for question, _, _ in found if "lr" in question]


def test_a_qualifier_is_left_without_what_it_says_of_a_key() -> None:
    each = replace(row("N8-L2", 0, 1.0, lr=1e-05, epochs=10), qualifier="token-lr=1e-05-epochs=10")
    assert without(each, ["lr"]) == "token-epochs=10"
    assert without(each, ["lr", "epochs"]) == "token"
    assert without(replace(each, qualifier="lr=1e-05"), ["lr"]) == ""
    assert without(replace(each, qualifier=""), ["lr"]) == ""
