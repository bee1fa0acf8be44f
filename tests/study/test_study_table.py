import csv
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.study.support import TINY, row, study
from vimoe.errors import UserError
from vimoe.study.grid import list_runs
from vimoe.study.study_table import by_setting, deepest, gather, read_table, study_rows, write_rows

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
    assert moe.values["routing_degree"] == 4
    assert rows[0].values["routing_degree"] == 1
    assert moe.by_block("information") == {0: 0.25, 1: 0.5}
    assert moe.by_block("max_load") == {0: 0.75, 1: 0.5}
    assert moe.by_block("touched") == {0: 1.0, 1: 1.5}


def test_kinds_are_told_apart(tmp_path: Path) -> None:
    runs = list_runs(study(tmp_path, TINY + "  - {name: wide, baseline: wide, last: 1}\n"))
    rows = study_rows(runs, dict.fromkeys((run.name for run in runs), RESULT))
    assert {row.setting: row.kind for row in rows} == {
        **{"start": "start", "dense": "dense", "wide2-L1": "wide"},
        **{"N2-L2-shared": "moe", "N2-L2": "moe"},
    }


def test_the_table_comes_back_as_it_was_written(tmp_path: Path) -> None:
    rows = [row("dense", 0, 80.0), row("N8-L2-shared", 0, 81.25), row("N2-L12", 1, 79.9, shared_expert=False)]
    rows[1] = replace(rows[1], variants=("=HYPERLINK(1)", "-a", "wide, control"))
    rows[1].recipe["model_args"] = {"depth": 3}
    rows = [replace(each, recipe={"model_args": {}} | each.recipe) for each in rows]
    rows[2].values["test_nll"] = math.inf
    write_rows(rows, tmp_path / "study.csv")
    with (tmp_path / "study.csv").open(newline="") as file:
        cells = [cell for line in csv.reader(file) for cell in line]
    assert not [cell for cell in cells if cell[:1] in ("=", "+", "-", "@")]  # no spreadsheet takes it for a formula
    assert read_table(tmp_path) == (rows, {}, {})


def test_every_row_of_the_file_has_a_cell_for_every_column(tmp_path: Path) -> None:
    write_rows([row("dense", 0, 80.0), row("N8-L2", 0, 81.0)], tmp_path / "study.csv")
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
        read_table(tmp_path)


def test_a_missing_table_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"cannot read .*study.csv: No such file"):
        read_table(tmp_path)


def test_rows_curves_and_the_deepest_runs_counts_are_gathered(tmp_path: Path) -> None:
    text = TINY.replace("seeds: [0]", "seeds: [0, 1]").replace("last: [0, 2]", "last: [0, 1, 2]")
    runs = list_runs(study(tmp_path, text))
    folder = tmp_path / "runs"
    results = {run.name: MOE if "N2" in run.name else RESULT for run in runs}
    for name in results:
        (folder / name / "routing").mkdir(parents=True)
        (folder / name / "routing" / "val.npz").write_bytes(name.encode())
        np.savez(folder / name / "test_right.npz", right=np.array([True, "N2" in name]))
        (folder / name / "metrics.jsonl").write_text('{"epoch": 1, "val_top1": 50.0, "routing": {"0": {}}}\n')
    some = {name: result for name, result in results.items() if "L2" not in name}
    gather(runs, some, folder)
    assert {path.name for path in (folder / "routing").iterdir()} == {"N2-L1.npz", "N2-L1-shared.npz"}
    gather(runs, results, folder)
    assert [row.run for row in read_table(folder).rows] == list(results)
    _, curves, right = read_table(folder)
    assert curves["seed0/start"] == [{"epoch": 1.0, "val_top1": 50.0}]
    assert {run: list(images) for run, images in right.items()} == {name: [True, "N2" in name] for name in results}
    counts = {path.name: path.read_bytes() for path in (folder / "routing").iterdir()}
    assert counts == {
        "N2-L2.npz": b"seed0/N2-L2",
        "N2-L2-shared.npz": b"seed0/N2-L2-shared",
    }


def test_the_deepest_are_those_with_the_most_moe_layers_of_each_kind_and_seed() -> None:
    settings = ("dense", "N2-L1", "N2-L2", "N2-L2-shared", "N8-L2", "N8-L2-paper")
    rows = [row(setting, seed, 80.0) for setting in settings for seed in range(2)]
    assert {(r.setting, r.seed) for r in deepest(rows)} == {(s, seed) for s in settings[2:] for seed in range(2)}


@pytest.mark.parametrize("name", ["test_right.npz", "curves.csv"])
def test_a_damaged_file_beside_the_table_is_one_line(name: str, tmp_path: Path) -> None:
    write_rows([row("dense", 0, 80.0)], tmp_path / "study.csv")
    (tmp_path / name).write_text("broken\n1")
    with pytest.raises(UserError, match="is no study's table"):
        read_table(tmp_path)
