"""A whole study at a size that takes seconds, from its file to its figures; the workers are tested by themselves."""

import json
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
from matplotlib.figure import Figure

from tests.study.support import TINY, study
from tests.training.tiny import recipe
from vimoe.analysis.counts import RoutingCounts
from vimoe.errors import UserError
from vimoe.files import write_bytes
from vimoe.report import saving
from vimoe.study import execution
from vimoe.study.execution import do_run, dry_run, execute, offered_devices
from vimoe.study.grid import StudyRun
from vimoe.study.processes import Work
from vimoe.study.publish import publish
from vimoe.study.run_result import read_result
from vimoe.study.study_table import read_table
from vimoe.training.run_folder import RunFolder


@pytest.fixture
def begun(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The runs are done in this process, one after the other; gives the names of those that were begun."""
    names: list[str] = []

    def one_by_one(
        runs: Sequence[StudyRun], work: Work, jobs: int, devices: Sequence[str], on_end: Callable[[StudyRun, str], None]
    ) -> None:
        for run in runs:
            names.append(run.name)
            try:
                work(run)
                on_end(run, "")
            except UserError as error:
                on_end(run, str(error))

    monkeypatch.setattr(execution, "run_all", one_by_one)
    return names


RUNS = ["seed0/start", "seed0/dense", "seed0/N2-L2-shared", "seed0/N2-L2"]


def test_a_planned_run_is_analysed_pruned_recovered_and_set_beside_its_sweep(begun: list[str], tmp_path: Path) -> None:
    variants = "  - {name: equal, last: 0, epochs: 2}\nplanned: [N2-L2-shared]\n"
    tiny = study(tmp_path, TINY + variants)
    folder = tmp_path / "runs" / "seed0" / "N2-L2-shared"
    progress = execute(tiny)
    assert begun == [*RUNS, "seed0/dense-epochs=2", "seed0/N2-L2-shared-planned"]
    assert not progress.failures
    plan = json.loads((folder / "plan.json").read_text())
    kept = sorted(part["layer"] for part in plan["layers"] if part["experts"])
    publish(tmp_path / "runs")
    row = next(row for row in read_table(tmp_path / "runs").rows if row.kind == "planned")
    assert sorted(row.by_block("information")) == kept
    assert row.values["seconds"] > progress.results["seed0/N2-L2-shared-planned"]["analysis_seconds"] > 0
    asked = (tmp_path / "runs" / "tables" / "comparisons.md").read_text()
    assert "| planned against each L of the sweep | N2-L2-shared-planned | N2-L2-shared |" in asked
    assert "| planned against dense with as many epochs | N2-L2-shared-planned | dense-epochs=2 |" in asked
    assert "| N2-L2-shared-planned | 0 | " in (tmp_path / "runs" / "tables" / "planned.md").read_text()
    begun.clear()
    execute(tiny)
    assert begun == []


def test_a_study_is_run_once_and_ends_in_tables_and_figures(
    begun: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    tiny = study(tmp_path, TINY)
    assert "4 runs, 0 done" in dry_run(tiny, 1)
    progress = execute(tiny)
    assert begun == RUNS
    assert list(progress.results) == RUNS
    assert not progress.failures
    told = capsys.readouterr().err.splitlines()
    assert told[0] == "4 runs, 4 to go, 1 at a time on cpu"
    assert told[-1].startswith("   4/4  seed0/N2-L2  val top1 ")

    result = json.loads((tiny.output / "seed0/N2-L2/result.json").read_text())
    assert result["routing_degree"] == 4
    assert list(result["layers"]) == ["0", "1"]
    assert result["layers"]["0"]["experts_touched"] == 1  # one choice an image
    assert result["test_images"] == 360
    right = read_table(tiny.output).right["seed0/N2-L2"]
    assert 100 * right.mean() == pytest.approx(result["test_top1"])
    assert (result["steps"], result["shown_images"]) == (4, 4 * 256)  # of 1,077 digits
    counts = RoutingCounts.load(tiny.output / "seed0/N2-L2/routing/val.npz")
    assert counts.counts.sum() == 2 * 360
    assert not (tiny.output / "seed0/N2-L2/checkpoints").exists()
    assert "layers" not in progress.results["seed0/dense"]

    begun.clear()
    again = execute(tiny)
    assert begun == []
    assert again.results == progress.results
    assert "4 runs, 4 done" in dry_run(tiny, 1)

    monkeypatch.setattr(saving, "FORMATS", ("svg",))
    assert publish(tiny.output) == "One seed, or seeds that all agree, tell nothing about the spread between seeds."
    assert [row.run for row in read_table(tiny.output).rows] == RUNS
    assert "N2-L2-shared | dense" in (tiny.output / "tables" / "comparisons.md").read_text()
    figures = {path.name: path.read_bytes() for path in (tiny.output / "figures").iterdir()}
    assert {"accuracy_by_depth.svg", "training_curves.svg", "heatmaps-N2-L2.svg"} <= set(figures)

    # The study's own files suffice: no run folder is needed to make the same figures again.
    elsewhere = tmp_path / "elsewhere"
    for path in (*tiny.output.glob("*.csv"), tiny.output / "test_right.npz", *(tiny.output / "routing").iterdir()):
        write_bytes(elsewhere / path.relative_to(tiny.output), path.read_bytes())
    publish(elsewhere)
    assert {path.name: path.read_bytes() for path in (elsewhere / "figures").iterdir()} == figures

    units = list[str]()

    def drawn(*_: object, unit: str) -> Figure:
        units.append(unit)
        return Figure()

    monkeypatch.setattr("vimoe.study.publish.routing_heatmaps", drawn)
    table = elsewhere / "study.csv"
    table.write_text(table.read_text().replace('"""image"""', '"""token"""', 3))
    publish(elsewhere)
    assert sorted(units) == ["image", "patch"]


def test_a_run_that_was_cleared_but_has_no_result_yet_gets_the_same(tmp_path: Path) -> None:
    run = StudyRun("dense", "", recipe(tmp_path / "run", epochs=1), ("main",))
    do_run(run)
    assert not (tmp_path / "run" / "checkpoints").exists()
    first = read_result(tmp_path / "run")
    (tmp_path / "run" / "result.json").unlink()
    do_run(run)
    assert read_result(tmp_path / "run") == first


def test_a_failed_run_is_told_and_the_others_are_kept(
    begun: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    bad = "  - {name: bad, last: 2, num_experts: 2, lr: 1.0e+30, clip_grad: 0.0}\n"
    progress = execute(study(tmp_path, TINY + bad))
    assert list(progress.failures) == ["seed0/N2-L2-shared-lr=1e+30-clip_grad=0.0"]
    assert list(progress.results) == RUNS
    assert "failed: the loss is " in capsys.readouterr().err
    assert progress.failure_line().startswith("1 of 5 runs failed: seed0/N2-L2-shared-lr=1e+30")
    begun.clear()
    execute(study(tmp_path, TINY + bad))
    assert begun == ["seed0/N2-L2-shared-lr=1e+30-clip_grad=0.0"]  # it is tried again, and nothing else


def test_a_folder_of_another_study_is_refused_before_anything_runs(begun: list[str], tmp_path: Path) -> None:
    tiny = study(tmp_path, TINY)
    (tiny.output / "seed0/start").mkdir(parents=True)
    (tiny.output / "seed0/start/recipe.yaml").write_text("epochs: 9\n")
    with pytest.raises(UserError, match="holds a run of another recipe"):
        execute(tiny)
    assert begun == []


def test_two_studies_do_not_work_in_one_folder(begun: list[str], tmp_path: Path) -> None:
    tiny = study(tmp_path, TINY)
    with RunFolder(tiny.output).locked(), pytest.raises(UserError, match="in use by another process"):
        execute(tiny)
    assert begun == []


def test_a_named_device_is_the_only_one() -> None:
    assert offered_devices("cpu") == ["cpu"]
    assert offered_devices("cuda:1") == ["cuda:1"]


def test_every_gpu_is_offered_where_there_are_some(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torch.cuda.device_count", lambda: 2)
    assert offered_devices("auto") == offered_devices("cuda") == ["cuda:0", "cuda:1"]
    monkeypatch.setattr("torch.cuda.device_count", lambda: 0)
    assert offered_devices("auto") == ["cpu"]


def test_a_folder_without_a_study_has_no_figures(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="cannot read"):
        publish(tmp_path)


def test_a_folder_that_no_study_made_is_refused_before_a_byte_is_written(begun: list[str], tmp_path: Path) -> None:
    tiny = study(tmp_path, TINY)
    RunFolder(tiny.output).write_recipe(recipe(tiny.output))
    for call in (execute, dry_run):
        with pytest.raises(UserError, match=r"runs holds something else \(recipe\.yaml\): choose another --output"):
            call(tiny)
    assert [path.name for path in tiny.output.iterdir()] == ["recipe.yaml"]
    assert begun == []
