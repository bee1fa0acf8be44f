import signal
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.training.tiny import recipe
from vimoe.training.fit import train
from vimoe.training.interrupt import InterruptedRun
from vimoe.training.run_folder import RunFolder
from vimoe.training.trainer import Trainer
from vimoe.vit.checkpoint import load

EVERYTHING: dict[str, Any] = {
    "last": 1,
    "num_experts": 3,
    "router_noise": True,
    "mixup": 0.2,
    "cutmix": 0.5,
    "model_ema": True,
    "model_ema_decay": 0.9,
    "accumulate": 2,
    "batch_size": 64,
    "epochs": 2,
    "drop_path": 0.1,
}


def states(run: Path) -> list[Path]:
    return sorted((run / "checkpoints").glob("state-*.pt"))


def stop_after(monkeypatch: pytest.MonkeyPatch, batches: int) -> None:
    """Send this process a SIGTERM while it trains its batch of this number."""
    train_batch = Trainer.train_batch
    seen = 0

    def counted(self: Trainer, *args: torch.Tensor) -> torch.Tensor:
        nonlocal seen
        seen += 1
        if seen == batches:
            signal.raise_signal(signal.SIGTERM)
        return train_batch(self, *args)

    monkeypatch.setattr(Trainer, "train_batch", counted)


@pytest.mark.parametrize("batches", [1, 5, 16, 23])
def test_a_run_stopped_inside_an_epoch_gives_the_bits_of_an_uninterrupted_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, batches: int
) -> None:
    whole = load(train(recipe(tmp_path / "whole", **EVERYTHING)).model).state_dict()
    settings = recipe(tmp_path / "stopped", **EVERYTHING)
    with monkeypatch.context() as patch:
        stop_after(patch, batches)
        with pytest.raises(InterruptedRun, match="the same command goes on from here"):
            train(settings)
    assert signal.getsignal(signal.SIGTERM) == signal.SIG_DFL
    run = RunFolder(Path(settings.output))
    assert not run.finished
    resumed = load(train(settings).model).state_dict()
    assert all(torch.equal(whole[name], resumed[name]) for name in whole)
    one, other = run.read_rows(), RunFolder(tmp_path / "whole").read_rows()
    assert [row["loss"] for row in one] == [row["loss"] for row in other]
    assert [row["routing"] for row in one] == [row["routing"] for row in other]


def test_a_damaged_newest_state_costs_one_state_and_no_bit(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    settings = recipe(tmp_path / "run", **{**EVERYTHING, "epochs": 3})
    with monkeypatch.context() as patch:
        stop_after(patch, 34)  # in the third epoch, after two states
        with pytest.raises(InterruptedRun):
            train(settings)
    newest = states(tmp_path / "run")[-1]
    data = bytearray(newest.read_bytes())
    data[len(data) // 2] ^= 1
    newest.write_bytes(data)
    resumed = load(train(settings).model).state_dict()
    assert f"{newest} is damaged, the state before it is used" in capsys.readouterr().err
    whole = load(train(replace(settings, output=str(tmp_path / "whole"))).model).state_dict()
    assert all(torch.equal(whole[name], resumed[name]) for name in whole)


def test_the_average_of_the_weights_is_what_is_kept(tmp_path: Path) -> None:
    run = train(recipe(tmp_path / "run", model_ema=True, model_ema_decay=0.99, epochs=1))
    state = torch.load(states(run.path)[-1], weights_only=True)
    kept = load(run.model).state_dict()
    assert all(torch.equal(kept[name], value) for name, value in state["ema"].items())
    assert not torch.equal(kept["head.weight"], state["model"]["head.weight"])


def test_accumulated_batches_step_like_one_large_batch(tmp_path: Path) -> None:
    plain = {"augment": False, "drop_path": 0.0, "epochs": 1, "opt": "sgd", "lr": 0.1}
    # 7 steps of 128 and 14 batches of 64 show the same images in the same order, but for the last ones.
    large = load(train(recipe(tmp_path / "large", batch_size=128, **plain)).model).state_dict()
    small = load(train(recipe(tmp_path / "small", batch_size=64, accumulate=2, **plain)).model).state_dict()
    for name in large:
        assert torch.allclose(large[name], small[name], atol=1e-5), name


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_mixed_precision_and_checkpointing_train_to_finite_weights(tmp_path: Path, dtype: str) -> None:
    changes = {"last": 1, "num_experts": 3, "amp": True, "amp_dtype": dtype, "grad_checkpointing": True, "epochs": 1}
    run = train(recipe(tmp_path / "run", **changes))
    assert all(value.isfinite().all() for value in load(run.model).state_dict().values())
    assert run.read_rows()[0]["loss"] < 3
