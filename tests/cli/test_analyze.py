from pathlib import Path

import pytest

from tests.training.tiny import recipe
from vimoe.cli import analyze, prune
from vimoe.errors import UserError
from vimoe.training.fit import train
from vimoe.vit.plan import Plan


def test_a_run_is_analyzed_and_pruned_in_words(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = train(recipe(tmp_path / "moe", last=2, num_experts=3, epochs=2)).path
    capsys.readouterr()
    flags = ["--experts", "ablation,load,router-change,reap,activation"]
    analyze.run([str(run), "--max-drop", "100", "--shuffles", "99", "--batch-size", "128", *flags])
    told = capsys.readouterr().out
    assert "360 images of val" in told
    decisions = [line.split() for line in told.splitlines() if line.endswith(" prune")]
    assert sorted(line[0] for line in decisions) == ["1", "2"]
    assert "show a loss of at most 100 points" in told
    assert "With 360 images losses below " in told
    assert f"`vimoe prune {run}` carries it out" in told
    assert sum(", expert " in line for line in told.splitlines()) == 6
    assert [line.split()[0] for line in told.splitlines() if ("blocks 1, 2 " in line)] == flags[1].split(",")
    page = (run / "report.html").read_text()
    assert "Each expert by itself" in page
    assert "Spearman" in page
    assert f"vimoe analyze {run} --max-drop 100" in (run / "report.html").read_text()
    assert (run / "figures" / "heatmaps.pdf").exists()
    assert [part.layer for part in Plan.load(run / "plan.json").layers] == [1, 2]

    prune.run([str(run), "--recover-epochs", "1", "--output", str(tmp_path / "out"), "--device", "cpu"])
    captured = capsys.readouterr()
    assert "surgery: plain FFNs in blocks 1, 2; MoE layers stay in no block" in captured.err
    for state in ("before", "right after", "recovered"):
        assert state in captured.out
    assert (tmp_path / "out" / "model" / "config.json").exists()
    assert "What pruning “moe” did" in (tmp_path / "out" / "report.html").read_text()


@pytest.mark.parametrize(
    ("verb", "flags", "line"),
    [
        (analyze, ["--max-drop", "-1"], "must be a number of points, 0 or more, got -1"),
        (analyze, ["--max-drop", "nan"], "must be a number of points, 0 or more, got nan"),
        (analyze, ["--max-drop", "abc"], "must be a number of points, 0 or more, got abc"),
        (analyze, ["--shuffles", "5"], "must be at least 99, got 5"),
        (analyze, ["--experts", "ablation,reep"], "unknown criterion 'reep', did you mean 'reap'"),
        (analyze, ["--experts", ""], "unknown criterion ''; there is ablation, load, router-change, reap, activation"),
        (analyze, ["--split", "none"], "invalid choice: 'none'"),
        (prune, ["--recover-epochs", "1.5"], r"must be a share below 1 or a whole number of epochs, got 1\.5"),
        (prune, ["--recover-epochs", "-1"], "must be a share below 1 or a whole number of epochs, got -1"),
    ],
)
def test_a_wrong_flag_gets_one_line(verb: object, flags: list[str], line: str) -> None:
    with pytest.raises(UserError, match=line):
        verb.run(["run", *flags])  # type: ignore[attr-defined]
