"""Routers and forms of experts in training: resumed to the bit, and by several processes as by one."""

from pathlib import Path
from typing import Any

import pytest
import torch

from tests.training.tiny import recipe, whole_and_resumed
from tests.training.together import run_together
from vimoe.training.fit import train
from vimoe.training.run_folder import RunFolder
from vimoe.vit.checkpoint import load
from vimoe.vit.upcycle import get_config

TOKEN = {"routing": "token", "last": 2, "num_experts": 4}
FORMS: dict[str, dict[str, Any]] = {
    "low rank, bias": {"last": 2, "num_experts": 4, "expert_rank": 4, "balance": "bias", "balance_rate": 0.01},
    "fine-grained, bias": {**TOKEN, "granularity": 2, "balance": "bias", "router_temperature": 0.5},
    "one router": {"last": 2, "num_experts": 4, "router_scope": "model", "balance": "bias", "balance_rate": 0.01},
    "renormalised, load loss": {
        **{**TOKEN, "gate": "renormalised", "top_k": 2, "router_noise": True, "load_weight": 0.1},
    },
    "drop": {"last": 2, "num_experts": 4, "init": "drop", "drop_share": 0.3},
    "split": {**TOKEN, "init": "split", "top_k": 2, "shared_expert": False},
    "expert choice": {**TOKEN, "router": "expert_choice", "capacity": 1.5},
    "prioritised": {**TOKEN, "router": "prioritised", "capacity": 0.5, "top_k": 2, "balance": "bias"},
    "soft": {**TOKEN, "router": "soft", "init": "residual"},
}
RANDOM = {"router_jitter": 0.1, "expert_dropout": 0.1, "accumulate": 2, "batch_size": 64, "model_ema": True}
every_form = pytest.mark.parametrize("form", FORMS)


@every_form
def test_a_run_stopped_inside_an_epoch_gives_the_bits_of_an_uninterrupted_one(
    form: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    changes = {**FORMS[form], **RANDOM, "epochs": 2, "workers": 0}
    whole, resumed = whole_and_resumed(tmp_path, monkeypatch, 7, **changes)
    expected = load(whole.model).state_dict()
    rows = whole.read_rows()
    assert [row["routing"] for row in rows] == [row["routing"] for row in resumed.read_rows()]
    biases = [value for name, value in expected.items() if name.endswith("router.bias")]
    routers = 1 if "router_scope" in FORMS[form] else 2
    assert len(biases) == (routers if FORMS[form].get("balance") == "bias" else 0)
    assert all(bias.abs().sum() > 0 for bias in biases)
    if FORMS[form].get("router") == "prioritised":  # of a capacity of half the choices
        assert all(0 < block["unserved"] < 1 for block in rows[-1]["routing"].values())
    config = get_config(load(whole.model))
    assert config is not None
    assert config.num_experts == ((8, 8) if "granularity" in FORMS[form] else (4, 4))


@pytest.mark.slow
@every_form
@pytest.mark.parametrize("fsdp", [False, True], ids=["copies", "shards"])
def test_two_processes_train_like_one(form: str, fsdp: bool, tmp_path: Path) -> None:
    changes = {**FORMS[form], "augment": False, "batch_size": 60, "epochs": 1, "lr": 1e-3}
    for own in ("router_noise", "load_weight"):  # each process draws its own noise and takes a loss of its own batch
        changes.pop(own, None)
    one = train(recipe(tmp_path / "one", **changes))
    told = run_together(recipe(tmp_path / "two", **changes, fsdp=fsdp), 2)
    assert [process["end"] for process in told] == ["finished", "finished"]
    rows = [run.read_rows() for run in (one, RunFolder(tmp_path / "two"))]
    assert rows[1][0]["loss"] == pytest.approx(rows[0][0]["loss"], abs=1e-4)
    expected, found = load(one.model).state_dict(), load(tmp_path / "two").state_dict()
    for name, value in expected.items():
        assert torch.allclose(value, found[name], atol=1e-3), name
