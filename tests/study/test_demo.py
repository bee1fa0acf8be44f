"""The demo's own story at a size that takes seconds; `make demo` runs it at full size."""

import json
from pathlib import Path

import pytest
import yaml

from vimoe.cli import main
from vimoe.moe.layer import MoELayer
from vimoe.study import demo
from vimoe.training.recipe import Recipe, load_recipe
from vimoe.vit.checkpoint import load
from vimoe.vit.upcycle import get_config

TINY = {"patch_size": 4, "embed_dim": 16, "depth": 12, "num_heads": 2, "weight_init": "jax"}


@pytest.fixture
def tiny(monkeypatch: pytest.MonkeyPatch) -> None:
    """The same stages on a narrow model for an epoch or two."""

    def small(path: Path) -> Recipe:
        recipe = load_recipe(path)
        if path.name == "demo.yaml":
            values = {**yaml.safe_load(path.read_text()), "model_args": TINY, "epochs": 2, "batch_size": 128}
            recipe = Recipe(**values)
        return recipe

    monkeypatch.setattr(demo, "load_recipe", small)
    monkeypatch.setattr(demo, "FINE_TUNING_EPOCHS", 1)
    monkeypatch.setattr(demo, "RECOVERY_EPOCHS", 1)


def test_the_whole_story_is_told_and_told_the_same_again(
    tiny: None, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["demo", "--output", str(tmp_path / "a")]) == 0
    first = capsys.readouterr().out
    for words in ("dense", "ViMoE, all layers", "ViMoE, pruned and recovered", "The report lies in"):
        assert words in first
    plan = json.loads((tmp_path / "a" / "vimoe" / "plan.json").read_text())
    assert [part["layer"] for part in plan["layers"]] == list(range(12))
    kept = [part["layer"] for part in plan["layers"] if part["action"] == "keep"]
    pruned = load(tmp_path / "a" / "pruned" / "model")
    config = get_config(pruned)
    assert (list(config.layers) if config else []) == kept
    assert sum(isinstance(module, MoELayer) for module in pruned.modules()) == len(kept)
    assert (tmp_path / "a" / "vimoe" / "routing" / "val.npz").exists()
    assert (tmp_path / "a" / "report.html").exists()

    assert main(["demo", "--output", str(tmp_path / "b")]) == 0
    second = capsys.readouterr().out

    def figures(text: str) -> list[list[str]]:
        return [line.split("  ")[:-1] for line in text.splitlines() if "±" in line]  # all but the seconds

    assert figures(first) == figures(second)
    assert main(["demo", "--output", str(tmp_path / "a")]) == 0  # nothing left to train: the same table at once
    assert figures(capsys.readouterr().out) == figures(first)


def test_the_control_takes_as_many_steps_as_the_vimoe(tmp_path: Path) -> None:
    stages = demo.demo_recipes(tmp_path, seed=3, device="cpu")
    for dense, moe in ((stages.control, stages.vimoe), (stages.control_recovered, stages.pruned)):
        for key in ("epochs", "batch_size", "lr", "sched", "warmup_epochs", "augment", "seed"):
            assert getattr(dense, key) == getattr(moe, key)
    assert stages.vimoe.last == 12
    assert stages.dense.seed == 3
