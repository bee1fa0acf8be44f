import csv
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from tests.study.support import TINY, row, study
from vimoe.errors import UserError
from vimoe.study.grid import list_runs
from vimoe.study.study_rows import by_setting, read_study_rows, study_rows, write_study

RESULT: dict[str, Any] = {
    **{"metric": "top1", "val_top1": 80.0, "test_top1": 81.0, "test_nll": 0.5, "seconds": 3.0},
    **{"stored_params": 100, "activated_params": 90, "macs": 1000},
}
MOE = {
    **RESULT,
    "routing_degree": 4,
    "layers": {
        "0": {"normalised": 0.25, "load": [0.75, 0.25], "experts_touched": 1.0},
        "1": {"normalised": 0.5, "load": [0.5, 0.5], "experts_touched": 1.5},
    },
}


def test_each_finished_run_is_a_row_that_tells_what_varies(tmp_path: Path) -> None:
    runs = list_runs(study(tmp_path, TINY))
    rows = study_rows(runs, {"seed0/start": RESULT, "seed0/N2-L2": MOE})
    assert [(row.run, row.kind) for row in rows] == [("seed0/start", "start"), ("seed0/N2-L2", "moe")]
    moe = rows[1]
    assert (moe.val, moe.test) == (80.0, 81.0)
    assert moe.recipe["last"] == 2
    assert moe.recipe["shared_expert"] is False
    assert "lr" not in moe.recipe  # it does not vary
    assert moe.counts["routing_degree"] == 4
    assert rows[0].counts["routing_degree"] == 1
    assert moe.information == {0: 0.25, 1: 0.5}
    assert moe.max_load == {0: 0.75, 1: 0.5}
    assert moe.touched == {0: 1.0, 1: 1.5}


def test_kinds_are_told_apart(tmp_path: Path) -> None:
    runs = list_runs(study(tmp_path, TINY + "  - {name: wide, baseline: wide, last: 1}\n"))
    rows = study_rows(runs, dict.fromkeys((run.name for run in runs), RESULT))
    assert {row.setting: row.kind for row in rows} == {
        **{"start": "start", "dense": "dense", "wide2-L1": "wide"},
        **{"N2-L2-shared": "moe", "N2-L2": "moe"},
    }


def test_the_table_comes_back_as_it_was_written(tmp_path: Path) -> None:
    rows = [row("dense", 0, 80.0), row("N8-L2-shared", 0, 81.25), row("N2-L12", 1, 79.9, shared_expert=False)]
    rows[1] = replace(rows[1], variants=("main", "wide control"), recipe=rows[1].recipe | {"model_args": {"depth": 3}})
    rows = [replace(each, recipe={"model_args": {}} | each.recipe) for each in rows]
    write_study(rows, tmp_path / "study.csv")
    assert read_study_rows(tmp_path / "study.csv") == rows


def test_every_row_of_the_file_has_a_cell_for_every_column(tmp_path: Path) -> None:
    write_study([row("dense", 0, 80.0), row("N8-L2", 0, 81.0)], tmp_path / "study.csv")
    with (tmp_path / "study.csv").open(newline="") as file:
        lines = list(csv.reader(file))
    assert len({len(line) for line in lines}) == 1
    assert "information.11" in lines[0]
    assert "information.9" not in lines[0]


def test_rows_are_grouped_by_setting_in_their_order() -> None:
    rows = [row("b", 0, 1.0), row("a", 0, 2.0), row("b", 1, 3.0)]
    assert {name: [r.seed for r in same] for name, same in by_setting(rows).items()} == {"b": [0, 1], "a": [0]}


@pytest.mark.parametrize("text", ["run,setting\nseed0/dense,dense\n", "a,b\n1,2\n"])
def test_a_foreign_table_is_one_line(text: str, tmp_path: Path) -> None:
    (tmp_path / "study.csv").write_text(text)
    with pytest.raises(UserError, match="is no study's table"):
        read_study_rows(tmp_path / "study.csv")


def test_a_missing_table_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"cannot read .*study.csv: No such file"):
        read_study_rows(tmp_path / "study.csv")
