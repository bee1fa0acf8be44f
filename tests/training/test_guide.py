"""Super-class guidance, from the file of super-classes to the routing it leads to."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from tests.training.tiny import recipe, train_killed, whole_and_resumed
from vimoe.analysis.analyze_run import analyze_run
from vimoe.cli import main
from vimoe.data.digits import digits
from vimoe.errors import UserError
from vimoe.report.model_card import make_card
from vimoe.study.prune_run import prune_run
from vimoe.training.fit import recipe_task, train
from vimoe.training.guide import read_super_classes
from vimoe.training.recipe import Recipe
from vimoe.vit.checkpoint import load
from vimoe.vit.plan import LayerPlan, Plan
from vimoe.vit.recording import record_routing
from vimoe.vit.upcycle import get_config

GROUPS = {"round": [0, 6, 8, 9], "straight": [1, 4, 7], "open": [2, 3, 5]}
EXPERT_OF = (0, 1, 2, 2, 1, 2, 0, 1, 0, 0)


def groups_file(folder: Path, groups: Any = GROUPS) -> str:
    path = folder / "groups.yaml"
    path.write_text(yaml.safe_dump(groups, sort_keys=False))
    return str(path)


def agreement(folder: Path) -> float:
    """The share of the test images that the last MoE layer sends to the expert of their super-class."""
    model, test = load(folder), digits().test
    with record_routing(model) as record, torch.no_grad():
        model(torch.stack([image for image, _ in test]))
    wanted = torch.tensor([EXPERT_OF[label] for _, label in test])
    return float((record.expert_ids[2][:, 0] == wanted).float().mean())


def test_the_command_line_trains_routers_to_follow_the_super_classes(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file, start = groups_file(tmp_path), recipe(tmp_path / "free", last=2, num_experts=3, epochs=4, lr=4e-3)
    free = train(start)
    flags = ["--dataset", "digits", "--device", "cpu", "--epochs", "4", "--batch-size", "128", "--lr", "4e-3"]
    flags += ["--model-args", "{patch_size: 4, embed_dim: 16, depth: 3, num_heads: 2, weight_init: jax}"]
    flags += ["--pos-embed-std", "1", "--last", "2", "--num-experts", "3"]
    run = tmp_path / "guided"
    assert main(["train", *flags, "--guide-classes", file, "--output", str(run)]) == 0
    assert agreement(run) > max(0.5, agreement(free.path) + 0.2)
    config = get_config(load(run))
    assert config is not None
    assert config.guide == EXPERT_OF
    assert read_super_classes(run / "super_classes.yaml", tuple("0123456789")) == {
        name: [str(label) for label in labels] for name, labels in GROUPS.items()
    }
    capsys.readouterr()
    assert main(["analyze", str(run), "--shuffles", "99", "--device", "cpu"]) == 0
    said = capsys.readouterr().out
    assert "guided specialisation (95 %)" in said
    assert "was taught, not found" in said
    assert "guided specialisation" in (run / "report.html").read_text()
    card = make_card(run)[0]
    assert "as training guided them to super-classes" in card
    assert "was taught, not found" in card
    assert file not in card
    assert main(["info", str(run)]) == 0
    assert "guided to super-classes" in capsys.readouterr().out


@pytest.fixture(scope="module")
def dense(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.set_num_threads(1)
    return train(recipe(tmp_path_factory.mktemp("dense") / "run", epochs=4)).model


def test_the_dense_models_confusions_make_groups_of_equal_size_from_training_images_alone(
    dense: Path, tmp_path: Path
) -> None:
    settings = {"last": 1, "num_experts": 5, "initial_checkpoint": str(dense), "guide_classes": "confusion"}
    run = train(recipe(tmp_path / "run", **settings, epochs=1))
    kept = read_super_classes(run.super_classes, tuple("0123456789"))
    assert [len(names) for names in kept.values()] == [2] * 5
    model, training = load(dense), digits().train
    images, labels = (torch.stack(list(map(torch.as_tensor, part))) for part in zip(*training, strict=True))
    with torch.no_grad():
        probs = model(images).softmax(-1)
    shares = torch.stack([probs[labels == label].mean(0) for label in range(10)])
    alike = shares + shares.T
    taken = {tuple(int(name) for name in names) for names in kept.values()}
    mean = alike[~torch.eye(10, dtype=torch.bool)].mean()
    assert torch.stack([alike[a, b] for a, b in taken]).mean() > mean


def test_a_run_that_goes_on_takes_the_super_classes_it_began_with_and_ends_in_the_same_bits(
    dense: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = {"last": 1, "num_experts": 5, "initial_checkpoint": str(dense), "guide_classes": "confusion"}
    whole, resumed = whole_and_resumed(tmp_path, monkeypatch, 7, **settings, epochs=2, mixup=0.4, accumulate=2)
    assert whole.super_classes.read_bytes() == resumed.super_classes.read_bytes()


def test_a_file_that_changed_since_changes_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    settings = recipe(tmp_path / "run", last=1, num_experts=3, epochs=2, guide_classes=groups_file(tmp_path))
    train_killed(settings, 1, monkeypatch)
    groups_file(tmp_path, dict(zip("abc", GROUPS.values(), strict=True)))
    config = get_config(load(train(settings).model))
    assert config is not None
    assert config.guide == EXPERT_OF
    assert "round" in (tmp_path / "run" / "super_classes.yaml").read_text()


def test_pruning_keeps_the_fact_and_recovery_guides_no_more(tmp_path: Path) -> None:
    run = train(recipe(tmp_path / "run", last=2, num_experts=3, epochs=2, guide_classes=groups_file(tmp_path)))
    analysis, _ = analyze_run(run.path, shuffles=99, device="cpu")
    assert all(layer.specialisation.guided for layer in analysis.layers)
    Plan((LayerPlan(1, ()), LayerPlan(2, (0, 2))), "val").save(run.path / "plan.json")
    prune_run(run.path, recover=1, device="cpu")
    config = get_config(load(tmp_path / "run-pruned"))
    assert config is not None
    assert (config.num_experts, config.guide) == ((2,), EXPERT_OF)
    assert not (tmp_path / "run-pruned" / "super_classes.yaml").exists()


def test_without_moe_layers_or_weight_there_is_nothing_to_guide(tmp_path: Path) -> None:
    file = groups_file(tmp_path)
    for name, changes in {"dense": {}, "weightless": {"last": 1, "num_experts": 3, "guide_weight": 0.0}}.items():
        run = train(recipe(tmp_path / name, guide_classes=file, epochs=1, **changes))
        config = get_config(load(run.model))
        assert config is None or not config.guide
        assert not run.super_classes.exists()


REFUSED: list[tuple[dict[str, Any], Any, str]] = [
    ({"routing": "token"}, GROUPS, "it needs routing 'image'"),
    ({"num_experts": 4}, GROUPS, "needs a super-class for each expert: 3 for 4 experts"),
    ({"granularity": 2}, GROUPS, "needs a super-class for each expert: 3 for 6 experts"),
    ({}, {**GROUPS, "open": [2, 3, 5, 11]}, "groups.yaml: '11' is no class"),
    ({}, {**GROUPS, "open": [2, 3, 5, 0]}, "groups.yaml: names class '0' 2 times"),
    ({}, {**GROUPS, "open": [2, 3]}, "groups.yaml: names class '5' 0 times"),
    ({}, {**GROUPS, "open": 5}, "must hold super-classes with a list of their classes each"),
    ({"guide_classes": "nowhere.yaml"}, GROUPS, "cannot read nowhere.yaml"),
    ({"guide_classes": "data"}, GROUPS, "this data set has no super-classes"),
    ({"guide_classes": "confusion"}, GROUPS, "initial_checkpoint must be the folder of a model"),
]


@pytest.mark.parametrize(("changes", "groups", "line"), REFUSED)
def test_what_cannot_be_guided_is_refused_before_anything_is_written(
    changes: dict[str, Any], groups: Any, line: str, tmp_path: Path
) -> None:
    settings = {"last": 1, "num_experts": 3, "guide_classes": groups_file(tmp_path, groups), **changes}
    with pytest.raises(UserError, match=line):
        train(recipe(tmp_path / "run", **settings))
    assert not (tmp_path / "run").exists()


def test_more_groups_than_classes_are_refused(dense: Path, tmp_path: Path) -> None:
    settings = {"last": 1, "num_experts": 11, "initial_checkpoint": str(dense), "guide_classes": "confusion"}
    with pytest.raises(UserError, match="10 classes cannot be grouped for 11 experts"):
        train(recipe(tmp_path / "run", **settings))


@pytest.mark.parametrize("task", ["multilabel", "segmentation"])
def test_a_task_without_one_label_an_image_is_refused(task: str) -> None:
    splits = digits()
    with pytest.raises(UserError, match=f"leave it out for {task}"):
        recipe_task(replace(Recipe(guide_classes="data"), task=task), splits)  # type: ignore[arg-type]


def test_the_data_sets_own_super_classes_can_guide(tmp_path: Path) -> None:
    sizes = {"scripts": ["Greek", "Cyrillic"], "train_images": 256, "val_images": 64, "test_images": 64}
    settings = {"dataset": "glyphs", "dataset_args": sizes, "last": 1, "num_experts": 2, "epochs": 1}
    run = train(recipe(tmp_path / "run", **settings, guide_classes="data"))
    kept = yaml.safe_load(run.super_classes.read_text(encoding="utf-8"))
    assert set(kept) == {"Greek", "Cyrillic"}
