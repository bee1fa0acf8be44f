from pathlib import Path

import pytest

from tests.study.support import TINY
from vimoe.cli import main
from vimoe.study import execution
from vimoe.study.grid import list_runs
from vimoe.study.study_table import gather, read_table


def test_a_dry_run_lists_the_runs_and_leaves_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "tiny.yaml").write_text(TINY)
    code = main(["study", "-c", str(tmp_path / "tiny.yaml"), "--output", str(tmp_path / "runs"), "--dry-run"])
    assert code == 0
    shown = capsys.readouterr().out
    for setting in ("start", "dense", "N2-L2-shared", "N2-L2"):
        assert f"\n{setting} " in shown
    assert not (tmp_path / "runs").exists()


def test_a_study_with_a_failed_run_ends_with_code_1_and_its_tables(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def some(study: object, jobs: int | None) -> execution.Progress:
        figures = {"metric": "top1", "val_top1": 80.0, "test_top1": 81.0, "seconds": 3.0}
        result = {**figures, "stored_params": 100, "activated_params": 90, "macs": 1000}
        runs = list_runs(study)  # type: ignore[arg-type]
        gather(runs, {"seed0/dense": result}, tmp_path / "runs")
        return execution.Progress(runs, {"seed0/dense": result}, {"seed0/N2-L2": "broken"})

    monkeypatch.setattr(execution, "execute", some)
    (tmp_path / "tiny.yaml").write_text(TINY)
    with pytest.raises(SystemExit) as ended:
        main(["study", "-c", str(tmp_path / "tiny.yaml"), "--output", str(tmp_path / "runs")])
    assert ended.value.code == 1
    shown = capsys.readouterr()
    assert shown.err == "vimoe study: 1 of 4 runs failed: seed0/N2-L2; their failed.txt says why\n"
    assert f"tables and figures lie in {tmp_path / 'runs'}" in shown.out
    assert [row.run for row in read_table(tmp_path / "runs").rows] == ["seed0/dense"]

    (tmp_path / "runs" / "tables" / "settings.md").unlink()
    assert main(["study", "--figures-only", str(tmp_path / "runs")]) == 0
    assert (tmp_path / "runs" / "tables" / "settings.md").exists()


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        ([], "give either the study file with -c, or --figures-only (see vimoe study --help)"),
        (["-c", "a.yaml", "--figures-only", "runs"], "give either the study file with -c, or --figures-only"),
        (["-c", "a.yaml", "--dry-run", "--detect", "nan"], "--detect: must be a number of points above 0, got nan"),
        (["-c", "a.yaml", "--pilot", "runs"], "--pilot tells --dry-run how much seeds differ: give both"),
        (["-c", "missing.yaml"], "cannot read missing.yaml: No such file or directory"),
        (["--figures-only", "missing"], "cannot read missing/study.csv: No such file or directory"),
        (["-c", "missing.yaml", "--jobs", "0"], "--jobs: must be at least 1, got 0"),
    ],
)
def test_a_mistake_is_one_line(arguments: list[str], line: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["study", *arguments]) == 2
    shown = capsys.readouterr()
    assert shown.err.startswith(f"vimoe: error: {line}")
    assert shown.err.count("\n") == 1
