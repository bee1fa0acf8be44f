import json
from pathlib import Path

import pytest
import torch

from tests.training.tiny import recipe
from vimoe.analysis.analysis_result import Analysis
from vimoe.analysis.analyze_run import analyze_run
from vimoe.analysis.counts import RoutingCounts
from vimoe.analysis.held_out import draw
from vimoe.data.digits import digits
from vimoe.data.glyph_bank import script
from vimoe.errors import UserError
from vimoe.training.fit import train
from vimoe.training.run_folder import RunFolder
from vimoe.vit.checkpoint import load, save
from vimoe.vit.plan import LayerPlan, Plan


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.set_num_threads(1)
    torch.manual_seed(0)
    return train(recipe(tmp_path_factory.mktemp("runs") / "moe", last=2, num_experts=3)).path


def written(run: Path) -> dict[str, bytes]:
    return {str(p.relative_to(run)): p.read_bytes() for p in sorted(run.rglob("*")) if p.is_file()}


def test_a_run_is_analyzed_on_its_own_images_and_only_adds_to_its_folder(trained: Path) -> None:
    before = written(trained)
    analysis, plan = analyze_run(trained, shuffles=99)
    after = written(trained)
    assert set(after) - set(before) == {"analysis.json", "plan.json", "routing/val.npz"}
    assert all(after[name] == data for name, data in before.items())
    assert Analysis.load(trained / "analysis.json") == analysis
    assert Plan.load(trained / "plan.json") == plan
    counts = RoutingCounts.load(trained / "routing" / "val.npz")
    assert (counts.layers, counts.num_experts) == ((1, 2), (3, 3))
    assert analysis.images == counts.counts[0].sum() == 360
    model, val = load(trained / "model"), digits().val
    with torch.no_grad():
        right = (model(torch.stack([x for x, _ in val])).argmax(-1) == torch.tensor([y for _, y in val])).sum()
    assert analysis.score.value == pytest.approx(100 * right.item() / 360)


def test_a_sample_is_analyzed_as_what_it_is(trained: Path) -> None:
    analysis, plan = analyze_run(trained, sample=40, shuffles=99)
    assert (analysis.images, analysis.split_images) == (40, 360)
    assert RoutingCounts.load(trained / "routing" / "val.npz").counts[0].sum(1).tolist() == [4] * 10
    named = {place for layer in analysis.layers for e in layer.experts for place in (*e.confident, *e.unsure)}
    assert named <= set(draw(digits().val, 40).places)
    assert max(named) >= 40
    assert [step.outcome for step in analysis.steps if not step.drop] == ["undecided"] * 2
    assert not any(part.pruned for part in plan.layers)
    assert analyze_run(trained, sample=40, shuffles=99) == (analysis, plan)
    assert analyze_run(trained, sample=1000, shuffles=99)[0].images == 360


def test_experts_are_scored_against_the_routers_that_the_run_kept(trained: Path, tmp_path: Path) -> None:
    analysis, _ = analyze_run(trained, sample=120, shuffles=99, experts=("router-change", "ablation"))
    assert Analysis.load(trained / "analysis.json") == analysis
    initial, model = RunFolder(trained).read_initial_routers(), load(trained / "model")
    for layer in analysis.layers:
        weight = model.get_parameter(f"blocks.{layer.layer}.mlp.router.weight").detach()
        longer = weight.norm(dim=1) - torch.from_numpy(initial[layer.layer]).norm(dim=1)
        assert [e.scores["router-change"] for e in layer.experts] == pytest.approx(longer.tolist(), abs=1e-5)
    whole, _ = analyze_run(trained, shuffles=99, experts=("ablation",))
    width = {}
    for name, found in (("sample", analysis), ("whole", whole)):
        losses = [e.lost for layer in found.layers for e in layer.experts]
        width[name] = sum(loss.high - loss.low for loss in losses if loss) / len(losses)
    assert 1.3 < width["sample"] / width["whole"] < 2.3  # the interval is of 120 images and not of 360: root of 3
    old = RunFolder(tmp_path / "old")
    old.write_recipe(recipe(tmp_path / "old", last=2, num_experts=3))
    save(model, old.model)
    with pytest.raises(UserError, match=r"initial weights are not at .*old/initial_routers\.npz: `vimoe train` keeps"):
        analyze_run(old.path, experts=("router-change",))
    assert not (old.path / "analysis.json").exists()


