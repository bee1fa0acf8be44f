"""The baselines that an MoE is held against: how large they are, what learns, and everything a run can do."""

import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import vimoe
from tests.data.image_files import write_folder
from tests.training.tiny import ARGS, recipe, whole_and_resumed
from tests.training.together import run_together
from vimoe.analysis.evaluate_run import evaluate
from vimoe.cli import main
from vimoe.data.digits import digits
from vimoe.errors import UserError
from vimoe.export.graph_model import GraphModel
from vimoe.tasks.model import load_model
from vimoe.tasks.segmenter import Segmenter
from vimoe.training.build import build_model
from vimoe.training.fit import train
from vimoe.training.recipe import Recipe
from vimoe.training.source import open_recipe_data
from vimoe.vit.blocks import moe_layers
from vimoe.vit.ensemble import Ensemble
from vimoe.vit.lora import LoRALinear

ARGS_32 = {**ARGS, "embed_dim": 32}  # a LoRA as large as a few experts has a rank below this width
MOE = {"last": 2, "num_experts": 2, "model_args": ARGS_32}
BASELINES: dict[str, dict[str, Any]] = {
    "dense": {},
    "wide": {},
    "deeper": {},
    "linear": {},
    "lora": {},
    "vpt": {"prompt_tokens": 3},
    "ensemble": {"members": 2},
}
every_baseline = pytest.mark.parametrize("baseline", BASELINES)
FORMS: dict[str, dict[str, Any]] = {
    "shared": {},
    "two chosen": {"top_k": 2, "num_experts": 4, "shared_expert": False},
    "fine-grained": {"granularity": 4, "num_experts": 3, "top_k": 2},
    "split": {"init": "split", "num_experts": 4, "top_k": 3},
    "low rank": {"expert_rank": 8, "num_experts": 4, "top_k": 2},
    "capacity": {"router": "prioritised", "capacity": 0.5, "routing": "token", "top_k": 2},
    "expert choice": {"router": "expert_choice", "capacity": 1.5, "routing": "token"},
    "soft": {"router": "soft", "slots": 3, "routing": "token"},
}


def build(path: Path, baseline: str = "", **changes: Any) -> nn.Module:
    return build_model(recipe(path, **{**MOE, "baseline": baseline, **changes}), digits())


def unit_less(moe: nn.Module) -> int:
    """Parameters of routers, and of activated biases behind experts beyond the FFN's own: they belong to no unit."""
    count = 0
    for layer in moe_layers(moe).values():
        count += sum(p.numel() for p in layer.router.parameters())
        biases = 32 if any(name == "fc2.bias" for name, _ in layer.experts.named_parameters()) else 0
        count += round(biases * (layer.router.assignments(5) / 5 + (layer.shared_expert is not None) - 1))
    return count


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("baseline", ["wide", "deeper"])
def test_a_control_activates_as_many_parameters_as_the_moe_whatever_its_experts(
    baseline: str, form: str, tmp_path: Path
) -> None:
    moe, dense = build(tmp_path, **FORMS[form]), build(tmp_path, "dense")
    wanted = vimoe.cost(moe).activated_params - unit_less(moe)
    if baseline == "deeper" and wanted - vimoe.cost(dense).activated_params < 4 * 32 * 32:
        with pytest.raises(UserError, match="too few for a block of this model"):
            build(tmp_path, baseline, **FORMS[form])
        return
    control = vimoe.cost(build(tmp_path, baseline, **FORMS[form]))
    unit = 2 * 32 + 1  # of an FFN; there are two that changed
    bias = 2 * 32  # behind the FFN of a block, of which a deeper model has more
    assert abs(control.activated_params - wanted) <= 2 * unit + (bias if baseline == "deeper" else 0)
    assert control.stored_params == control.activated_params
    assert control.activated_params > vimoe.cost(dense).activated_params


