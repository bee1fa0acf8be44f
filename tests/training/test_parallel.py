"""Runs of several processes on gloo, each started as torchrun would start it."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from tests.training.tiny import recipe
from tests.training.together import run_together
from vimoe.errors import UserError
from vimoe.training.fit import train
from vimoe.training.parallel import pick_device, wrap_ddp
from vimoe.training.run_folder import RunFolder
from vimoe.vit.checkpoint import load

# Nothing random that differs between processes: they see the very images that one process would.
SAME: dict[str, Any] = {
    **{"last": 2, "num_experts": 4, "augment": False, "batch_size": 60, "epochs": 3, "lr": 1e-3},
    **{"model_ema": True, "model_ema_decay": 0.9, "expert_lr": 0.5},
}


def weights(folder: Path) -> dict[str, Tensor]:
    return load(RunFolder(folder).model).state_dict()


def test_auto_takes_what_is_there() -> None:
    assert pick_device("auto") == ("cuda" if torch.cuda.is_available() else "cpu")
    assert pick_device("cpu") == "cpu"
    with pytest.raises(UserError, match="device 'tpu9' cannot be used here"):
        pick_device("tpu9")


def test_one_process_calls_the_model_itself() -> None:
    model = torch.nn.Linear(2, 2)
    assert wrap_ddp(model, 7) is model


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return train(recipe(tmp_path_factory.mktemp("alone") / "run", **SAME)).path


def test_two_copies_train_like_one_process_and_count_every_image_once(alone: Path, tmp_path: Path) -> None:
    told = run_together(recipe(tmp_path / "run", **SAME), 2, val=359)
    assert [process["end"] for process in told] == ["finished", "finished"]
    assert len(told[0]["losses"]) >= 50
    assert told[0]["losses"] == told[1]["losses"]
    one, two = RunFolder(alone).read_rows(), RunFolder(tmp_path / "run").read_rows()
    assert [row["loss"] for row in two] == pytest.approx([row["loss"] for row in one], abs=1e-5)
    assert [row["val_images"] for row in two] == [359, 359, 359]
    for block, metrics in two[-1]["routing"].items():
        assert metrics["load"] == pytest.approx(one[-1]["routing"][block]["load"], abs=2e-3)
    expected, found = weights(alone), weights(tmp_path / "run")
    for name, value in expected.items():
        assert torch.allclose(value, found[name], atol=2e-4), name


@pytest.mark.parametrize("others", [1, 3])
def test_a_state_of_two_processes_with_shards_is_resumed_by_another_number(
    alone: Path, tmp_path: Path, others: int
) -> None:
    settings = recipe(tmp_path / "run", **SAME, fsdp=True)
    told = run_together(settings, 2, stop_at=25)
    assert all("the same command goes on" in process["end"] for process in told)
    if others == 1:
        train(settings)
    else:
        told = run_together(settings, others)
        assert [process["end"] for process in told] == ["finished"] * others
    one, other = RunFolder(alone).read_rows(), RunFolder(tmp_path / "run").read_rows()
    assert [row["loss"] for row in other] == pytest.approx([row["loss"] for row in one], abs=1e-5)
    expected, found = weights(alone), weights(tmp_path / "run")
    for name, value in expected.items():
        assert torch.allclose(value, found[name], atol=2e-4), name


def test_a_damaged_state_of_a_sharded_model_costs_one_state(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    settings = recipe(tmp_path / "run", **{**SAME, "epochs": 2}, fsdp=True, keep_states=True)
    whole = weights(train(replace(settings, output=str(tmp_path / "whole"))).path)
    train(settings)
    newest = sorted((tmp_path / "run" / "checkpoints").glob("state-*.pt"))[-1]
    newest.write_bytes(newest.read_bytes()[:-100])
    for file in RunFolder(tmp_path / "run").model.iterdir():
        file.unlink()
    train(settings)
    assert "is damaged; the state before it is tried" in capsys.readouterr().err
    found = weights(tmp_path / "run")
    assert all(torch.equal(whole[name], found[name]) for name in whole)


def test_a_process_that_dies_ends_the_run_with_a_line_and_the_same_command_goes_on(alone: Path, tmp_path: Path) -> None:
    settings = recipe(tmp_path / "run", **SAME)
    told = run_together(settings, 2, die_at=20)
    assert len(told) == 1
    assert told[0]["end"].startswith("another process of this run has died")
    assert "\n" not in told[0]["end"]
    train(settings)
    rows = RunFolder(tmp_path / "run").read_rows()
    assert [row["loss"] for row in rows] == pytest.approx(
        [row["loss"] for row in RunFolder(alone).read_rows()], abs=1e-5
    )


def test_a_batch_that_does_not_divide_evenly_gets_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("vimoe.training.parallel.world_size", lambda: 3)
    with pytest.raises(UserError, match="batch_size 64 is for all processes together: it does not divide by 3"):
        wrap_ddp(torch.nn.Linear(2, 2), 64)
