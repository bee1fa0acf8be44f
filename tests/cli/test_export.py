from pathlib import Path

import pytest

from tests.export.models import write_classifier
from vimoe.cli import main


def test_the_verb_writes_a_file_and_says_that_it_agrees(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_classifier(tmp_path / "run" / "model", routing="image")
    assert main(["export", str(tmp_path / "run"), "--verify"]) == 0
    said = capsys.readouterr().out
    assert "2 MoE layers stay sparse: an image is multiplied with 1 of 3 experts" in said
    assert "experts reached: 6 of 6" in said
    assert (tmp_path / "run" / "model.onnx").exists()


def test_token_routing_says_what_it_costs(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_classifier(tmp_path / "m", routing="token")
    assert main(["export", str(tmp_path / "m"), "--format", "torch", "--output", str(tmp_path / "x.pt2")]) == 0
    assert "compute all 3 experts for every token, of which 1 count" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        (["nowhere"], "is not a model folder"),
        (["m", "--output", "m.txt"], "--output of format onnx must end in .onnx, got m.txt"),
        (["m", "--format", "tflite"], "tflite"),
    ],
)
def test_a_mistake_is_one_line(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    arguments: list[str],
    line: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    write_classifier(tmp_path / "m")
    assert main(["export", *arguments]) == 2
    error = capsys.readouterr().err
    assert line in error
    assert error.count("\n") == 1
