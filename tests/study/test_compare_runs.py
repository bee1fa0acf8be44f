import shutil
from dataclasses import replace
from pathlib import Path

import pytest

from tests.data.image_files import write_folder
from tests.training.tiny import recipe
from vimoe.analysis.ablation_scores import image_scores
from vimoe.analysis.paired import mean_loss
from vimoe.cli import main
from vimoe.data.digits import digits
from vimoe.data.loaders import batches
from vimoe.errors import UserError
from vimoe.study.compare_runs import compare_runs, dense_control
from vimoe.study.prune_run import prune_run
from vimoe.training.fit import train
from vimoe.training.recipe import dump_recipe, load_recipe
from vimoe.training.run_folder import RunFolder
from vimoe.vit.checkpoint import load
from vimoe.vit.plan import LayerPlan, Plan


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    root, settings = tmp_path_factory.mktemp("compare"), {"epochs": 2, "lr": 5e-3, "augment": False}
    dense = train(recipe(root / "dense", **settings))
    return dense.path, train(recipe(root / "sparse", last=1, num_experts=3, **settings)).path


def test_changes_are_paired_by_image_with_the_first_run(runs: tuple[Path, Path]) -> None:
    found = compare_runs(runs, device="cpu")
    one, other = (image_scores(load(run / "model"), batches(digits().test)) for run in runs)
    assert [variant.name for variant in found.variants] == ["dense", "sparse"]
    assert found.variants[0].lost is None
    assert found.variants[1].lost == mean_loss(one, other)
    assert found.variants[1].cost.stored_params > found.variants[0].cost.stored_params
    assert found.images == len(one)


def test_the_seconds_of_training_are_those_since_the_run_began(runs: tuple[Path, Path]) -> None:
    found = compare_runs(runs)
    for variant, path in zip(found.variants, runs, strict=True):
        assert variant.training == RunFolder(path).read_rows()[-1]["seconds"]


def test_compare_prints_a_table_and_writes_it_with_a_figure(
    runs: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["compare", *map(str, runs), "--output", str(tmp_path / "c"), "--device", "cpu"]) == 0
    table = capsys.readouterr().out
    assert "test top-1 % (95 %)" in table
    assert [line.split()[0] for line in table.splitlines()[2:4]] == ["dense", "sparse"]
    assert {path.suffix for path in (tmp_path / "c").iterdir()} == {".md", ".csv", ".png", ".svg", ".pdf"}


def test_runs_on_other_images_are_refused_in_one_line(runs: tuple[Path, Path], tmp_path: Path) -> None:
    data = write_folder(tmp_path / "data", {"train": 4, "val": 2})
    settings = {"dataset": "folder", "data_dir": str(data), "batch_size": 4, "epochs": 1, "img_size": 16, "workers": 0}
    odd = train(recipe(tmp_path / "odd", **settings)).path
    with pytest.raises(UserError, match="were not scored on the same images"):
        compare_runs([runs[0], odd], device="cpu")
    with pytest.raises(UserError, match="two runs or more"):
        compare_runs([odd, odd], device="cpu")


def test_the_dense_control_is_the_run_of_the_same_recipe_without_moe_layers(runs: tuple[Path, Path]) -> None:
    dense, sparse = runs
    wanted = load_recipe(sparse / "recipe.yaml")
    found = dense_control(sparse, wanted)
    assert found is not None
    assert found.path == dense.resolve()
    assert dense_control(sparse, replace(wanted, seed=1)) is None


def test_with_a_frozen_trunk_the_dense_control_learns_in_the_same_blocks(
    runs: tuple[Path, Path], tmp_path: Path
) -> None:
    frozen = replace(load_recipe(runs[1] / "recipe.yaml"), freeze="trunk", last=2)
    dense = RunFolder(shutil.copytree(runs[0], tmp_path / "dense"))
    for last, found in ((1, None), (2, dense.path.resolve())):
        (dense.path / "recipe.yaml").write_text(dump_recipe(replace(frozen, baseline="dense", last=last)))
        control = dense_control(tmp_path / "sparse", frozen)
        assert (control and control.path) == found


def test_prune_measures_the_dense_control_too(runs: tuple[Path, Path], tmp_path: Path) -> None:
    Plan((LayerPlan(2, ()),)).save(tmp_path / "plan.json")
    evidence = prune_run(runs[1], tmp_path / "plan.json", recover=0, output=tmp_path / "pruned", device="cpu")
    assert [state.name for state in evidence.states] == ["before", "dense control", "right after"]
    assert evidence.states[1].score == compare_runs(runs, device="cpu").variants[0].score