@pytest.mark.parametrize("baseline", ["wide", "deeper", "lora"])
def test_it_starts_as_the_dense_model(baseline: str, tmp_path: Path) -> None:
    images = torch.randn(2, 1, 8, 8)
    assert torch.allclose(build(tmp_path, baseline)(images), build(tmp_path, "dense")(images), atol=1e-6)


def test_a_lora_trains_as_many_parameters_as_the_moe_adds_and_an_ensemble_stores_as_many(tmp_path: Path) -> None:
    moe, dense = (vimoe.cost(build(tmp_path, name)) for name in ("", "dense"))
    lora = [module for module in build(tmp_path, "lora").modules() if isinstance(module, LoRALinear)]
    added = sum(module.up.numel() + module.down.numel() for module in lora)
    assert added == pytest.approx(moe.stored_params - dense.stored_params, rel=0.03)
    ensemble = build(tmp_path, "ensemble", num_experts=7)
    assert isinstance(ensemble, Ensemble)
    wanted = vimoe.cost(build(tmp_path, num_experts=7)).stored_params
    assert vimoe.cost(ensemble).stored_params == pytest.approx(wanted, abs=dense.stored_params / 2)
    given = build(tmp_path, "lora", lora_rank=3, last=0)
    assert {module.down.shape[0] for module in given.modules() if isinstance(module, LoRALinear)} == {3}


LEARNS = {
    "linear": {"norm", "head"},
    "lora": {"head", "up", "down"},
    "vpt": {"head", "prompts"},
}


@pytest.mark.parametrize("baseline", LEARNS)
def test_only_its_own_part_learns_and_all_of_that_does(baseline: str, tmp_path: Path) -> None:
    settings = recipe(tmp_path / "run", **MOE, **BASELINES[baseline], baseline=baseline, epochs=1)
    start, run = build_model(settings, digits()), train(settings)
    end = vimoe.load(run.path)
    merged = {n: p for n, p in start.named_parameters() if not n.endswith((".up", ".down"))}
    changed = {name for name, value in end.named_parameters() if not torch.equal(value, merged[name])}
    if baseline == "lora":
        assert {name.split(".")[0] for name in changed} == {"blocks", "head"}
        assert all(name.endswith("weight") for name in changed - {"head.bias"})
        assert len(changed) == 3 * 4 + 2
    else:
        words = {word for name in changed for word in name.split(".") if word in LEARNS[baseline]}
        assert words == LEARNS[baseline]
        assert all(LEARNS[baseline] & set(name.split(".")) for name in changed)
    (row,) = run.read_rows()
    assert 0 < row["trained_params"] < vimoe.cost(start).stored_params


