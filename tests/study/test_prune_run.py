import fcntl
import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.training.tiny import recipe
from vimoe.analysis.analyze_run import analyze_run
from vimoe.analysis.evaluate_run import evaluate
from vimoe.data.digits import digits
from vimoe.errors import UserError
from vimoe.study.prune_run import prune_run, reporting_split
from vimoe.tasks.segmenter_folder import load_segmenter
from vimoe.training.fit import train
from vimoe.training.recipe import load_recipe
from vimoe.training.run_folder import RunFolder
from vimoe.vit.checkpoint import load, save
from vimoe.vit.cost import cost
from vimoe.vit.plan import LayerPlan, Plan
from vimoe.vit.upcycle import get_config

PLAN = Plan((LayerPlan(1, ()), LayerPlan(2, (0, 2))))


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.set_num_threads(1)
    torch.manual_seed(0)
    run = train(recipe(tmp_path_factory.mktemp("runs") / "moe", last=2, num_experts=3, epochs=4, lr=5e-3))
    PLAN.save(run.path / "plan.json")
    return run.path


def written(run: Path) -> dict[str, bytes]:
    return {str(p.relative_to(run)): p.read_bytes() for p in sorted(run.rglob("*")) if p.is_file()}


def accuracy(folder: Path) -> float:
    test = digits().test
    with torch.no_grad():
        answers = load(folder)(test.images).argmax(-1)  # type: ignore[attr-defined]
    return 100 * (answers == test.targets).float().mean().item()  # type: ignore[attr-defined]


def test_a_run_is_pruned_recovers_and_is_not_touched_itself(trained: Path, tmp_path: Path) -> None:
    before = written(trained)
    evidence = prune_run(trained, recover=0.5, output=tmp_path / "pruned")
    assert written(trained) == before
    assert [state.name for state in evidence.states] == ["before", "right after", "recovered"]
    for state, folder in zip(
        evidence.states, (trained / "model", tmp_path / "pruned/start", tmp_path / "pruned/model")
    ):
        assert state.score.value == pytest.approx(accuracy(folder))
        assert state.cost == cost(load(folder))
        lost = state.lost.value if state.lost else 0
        assert lost == pytest.approx(evidence.states[0].score.value - state.score.value)
        assert state.speed is not None
        assert state.speed.peak_bytes > 4 * state.cost.stored_params
    config = get_config(load(tmp_path / "pruned" / "model"))
    assert config is not None
    assert (config.layers, config.num_experts) == ((2,), (2,))
    assert evidence.states[2].cost.stored_params < evidence.states[0].cost.stored_params
    recovery = load_recipe(tmp_path / "pruned" / "recipe.yaml")
    assert (recovery.epochs, recovery.last, recovery.lr) == (2, 0, pytest.approx(3.5e-4))
    names = json.loads((tmp_path / "pruned" / "start" / "config.json").read_text())["label_names"]
    assert names == list(digits().class_names)
    numbers = json.loads((tmp_path / "pruned" / "pruning.json").read_text())
    assert numbers["states"][2]["score"]["value"] == evidence.states[2].score.value
    again = prune_run(trained, recover=0.5, output=tmp_path / "pruned")  # goes on where nothing is left to do
    assert [s.score for s in again.states] == [s.score for s in evidence.states]


def test_without_recovery_the_surgery_is_all_and_lies_beside_the_run(trained: Path) -> None:
    evidence = prune_run(trained, recover=0)
    assert [state.name for state in evidence.states] == ["before", "right after"]
    assert evidence.output == trained.with_name("moe-pruned")
    assert accuracy(evidence.output / "model") == pytest.approx(evidence.states[1].score.value)
    again = evaluate(evidence.output, workers=0)  # its images are the run's
    assert (again.data, again.score.value) == ("test of the run's own data", evidence.states[1].score.value)


def test_by_default_only_what_lost_something_is_trained_again(trained: Path, tmp_path: Path) -> None:
    Plan((LayerPlan(1, (0, 1, 2)), LayerPlan(2, (2, 0, 1)))).save(tmp_path / "all.json")
    kept = prune_run(trained, tmp_path / "all.json", output=tmp_path / "kept")
    assert [state.name for state in kept.states] == ["before", "right after"]
    assert kept.states[0].score == kept.states[1].score
    Plan((LayerPlan(2, (0, 2)),)).save(tmp_path / "fewer.json")
    fewer = prune_run(trained, tmp_path / "fewer.json", output=tmp_path / "fewer")
    assert (fewer.states[-1].name, fewer.epochs) == ("recovered", 1)


