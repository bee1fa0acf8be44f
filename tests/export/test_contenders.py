import json
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import vimoe
from tests.export.models import SIZE, differing, vit, write_classifier, write_segmenter
from vimoe.export.contenders import competitors, measure_folder, touched
from vimoe.vit.plan import Plan


def moe(**upcycling: object) -> nn.Module:
    return differing(vimoe.upcycle(vit(), **{"last": 2, "num_experts": 3, **upcycling}))  # type: ignore[arg-type]


@pytest.mark.parametrize(("top_k", "shared"), [(1, True), (2, True), (2, False)])
def test_wide_has_the_multiply_adds_of_the_activated_experts(top_k: int, shared: bool) -> None:
    models = competitors(moe(top_k=top_k, shared_expert=shared))
    assert list(models) == ["dense", "wide", "ViMoE"]
    routers = 2 * 3 * 192
    assert vimoe.cost(models["ViMoE"]).macs - routers == vimoe.cost(models["wide"]).macs
    assert vimoe.cost(models["dense"]) == vimoe.cost(vit())


def test_one_expert_without_a_shared_one_is_as_wide_as_dense() -> None:
    assert list(competitors(moe(shared_expert=False))) == ["dense", "ViMoE"]


def test_a_gated_ffn_has_no_wide_competitor_and_that_is_said() -> None:
    model = vimoe.upcycle(vit("eva02_tiny_patch14_224", img_size=28), last=1, num_experts=2)
    lines: list[str] = []
    assert list(competitors(model, note=lines.append)) == ["dense", "ViMoE"]
    assert lines[0].startswith("no dense model of equal activated size: ")


@pytest.mark.parametrize(
    ("form", "names", "line"),
    [
        ({"router": "soft", "routing": "token"}, ["ViMoE"], "no dense model of equal blocks: "),
        ({"granularity": 2, "num_experts": 4, "top_k": 2}, ["dense", "wide", "ViMoE"], ""),
        ({"expert_rank": 4}, ["dense", "wide", "ViMoE"], ""),
    ],
)
def test_other_routers_and_experts_have_the_competitors_that_there_are(
    form: dict[str, Any], names: list[str], line: str
) -> None:
    model, lines = moe(**form), []
    assert list(competitors(model, note=lines.append)) == names
    assert bool(lines) == bool(line)
    assert all(line in said for said in lines)
    found = touched(model, torch.randn(1, 3, SIZE, SIZE))
    assert found is not None
    assert 0 < found.experts <= found.stored


def test_the_plan_makes_the_pruned_model_and_leaves_the_others() -> None:
    model = moe()
    models = competitors(model, Plan.from_dict({"layers": [{"layer": 1, "action": "prune"}]}))
    assert vimoe.cost(models["pruned"]).stored_params < vimoe.cost(models["ViMoE"]).stored_params
    assert models["ViMoE"] is model


def test_what_a_batch_reads_are_the_experts_that_it_chose() -> None:
    model = moe()
    images = torch.randn(6, 3, SIZE, SIZE)
    with torch.no_grad(), vimoe.record_routing(model) as record:
        model(images)
    chosen = sum(len(set(ids.flatten().tolist())) for ids in record.expert_ids.values())
    expert = 4 * (2 * 192 * 768 + 192 + 768)
    assert touched(model, images) == (chosen, 6, chosen * expert, 6 * expert)
    assert touched(vit(), images) is None


def test_a_run_is_measured_with_its_plan_and_exported(tmp_path: Path) -> None:
    write_classifier(tmp_path / "model", routing="image", last=1)
    plan = {"layers": [{"layer": 2, "action": "keep", "experts": [0, 2]}]}
    (tmp_path / "plan.json").write_text(json.dumps(plan))
    (one,) = measure_folder(tmp_path, [2], rounds=2)
    names = ["dense", "wide", "ViMoE", "pruned"]
    assert list(one.latencies) == names + [f"{name}, onnxruntime" for name in names]
    assert one.batch == 2
    assert one.touched is not None
    assert all(len(latency.seconds) == 2 and min(latency.seconds) > 0 for latency in one.latencies.values())


def test_a_segmentation_model_and_a_dense_one_are_measured_too(tmp_path: Path) -> None:
    write_segmenter(tmp_path / "seg")
    (one,) = measure_folder(tmp_path / "seg", [1], rounds=1, exported=False)
    assert list(one.latencies) == ["dense", "wide", "ViMoE"]
    (one,) = measure_folder(write_classifier(tmp_path / "dense"), [1], rounds=1, exported=False)
    assert (list(one.latencies), one.touched) == (["dense"], None)


def test_without_onnx_the_rest_is_measured(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    lines: list[str] = []
    (one,) = measure_folder(write_classifier(tmp_path), [1], rounds=1, note=lines.append)
    assert list(one.latencies) == ["dense"]
    assert "pip install 'vimoe[onnx]'" in lines[0]