def test_a_folder_that_another_process_works_in_is_refused(trained: Path) -> None:
    before = written(trained)
    with RunFolder(trained).locked(), pytest.raises(UserError, match="moe is in use by another process"):
        analyze_run(trained, shuffles=99)
    assert written(trained) == before


def test_what_cannot_be_analyzed_gets_one_line_and_changes_nothing(
    trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = written(trained)
    with pytest.raises(UserError, match=r"is not a run folder: it holds no recipe\.yaml"):
        analyze_run(tmp_path)
    unfinished = RunFolder(tmp_path / "half")
    unfinished.write_recipe(recipe(tmp_path / "half"))
    with pytest.raises(UserError, match="half is not finished: the `vimoe train` command that began it goes on"):
        analyze_run(unfinished.path)
    dense = train(recipe(tmp_path / "dense", epochs=1))
    with pytest.raises(UserError, match="no MoE layer to analyze"):
        analyze_run(dense.path)
    with pytest.raises(UserError, match="device 'nonsense' cannot be used here"):
        analyze_run(trained, device="nonsense")
    others = digits()
    object.__setattr__(others, "class_names", (*others.class_names[:-1], "ten"))
    monkeypatch.setattr("vimoe.analysis.analyze_run.open_recipe_data", lambda _: others)
    with pytest.raises(UserError, match=r"other classes than the run: 10 against 10, the first that differs is '9'"):
        analyze_run(trained)
    assert written(trained) == before


def test_routers_that_hold_nan_are_refused(trained: Path, tmp_path: Path) -> None:
    copy = RunFolder(tmp_path / "nan")
    copy.write_recipe(recipe(tmp_path / "nan", last=2, num_experts=3))
    model = load(trained / "model")
    model.get_parameter("blocks.1.mlp.router.weight").data[0, 0] = torch.nan
    save(model, copy.model)
    with pytest.raises(
        UserError, match=r"holds weights that are no finite numbers, the first in blocks.1.mlp.router.weight"
    ):
        analyze_run(copy.path)
    assert not (copy.path / "analysis.json").exists()


def test_a_class_with_no_image_is_told(trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    splits = digits()
    keep = splits.val.targets != 7  # type: ignore[attr-defined]
    splits.val.images, splits.val.targets = splits.val.images[keep], splits.val.targets[keep]  # type: ignore[attr-defined]
    monkeypatch.setattr("vimoe.analysis.analyze_run.open_recipe_data", lambda _: splits)
    copy = RunFolder(tmp_path / "copy")
    copy.write_recipe(recipe(tmp_path / "copy", last=2, num_experts=3))
    save(load(trained / "model"), copy.model)
    notes: list[str] = []
    analyze_run(copy.path, shuffles=99, note=notes.append)
    assert notes == ["no image looked at in val is of class '7': nothing is said about it"]


def test_a_plan_reads_back_and_what_is_no_plan_gets_one_line(tmp_path: Path) -> None:
    plan = Plan((LayerPlan(1, (0, 2), (0.5, 0.0, 0.5), "because", {"lost": 0.5}), LayerPlan(2, ())))
    plan.save(tmp_path / "plan.json")
    assert Plan.load(tmp_path / "plan.json") == plan
    with pytest.raises(UserError, match=r"there is no plan at .*none\.json: `vimoe analyze` writes one"):
        Plan.load(tmp_path / "none.json")
    (tmp_path / "text.json").write_text("keep all")
    with pytest.raises(UserError, match=r"cannot read .*text\.json: Expecting value"):
        Plan.load(tmp_path / "text.json")
    edited = plan.to_dict()
    edited["layers"][0]["action"] = "keeep"
    (tmp_path / "edited.json").write_text(json.dumps(edited))
    line = r"edited\.json: plan for block 1: action must be keep, merge or prune, got 'keeep'"
    with pytest.raises(UserError, match=line):
        Plan.load(tmp_path / "edited.json")


def test_routing_counts_of_letters_come_with_their_scripts(tmp_path: Path) -> None:
    few = {"side": 8, "classes": 40, "train_images": 128, "val_images": 80, "test_images": 80}
    run = train(recipe(tmp_path / "letters", dataset="glyphs", dataset_args=few, epochs=1, last=1, num_experts=2)).path
    analyze_run(run, shuffles=19)
    counts = RoutingCounts.load(run / "routing" / "val.npz")
    assert counts.counts.sum() == 80
    assert len(counts.super_classes) == 40
    scripts = dict(zip(counts.class_names, counts.super_classes, strict=True))
    assert scripts == {name: script(ord(name[-1])) for name in counts.class_names}
    assert "Latin" in counts.super_classes