def test_the_loss_right_after_is_the_one_that_the_analysis_foretold(trained: Path, tmp_path: Path) -> None:
    """On the same images: the ablation `pruned` is the surgery."""
    analysis, _ = analyze_run(trained, split="test", shuffles=99)
    PLAN.save(trained / "plan.json")
    number = analysis.layers[0].layer
    load_of = analysis.layers[0].specialisation.load
    Plan((LayerPlan(number, (), load_of),)).save(tmp_path / "one.json")
    evidence = prune_run(trained, tmp_path / "one.json", recover=0, output=tmp_path / "out")
    foretold = next(k.lost for k in analysis.layers[0].ablations if k.name == "pruned")
    assert evidence.states[1].lost == foretold


def test_a_plan_edited_by_hand_is_carried_out_as_edited(trained: Path, tmp_path: Path) -> None:
    edited = PLAN.to_dict()
    edited["layers"] = [{"layer": 2, "action": "keep", "experts": [1]}]
    (tmp_path / "plan.json").write_text(json.dumps(edited))
    evidence = prune_run(trained, tmp_path / "plan.json", recover=0, output=tmp_path / "out")
    config = get_config(load(evidence.output / "model"))
    assert config is not None
    assert (config.layers, config.num_experts) == ((1, 2), (3, 1))


def test_merged_experts_recover_as_such_and_are_another_plan_than_removed_ones(trained: Path, tmp_path: Path) -> None:
    Plan((LayerPlan(2, (0, 2), merge=True),)).save(tmp_path / "merged.json")
    Plan((LayerPlan(2, (0, 2)),)).save(tmp_path / "removed.json")
    prune_run(trained, tmp_path / "merged.json", recover=1, output=tmp_path / "out")
    config = get_config(load(tmp_path / "out" / "model"))
    assert config is not None
    assert config.num_experts == (3, 2)
    assert config.router_rows in (((), (0, 0, 1)), ((), (0, 1, 1)))
    with pytest.raises(UserError, match="out holds what came of another plan"):
        prune_run(trained, tmp_path / "removed.json", recover=1, output=tmp_path / "out")


@pytest.mark.parametrize(
    ("layers", "line"),
    [
        ([{"layer": 0, "action": "prune"}], "plan for block 0: the model's MoE layers are blocks 1, 2"),
        ([{"layer": 2, "action": "keep", "experts": [0, 3]}], "plan for block 2: experts must be distinct numbers"),
        ([{"layer": 2, "action": "prune", "experts": [0]}], "action prune goes with no experts"),
        ([{"layer": 2, "action": "keep", "experts": [0], "why": 1}], "unknown key 'why'"),
        ([{"layer": 2, "action": "keep", "experts": [0], "evidence": 1}], "load and evidence must be numbers"),
    ],
)
def test_an_invalid_edit_or_a_plan_for_another_model_gets_one_line_and_no_folder(
    trained: Path, tmp_path: Path, layers: list[dict[str, object]], line: str
) -> None:
    (tmp_path / "plan.json").write_text(json.dumps({"layers": layers}))
    with pytest.raises(UserError, match=line) as caught:
        prune_run(trained, tmp_path / "plan.json", output=tmp_path / "out")
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "out").exists()


def test_nothing_is_overwritten_by_another_plan_run_or_recovery(trained: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="is the run itself: choose another --output"):
        prune_run(trained, output=trained)
    prune_run(trained, recover=0, output=tmp_path / "out")
    before = written(tmp_path / "out")
    Plan((LayerPlan(1, ()),)).save(tmp_path / "other.json")
    with pytest.raises(UserError, match="out holds what came of another plan: choose another --output"):
        prune_run(trained, tmp_path / "other.json", recover=0, output=tmp_path / "out")
    with pytest.raises(UserError, match="out holds what came of another number of recovery epochs: choose another"):
        prune_run(trained, recover=0.5, output=tmp_path / "out")
    shutil.copytree(trained, tmp_path / "twin")
    other = load(tmp_path / "twin" / "model")
    other.get_parameter("head.bias").data += 1
    save(other, tmp_path / "twin" / "model")
    with pytest.raises(UserError, match="out holds what came of another run: choose another --output"):
        prune_run(tmp_path / "twin", recover=0, output=tmp_path / "out")
    assert written(tmp_path / "out") == before


def test_a_recovered_model_is_not_called_unrecovered(trained: Path, tmp_path: Path) -> None:
    prune_run(trained, recover=1, output=tmp_path / "out")
    before = written(tmp_path / "out")
    with pytest.raises(UserError, match="another number of recovery epochs"):
        prune_run(trained, recover=0, output=tmp_path / "out")
    assert written(tmp_path / "out") == before


