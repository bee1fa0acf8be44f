"""The demo's own story at a size that takes seconds; `make demo` runs it at full size."""

import json
from dataclasses import replace
from pathlib import Path

import pytest

from vimoe.analysis.ablation_scores import image_scores
from vimoe.analysis.held_out import held_out
from vimoe.analysis.paired import mean_loss
from vimoe.cli import main
from vimoe.moe.layer import MoELayer
from vimoe.report.comparison import change
from vimoe.study import demonstration
from vimoe.study.grid import list_runs
from vimoe.study.study_file import Study, read_study
from vimoe.tasks.model import load_model
from vimoe.training.recipe import Recipe, load_recipe
from vimoe.training.source import open_recipe_data
from vimoe.vit.upcycle import get_config

NARROW = {"patch_size": 4, "embed_dim": 16, "depth": 3}


@pytest.fixture(params=["classification", "segmentation"])
def task(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """The same stages on few images and a narrow model, for an epoch or two."""

    def small(path: Path, output: Path, **instead: str) -> Study:
        study = read_study(path, output, **instead)
        few = {"dataset_args": {"side": 12, "scripts": ["Greek"], "train_images": 512, "val_images": 400}}
        few["dataset_args"]["test_images"] = 300
        changes = {"model_args": study.base["model_args"] | NARROW, "epochs": 1, "batch_size": 128}
        points = [(name, {**factors, "last": min(3, factors["last"])}) for name, factors in study.points]
        more = few if study.base["dataset"] == "glyphs" else {}
        return replace(study, base={**study.base, **changes, **more}, start={"epochs": 2}, points=tuple(points))

    monkeypatch.setattr(demonstration, "read_study", small)
    short = {name: course._replace(recovery=min(1, course.recovery)) for name, course in demonstration.COURSES.items()}
    monkeypatch.setattr(demonstration, "COURSES", short)
    return str(request.param)


def alike(one: Recipe, other: Recipe) -> bool:
    """Whether two recipes take the same steps on the same images."""
    keys = ("dataset", "epochs", "batch_size", "lr", "sched", "warmup_epochs", "augment", "smoothing", "seed")
    return all(getattr(one, key) == getattr(other, key) for key in keys)


def test_the_whole_story_is_told_and_told_the_same_again(
    task: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = ["demo", "--task", task, "--device", "cpu", "--output"]
    assert main([*command, str(tmp_path / "a")]) == 0
    first = capsys.readouterr().out
    for words in ("dense", "ViMoE, all layers", "ViMoE, pruned", "The report lies in"):
        assert words in first
    (vimoe,) = (path.parent for path in (tmp_path / "a").rglob("analysis.json"))
    plan = json.loads((vimoe / "plan.json").read_text())
    assert [part["layer"] for part in plan["layers"]] == [0, 1, 2]
    kept = [part["layer"] for part in plan["layers"] if part["action"] == "keep"]
    pruned = load_model(tmp_path / "a" / "pruned" / "model")
    config = get_config(pruned)
    assert (list(config.layers) if config else []) == kept
    assert sum(isinstance(module, MoELayer) for module in pruned.modules()) == len(kept)
    assert (vimoe / "routing" / "val.npz").exists()
    assert (tmp_path / "a" / "report.html").exists()

    control = vimoe.parent / "dense"
    if task == "segmentation":
        control = tmp_path / "a" / "dense_recovered"
        assert alike(*(load_recipe(folder / "recipe.yaml") for folder in (control, tmp_path / "a" / "pruned")))

    # The conclusion is the paired difference on the test images.
    splits = open_recipe_data(load_recipe(control / "recipe.yaml"))
    models = [load_model(folder / "model") for folder in (control, tmp_path / "a" / "pruned")]
    seen = held_out(models[0], splits.test, len(splits.class_names))
    lost = mean_loss(*(image_scores(model, seen.batches(), seen.score) for model in models))
    assert change(lost, " points (95 %: ") in first
    assert "dense, as many steps" in (tmp_path / "a" / "figures" / "removal.svg").read_text()

    # With nothing left to train the same table comes at once; anew it comes out the same.
    assert main([*command, str(tmp_path / ("a" if task == "segmentation" else "b"))]) == 0
    second = capsys.readouterr().out

    def figures(text: str) -> list[list[str]]:
        return [line.split("  ")[:-1] for line in text.splitlines() if "MMAC" in line]  # all but the seconds

    assert figures(first) == figures(second)


@pytest.mark.parametrize(("name", "last"), [("classification", 4), ("segmentation", 6)])
def test_all_variants_take_as_many_steps_from_the_same_model(tmp_path: Path, name: str, last: int) -> None:
    runs = list_runs(demonstration.demo_study(tmp_path, seed=3, device="cpu", task=name))
    found = {run.kind: run for run in runs if run.kind != "start"}
    assert found.keys() == {"moe", "dense", "wide"}
    assert all(alike(run.recipe, found["moe"].recipe) for run in found.values())
    assert len({run.needs for run in found.values()}) == 1
    assert found["moe"].recipe.last == found["wide"].recipe.last == last
    assert found["dense"].recipe.seed == 3


def test_a_folder_of_something_else_is_refused_before_a_byte_is_written(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "recipe.yaml").write_text("epochs: 1\n")
    assert main(["demo", "--output", str(tmp_path)]) == 2
    assert "holds something else (recipe.yaml): choose another --output" in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["recipe.yaml"]
