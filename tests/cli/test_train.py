import re
from dataclasses import fields
from pathlib import Path

import pytest

from vimoe.cli import main
from vimoe.training.recipe import Recipe, dump_recipe, make_recipe


def printed(capsys: pytest.CaptureFixture[str], *flags: str) -> str:
    assert main(["train", *flags, "--print-config"]) == 0
    return capsys.readouterr().out


def test_flags_win_over_the_file_wherever_they_stand(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "recipe.yaml"
    path.write_text("batch_size: 3\nlr: 1e-3\nmodel_args: {img_size: 9}\namp: true\nwarmup_epochs: 30\n")
    flags = ["--no-amp", "--warmup-epochs", "0", "--model-ema", "--aa", "", "--model-args", "{depth: 3}"]
    expected = make_recipe(
        {"batch_size": 7, "lr": 1e-3, "model_args": {"depth": 3}, "warmup_epochs": 0, "model_ema": True}
    )
    assert printed(capsys, "--batch-size", "7", "-c", str(path), *flags) == dump_recipe(expected)


def test_help_has_every_recipe_key_in_its_group_with_its_default(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    with pytest.raises(SystemExit):
        main(["train", "--help"])
    shown = capsys.readouterr().out
    titles = [line[:-1] for line in shown.splitlines() if re.fullmatch(r"\S+:", line)]
    assert titles == ["options", "data", "model", "MoE", "optimisation", "augmentation", "run"]
    for field in fields(Recipe):
        assert f"\n  --{field.name.replace('_', '-')}" in shown
    assert "\n  --amp, --no-amp " in shown
    assert "peak learning rate (default: 0.001)" in shown
    assert max(map(len, shown.splitlines())) <= 80


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--batch-siz", "3"], "unknown flag '--batch-siz', did you mean '--batch-size'?"),
        (["--batch-siz=3"], "unknown flag '--batch-siz', did you mean '--batch-size'?"),
        (["--amp", "maybe"], "unexpected value 'maybe' (see vimoe train --help)"),
        (["--lr", "-1"], "lr must be at least 0, got -1.0"),
        (["--lr", "fast"], "lr must be a number, got 'fast'"),
        (["--epochs"], "--epochs: expected one argument"),
        (["--epochs", "none"], "epochs must be a whole number, got 'none'"),
        (["--routing", "patch"], "--routing: invalid choice: 'patch'"),
        (["--model-args", "{a: ["], "--model-args: must be a mapping such as '{name: value}', got '{a: ['"),
        (["--model-args", "3"], "--model-args: must be a mapping such as '{name: value}', got '3'"),
        (["-c", "/does/not/exist.yaml"], "cannot read /does/not/exist.yaml: No such file or directory"),
    ],
)
def test_a_mistake_is_one_line(flags: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["train", *flags]) == 2
    shown = capsys.readouterr().err
    assert shown.startswith(f"vimoe: error: {message}")
    assert shown.count("\n") == 1


def test_a_folder_of_images_and_masks_is_segmented(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name in ("images", "annotations"):
        (tmp_path / name).mkdir()
    assert "task: segmentation" in printed(capsys, "--data-dir", str(tmp_path))
    assert "task: classification" in printed(capsys, "--data-dir", str(tmp_path), "--task", "classification")