@pytest.mark.parametrize("recover", [0, 1])
def test_the_folder_of_another_run_is_refused_and_stays_as_it_is(trained: Path, tmp_path: Path, recover: int) -> None:
    finished = train(recipe(tmp_path / "finished", epochs=1)).path
    in_training = RunFolder(tmp_path / "training")
    in_training.write_recipe(recipe(in_training.path))
    with in_training.locked():
        for folder in (finished, in_training.path):
            before = written(folder)
            with pytest.raises(UserError, match=r"holds something else \(recipe\.yaml.*\): choose another --output"):
                prune_run(trained, recover=recover, output=folder)
            assert written(folder) == before


def test_two_processes_do_not_prune_into_one_folder(trained: Path, tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    with (tmp_path / "out" / ".lock").open("w") as lock:  # as another process holds it
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        with pytest.raises(UserError, match="out is in use by another process"):
            prune_run(trained, recover=0, output=tmp_path / "out")
    assert set(written(tmp_path / "out")) == {".lock"}


def test_training_is_refused_where_a_pruned_model_lies(trained: Path, tmp_path: Path) -> None:
    prune_run(trained, recover=0, output=tmp_path / "out")
    with pytest.raises(UserError, match=r"holds a run of another recipe .*: choose another --output"):
        train(recipe(tmp_path / "out", epochs=1))
    (tmp_path / "out" / "recipe.yaml").unlink()
    with pytest.raises(UserError, match="holds a model that was not trained there: choose another --output"):
        train(recipe(tmp_path / "out", epochs=1))


def test_a_plan_is_reported_on_images_that_did_not_make_it(trained: Path, tmp_path: Path) -> None:
    _, plan = analyze_run(trained, split="test", shuffles=99)
    assert plan.split == Plan.load(trained / "plan.json").split == "test"
    evidence = prune_run(trained, recover=0, output=tmp_path / "out")
    assert (evidence.split, evidence.decided, evidence.images) == ("val", False, 360)
    right = (load(trained / "model")(digits().val.images).argmax(-1) == digits().val.targets).float().mean()  # type: ignore[attr-defined]
    assert evidence.states[0].score.value == pytest.approx(100 * right.item())
    assert json.loads((tmp_path / "out" / "pruning.json").read_text())["split"] == "val"
    PLAN.save(trained / "plan.json")


def test_where_no_other_images_are_left_this_is_said(trained: Path, tmp_path: Path, monkeypatch: Any) -> None:
    splits = digits()
    monkeypatch.setattr("vimoe.analysis.analyze_run.open_recipe_data", lambda _: replace(splits, test=splits.val))
    replace(PLAN, split="val").save(tmp_path / "plan.json")
    lines: list[str] = []
    evidence = prune_run(trained, tmp_path / "plan.json", recover=0, output=tmp_path / "out", say=lines.append)
    assert evidence.decided
    assert any("made the plan as well and there are no others" in line for line in lines)


@pytest.mark.parametrize(
    ("decided", "split"), [("val", "test"), ("test", "val"), ("train", "test"), ("", "test"), ("other", "test")]
)
def test_the_report_takes_another_split_than_the_plan(decided: str, split: str) -> None:
    assert reporting_split(digits(), decided) == (split, False)


def test_a_segmentation_run_is_analyzed_pruned_and_recovers(tmp_path: Path) -> None:
    run = train(
        recipe(
            tmp_path / "run",
            task="segmentation",
            dataset="digit_scenes",
            model_args={"patch_size": 8, "embed_dim": 16, "depth": 2, "num_heads": 2, "weight_init": "jax"},
            last=1,
            num_experts=3,
            routing="token",
            epochs=1,
        )
    )
    analysis, _ = analyze_run(run.path, shuffles=99)
    assert (analysis.metric, analysis.unit, analysis.images) == ("pixels", "patch", 200)
    assert len(analysis.class_names) == 11
    Plan((LayerPlan(1, ()),)).save(run.path / "plan.json")
    evidence = prune_run(run.path, recover=1, output=tmp_path / "pruned")
    assert [state.name for state in evidence.states] == ["before", "right after", "recovered"]
    assert evidence.metric == "pixels"
    model = load_segmenter(evidence.output / "model")
    assert get_config(model) is None
    assert model(torch.randn(1, 3, 32, 32)).shape == (1, 11, 32, 32)
