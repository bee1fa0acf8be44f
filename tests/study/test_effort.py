import math
from dataclasses import replace
from pathlib import Path

import pytest

from tests.study.support import TINY, study
from vimoe.errors import UserError
from vimoe.study.effort import Effort, effort_table, efforts, expected_seconds, seeds_line, training_steps
from vimoe.study.grid import StudyRun, list_runs
from vimoe.training.build import build_model
from vimoe.training.recipe import Recipe
from vimoe.training.source import open_recipe_data
from vimoe.vit.cost import Cost, cost


def planned(setting: str, seed: int = 0) -> StudyRun:
    return StudyRun(setting, "", Recipe(seed=seed), ("main",))


def test_efforts_are_those_of_the_real_models_though_none_was_pretrained_yet(tmp_path: Path) -> None:
    runs = [run for run in list_runs(study(tmp_path, TINY)) if run.setting in ("start", "N2-L2-shared")]
    found = efforts(runs)
    upcycled = build_model(Recipe(**{**vars(runs[1].recipe), "initial_checkpoint": None}), open_recipe_data(Recipe()))
    assert found["N2-L2-shared"].cost == cost(upcycled)
    assert found["start"].cost.stored_params < found["N2-L2-shared"].cost.stored_params
    assert found["start"].images == 4 * 256  # of 1,077 digits
    assert found["start"].macs == 3 * 4 * 256 * found["start"].cost.macs


def test_a_frozen_trunk_is_run_once_an_image_and_forward_alone_and_once_in_all_where_it_is_kept(tmp_path: Path) -> None:
    frozen = TINY.replace("epochs: 1", "epochs: 3\n  freeze: trunk").replace("last: [0, 2]", "last: 1")
    runs = list_runs(study(tmp_path, frozen))
    wanted = next(run for run in runs if run.kind == "moe")
    (effort,) = efforts([wanted]).values()
    kept = replace(wanted, recipe=replace(wanted.recipe, cache_features="memory", feature_views=2))
    (cached,) = efforts([kept]).values()
    assert effort.images == 3 * 4 * 256
    assert 0 < effort.trunk_macs < effort.cost.macs
    assert effort.macs == effort.images * (3 * effort.cost.macs - 2 * effort.trunk_macs)
    assert effort.macs - cached.macs == (effort.images - 2 * 1077) * effort.trunk_macs


def test_what_cannot_be_made_is_told_with_the_runs_name(tmp_path: Path) -> None:
    runs = list_runs(study(tmp_path, TINY.replace("last: [0, 2]", "last: 3")))
    with pytest.raises(UserError, match="run seed0/N2-L3-shared: last must be"):
        efforts(runs)


def test_batches_that_fill_no_step_are_left_out() -> None:
    assert training_steps(Recipe(epochs=2, batch_size=10, accumulate=3), 99) == 2 * 3


def test_a_pilot_tells_how_many_seeds_a_difference_needs() -> None:
    assert seeds_line(1.0, 3, 1.0) == (
        "paired differences spread by 1.00 points between the pilot's seeds: a difference of 1 is found in 80 % of "
        "cases with 10 seeds; 3 seeds show 3.26"
    )
    assert "with more than 1000 seeds" in seeds_line(1.0, 3, 0.01)
    assert seeds_line(1.0, 1, 1.0).endswith("10 seeds; one seed shows none")
    assert "no pilot with two seeds" in seeds_line(math.nan, 3, 0.5)


EFFORT = {"a": Effort(Cost(1, 1, 100), 10), "b": Effort(Cost(1, 1, 300), 10)}


def test_a_run_is_expected_to_take_as_long_as_its_like_did() -> None:
    assert expected_seconds(planned("a"), EFFORT, {"a": [4.0, 6.0], "b": [99.0]}) == 5.0


def test_a_run_without_its_like_goes_by_its_multiply_adds() -> None:
    assert expected_seconds(planned("b"), EFFORT, {"a": [4.0, 6.0]}) == pytest.approx(15.0)
    assert expected_seconds(planned("b"), EFFORT, {}) == 0.0


def test_the_table_counts_shared_runs_once_and_what_is_left() -> None:
    runs = [planned("a"), planned("b"), planned("a", 1), planned("b", 1)]
    table = effort_table(runs, EFFORT, {"a": [60.0]}, ["seed0/a"], jobs=2).text()
    lines = table.splitlines()
    assert len([line for line in lines if line.startswith(("a ", "b "))]) == 2
    assert lines[2].split()[1:3] == ["2", "1"]
    assert "4 runs, 1 done" in table
    # One more a of 60 s and two b of 180 s each, two at a time.
    assert "about 3 min 30 s left with 2 at a time" in table
    assert "left" not in effort_table(runs, EFFORT, {}, [], jobs=2).text()