@every_baseline
def test_it_trains_and_is_loaded_evaluated_used_and_exported(
    baseline: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    run = train(recipe(tmp_path / "run", **MOE, **BASELINES[baseline], baseline=baseline, epochs=1, model_ema=True))
    model = load_model(run.model)
    images = torch.randn(4, 1, 8, 8)
    assert model(images).shape == (4, 10)
    assert vimoe.cost(model).stored_params == sum(p.numel() for p in model.parameters())
    row = run.read_rows()[-1]
    val = evaluate(run.path, split="val", workers=0, device="cpu")
    assert val.score.value == pytest.approx(row["val_top1"], abs=0.6)  # two images: nearly equal probabilities
    main(["info", str(run.path)])
    assert "no MoE layers" in capsys.readouterr().out
    if baseline == "ensemble":
        with pytest.raises(UserError, match="Ensemble has 2 separate stages of blocks"):
            GraphModel(model, (8, 8))
        return
    vimoe.save(model, tmp_path / "again")
    assert torch.equal(vimoe.load(tmp_path / "again")(images), model(images))
    plain = "vimoe" not in (run.model / "config.json").read_text()
    assert plain == (baseline in ("dense", "linear", "lora"))
    wanted = model(images)
    program = torch.export.export(GraphModel(model, (8, 8)), (images,))
    torch.testing.assert_close(program.module()(images)[0], wanted, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("baseline", ["deeper", "lora", "vpt", "ensemble"])
def test_a_stopped_run_ends_in_the_bits_of_an_uninterrupted_one(
    baseline: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    changes = {**MOE, **BASELINES[baseline], "baseline": baseline, "epochs": 2, "workers": 0, "drop_path": 0.1}
    whole, resumed = whole_and_resumed(tmp_path, monkeypatch, 13, **changes)
    rows = [{k: v for k, v in run.read_rows()[-1].items() if "sec" not in k} for run in (whole, resumed)]
    assert rows[0]["val_top1"] == rows[1]["val_top1"]
    assert rows[0]["loss"] == rows[1]["loss"]


def test_the_members_of_an_ensemble_are_dense_runs_and_their_probabilities_are_averaged(tmp_path: Path) -> None:
    shared = {**MOE, "epochs": 1, "workers": 0}
    ensemble = vimoe.load(train(recipe(tmp_path / "two", **shared, baseline="ensemble", members=2)).path)
    assert isinstance(ensemble, Ensemble)
    dense = vimoe.load(train(recipe(tmp_path / "dense", **shared, baseline="dense")).path)
    first, second = ensemble.members
    for (name, value), other in zip(first.state_dict().items(), dense.state_dict().values(), strict=True):
        assert torch.equal(value, other), name
    assert not torch.equal(second.get_parameter("head.weight"), dense.get_parameter("head.weight"))
    images = torch.randn(3, 1, 8, 8)
    mean = (first(images).softmax(-1) + second(images).softmax(-1)) / 2
    torch.testing.assert_close(ensemble(images).softmax(-1), mean)
    assert {path.name for path in (tmp_path / "two").iterdir()} >= {"model", "metrics.jsonl"}
    assert not (tmp_path / "two" / "members").exists()


@pytest.mark.parametrize(
    ("settings", "line"),
    [
        ({"baseline": "lora", "freeze": "experts"}, "baseline lora says itself what learns: leave freeze empty"),
        ({"baseline": "ensemble", "task": "segmentation"}, "baseline ensemble averages the probabilities"),
        ({"baseline": "vpt", "cache_features": "memory"}, "cache_features is for classification with a frozen trunk"),
    ],
)
def test_settings_that_exclude_each_other_get_one_line(settings: dict[str, Any], line: str) -> None:
    with pytest.raises(UserError, match=line):
        Recipe(**settings)


@pytest.mark.parametrize(
    ("baseline", "changes", "line"),
    [
        ("lora", {"last": 0}, "baseline lora is as large as an MoE: say which, with last and others"),
        ("ensemble", {"last": 0}, "baseline ensemble is as large as an MoE"),
        ("lora", {"num_experts": 64}, "is no low rank in a model of width 32: give a lora_rank below it"),
        ("wide", {"init": "split", "shared_expert": False}, "these experts activate less than the FFN"),
        ("deeper", {"shared_expert": False}, "too few for a block"),
        ("deeper", {"model": "eva02_tiny_patch14_224", "model_args": {}}, "EvaBlocks cannot be deepened"),
        ("vpt", {"model": "eva02_tiny_patch14_224", "model_args": {}}, "EvaBlocks cannot be given prompts"),
        ("deeper", {"last": 9}, "last must be 1 to 3"),
    ],
)
def test_a_baseline_that_cannot_be_is_refused_in_one_line(
    baseline: str, changes: dict[str, Any], line: str, tmp_path: Path
) -> None:
    splits = digits()
    if "model" in changes:
        splits = replace(splits, form=splits.form._replace(input_size=(1, 28, 28)))
    with pytest.raises(UserError, match=line):
        build_model(recipe(tmp_path, **{**MOE, "baseline": baseline, **changes}), splits)


def test_the_trunk_of_a_linear_or_deeper_baseline_can_be_cached(tmp_path: Path) -> None:
    for baseline, freeze in (("linear", ""), ("deeper", "trunk")):
        changes = {**MOE, "baseline": baseline, "freeze": freeze, "augment": False, "epochs": 1, "workers": 0}
        plain = train(recipe(tmp_path / baseline, **changes))
        cached = train(recipe(tmp_path / f"{baseline}-cached", **changes, cache_features="memory"))
        assert cached.read_rows()[-1]["loss"] == pytest.approx(plain.read_rows()[-1]["loss"], abs=2e-3)
        assert cached.read_rows()[-1]["trained_params"] == plain.read_rows()[-1]["trained_params"]


@pytest.mark.parametrize("baseline", ["deeper", "vpt", pytest.param("lora", marks=pytest.mark.slow)])
def test_a_segmentation_model_has_its_baselines_too(baseline: str, tmp_path: Path) -> None:
    args = {"patch_size": 8, "embed_dim": 16, "depth": 4, "num_heads": 2}
    settings = recipe(
        tmp_path / "run",
        **{"task": "segmentation", "routing": "token", "model_args": args, "lora_rank": 4, "augment": False},
        **{"baseline": baseline, "last": 2, "epochs": 1, "batch_size": 256, "workers": 0},
    )
    start = build_model(settings, open_recipe_data(settings))
    run = train(settings)
    model, row = load_model(run.model), run.read_rows()[-1]
    assert isinstance(model, Segmenter)
    assert model.blocks == (4 if baseline == "deeper" else 3,)
    assert (row["trained_params"] == vimoe.cost(start).stored_params) == (baseline == "deeper")
    assert not model.get_parameter("decoder.classify.weight").equal(start.get_parameter("decoder.classify.weight"))
    assert not model.get_buffer("decoder.norm.running_mean").equal(start.get_buffer("decoder.norm.running_mean"))


def test_a_decoder_of_several_blocks_sees_what_new_blocks_make_of_them(tmp_path: Path) -> None:
    args = {"patch_size": 8, "embed_dim": 16, "depth": 4, "num_heads": 2}
    settings = recipe(tmp_path, task="segmentation", decoder="upernet", routing="token", model_args=args, last=4)
    splits = open_recipe_data(settings)
    deeper = build_model(replace(settings, baseline="deeper"), splits)
    dense = build_model(replace(settings, baseline="dense"), splits)
    assert isinstance(deeper, Segmenter)
    assert len(deeper.backbone.blocks) == 7
    assert deeper.blocks == (0, 2, 4, 6)
    images = torch.randn(1, 3, 32, 32)
    assert torch.allclose(deeper.eval()(images), dense.eval()(images), atol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("fsdp", [False, True], ids=["copies", "shards"])
@every_baseline
def test_two_processes_train_like_one(baseline: str, fsdp: bool, tmp_path: Path) -> None:
    changes = {**MOE, **BASELINES[baseline], "baseline": baseline, "augment": False, "batch_size": 60, "epochs": 1}
    one = train(recipe(tmp_path / "one", **changes))
    told = run_together(recipe(tmp_path / "two", **changes, fsdp=fsdp), 2)
    assert [process["end"] for process in told] == ["finished", "finished"]
    expected, found = vimoe.load(one.model).state_dict(), vimoe.load(tmp_path / "two").state_dict()
    for name, value in expected.items():
        assert torch.allclose(value, found[name], atol=1e-3), name


def test_an_ensembles_images_are_known_where_they_lie_now(tmp_path: Path) -> None:
    data = write_folder(tmp_path / "data", {"": 8}, size=16)
    files = {"dataset": "folder", "data_dir": str(data), "img_size": 16, "batch_size": 8, "workers": 0, "epochs": 1}
    run = train(recipe(tmp_path / "run", **files, **MOE, baseline="ensemble", members=2))
    moved = shutil.copytree(data, tmp_path / "moved")
    assert evaluate(run.path, data_dir=str(moved), workers=0, device="cpu").own
