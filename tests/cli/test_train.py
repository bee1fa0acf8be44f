import re
from dataclasses import fields
from pathlib import Path

import pytest
import yaml

from tests.data.image_files import write_folder
from tests.training.tiny import recipe
from vimoe.cli import main
from vimoe.training.defaults import finetune
from vimoe.training.fit import train
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
    flags = ["--data-dir", str(tmp_path), "--defaults", "scratch"]
    assert "task: segmentation" in printed(capsys, *flags)
    assert "task: classification" in printed(capsys, *flags, "--task", "classification")


def test_images_alone_are_for_a_pretrained_model_with_settings_by_rule(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = str(write_folder(tmp_path / "data", {"train": 12, "val": 2}))
    assert main(["train", "--data-dir", folder, "--print-config"]) == 0
    shown = capsys.readouterr()
    recipe = make_recipe(yaml.safe_load(shown.out))
    rule = finetune(36, 192, {"data_dir": folder, "pretrained": True})
    assert recipe == make_recipe({"data_dir": folder, "pretrained": True, **rule})
    assert (
        "defaults: finetune for 36 training images and a model of width 192: batch_size 8, epochs 60, lr 0.0011"
        in shown.err
    )


def test_what_is_given_wins_over_a_rule_and_a_recipe_file_says_everything_itself(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = str(write_folder(tmp_path / "data", {"train": 12, "val": 2}))
    flags = ["--data-dir", folder, "--pretrained"]
    assert "\nlr: 0.5\n" in printed(capsys, *flags, "--lr", "0.5")
    assert make_recipe(yaml.safe_load(printed(capsys, *flags, "--defaults", "scratch"))) == make_recipe(
        {"data_dir": folder, "pretrained": True}
    )
    (tmp_path / "r.yaml").write_text("pretrained: true\n")
    assert "\nlr: 0.001\n" in printed(capsys, "-c", str(tmp_path / "r.yaml"), "--data-dir", folder)
    assert "\nlr: 0.0001\n" in printed(capsys, *flags, "--defaults", "paper")


def test_a_rule_says_nothing_that_the_data_set_does_not_read(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    start = train(recipe(tmp_path / "start", epochs=1))
    shown = printed(capsys, "--dataset", "digits", "--initial-checkpoint", str(start.model))
    assert {"lr: 0.001", "scale: 0.08"} & set(shown.splitlines()) == {"scale: 0.08"}
