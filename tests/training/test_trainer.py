import hashlib
import math
import shutil
import signal
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from tests.training.tiny import recipe, stop_after
from vimoe.data.digits import digits
from vimoe.data.loaders import training_batches
from vimoe.data.splits import Images, Splits
from vimoe.errors import UserError
from vimoe.moe.losses import importance_loss, load_balance_loss, z_loss
from vimoe.training import fit, trainer
from vimoe.training.build import build_model
from vimoe.training.fit import train
from vimoe.training.interrupt import InterruptedRun, StopRequest
from vimoe.training.run_folder import RunFolder
from vimoe.training.trainer import Position, Trainer
from vimoe.vit.blocks import moe_layers
from vimoe.vit.checkpoint import load

EVERYTHING: dict[str, Any] = {
    "last": 1,
    "num_experts": 3,
    "router_noise": True,
    "router_start": "centroids",
    "router_lr": 0.1,
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


def test_routers_start_at_centroids_where_a_run_begins_and_not_where_it_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    started: list[int] = []
    monkeypatch.setattr(trainer, "start_routers_at_centroids", lambda model, *_: started.append(1))
    settings = recipe(tmp_path, **{**EVERYTHING, "epochs": 1})
    stop_after(monkeypatch, 3)
    with pytest.raises(InterruptedRun):
        train(settings)
    assert started == [1]
    train(settings)
    assert started == [1]


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
    assert f"{newest} is damaged; the state before it is tried" in capsys.readouterr().err
    whole = load(train(replace(settings, output=str(tmp_path / "whole"))).model).state_dict()
    assert all(torch.equal(whole[name], resumed[name]) for name in whole)


def test_the_average_of_the_weights_is_what_is_kept(tmp_path: Path) -> None:
    run = train(recipe(tmp_path / "run", model_ema=True, model_ema_decay=0.99, epochs=1, keep_states=True))
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


def begun(output: Path, splits: Splits | None = None, **changes: Any) -> Trainer:
    """The trainer of a run that has not done a step yet."""
    splits, settings = splits or digits(), recipe(output, **changes)
    task = fit.recipe_task(settings, splits)
    return Trainer(build_model(settings, splits), splits, task, settings, RunFolder(output))


class Untouched(Images):
    """Images that must not be looked at."""

    def __len__(self) -> int:
        raise AssertionError("the test split decides nothing")


def test_training_evaluates_on_the_validation_split_alone(tmp_path: Path) -> None:
    splits = digits()
    val = type(splits.val)(splits.val.images[:50], splits.val.targets[:50])  # type: ignore[attr-defined,call-arg]
    row = begun(tmp_path, replace(splits, val=val, test=Untouched()), epochs=1).finish_epoch(StopRequest())
    assert row["val_images"] == 50


def noted(trainer: Trainer, monkeypatch: pytest.MonkeyPatch) -> list[tuple[float, float]]:
    """Rate and norm of the gradient of every optimiser step that is to come."""
    steps = list[tuple[float, float]]()
    step = trainer.step.optimizer.step

    def note(*args: Any) -> Any:
        gradients = [p.grad for p in trainer.model.parameters() if p.grad is not None]
        steps.append((trainer.step.optimizer.param_groups[0]["lr"], torch.nn.utils.get_total_norm(gradients).item()))
        return step(*args)

    monkeypatch.setattr(trainer.step.optimizer, "step", note)
    return steps


def test_every_step_has_the_rate_of_its_own_number(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    trainer = begun(tmp_path, epochs=3, warmup_epochs=1.0, lr=0.1, min_lr=0.01, accumulate=2, batch_size=64)
    steps = noted(trainer, monkeypatch)
    for _ in range(3):
        trainer.finish_epoch(StopRequest())
    epoch = len(digits().train) // 64 // 2
    warm = [0.1 * step / epoch for step in range(epoch)]
    cosine = [0.01 + 0.09 * (1 + math.cos(math.pi * step / (2 * epoch))) / 2 for step in range(2 * epoch)]
    assert [rate for rate, _ in steps] == pytest.approx([*warm, *cosine])


def test_the_gradient_of_a_step_is_no_longer_than_clip_grad(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for clip, lowest, highest in ((0.05, 0.0499, 0.0501), (0.0, 0.06, math.inf)):
        trainer = begun(tmp_path, epochs=1, clip_grad=clip)
        steps = noted(trainer, monkeypatch)
        trainer.finish_epoch(StopRequest())
        assert len(steps) == trainer.steps
        assert all(lowest <= norm <= highest for _, norm in steps), steps


def test_augmentation_is_drawn_anew_in_every_batch_of_every_epoch(tmp_path: Path) -> None:
    drawn = list[float]()

    def augment(images: Tensor, generator: torch.Generator) -> Tensor:
        drawn.append(torch.rand((), generator=generator).item())
        return images

    for _ in range(2):
        trainer = begun(tmp_path, replace(digits(), augment=augment), epochs=2)
        trainer.finish_epoch(StopRequest())
        trainer.finish_epoch(StopRequest())
    once = drawn[: len(drawn) // 2]
    assert len(set(once)) == len(once)
    assert drawn[len(once) :] == once


def test_what_is_no_weight_is_resumed_too(tmp_path: Path) -> None:
    settings: dict[str, Any] = {"amp": True, "amp_dtype": "float16", "last": 1, "num_experts": 3}
    trainer = begun(tmp_path, **settings)
    trainer.step.scaler.load_state_dict({**trainer.step.scaler.state_dict(), "scale": 4.0, "_growth_tracker": 7})
    trainer.broken.restore({"train": ["a.jpg is no image", "b.jpg cannot be read"], "val": ["c.jpg is no image"]})
    trainer.rows = [{"epoch": 1, "loss": 0.5}]
    trainer.position = Position(epoch=1, batch=3, loss=2.5, seconds=9.0)
    trainer.write_state()
    resumed = begun(tmp_path, **settings)
    resumed.resume()
    assert resumed.step.scaler.state_dict()["scale"] == 4.0
    assert resumed.step.scaler.state_dict()["_growth_tracker"] == 7
    assert resumed.broken.gathered() == trainer.broken.gathered()
    assert resumed.broken.gathered()["val"] == ["c.jpg is no image"]
    assert resumed.rows == trainer.rows
    assert resumed.position == trainer.position


@pytest.fixture(scope="module")
def stopped(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run with a state after each of its two epochs."""
    run = tmp_path_factory.mktemp("stopped") / "run"
    trainer = begun(run, **EVERYTHING)
    for _ in range(2):
        trainer.finish_epoch(StopRequest())
        trainer.write_state()
    return run


WRONG: dict[str, Callable[[dict[str, Any]], object]] = {
    "no model": lambda state: state.pop("model"),
    "a weight less": lambda state: state["model"].popitem(),
    "a weight of another shape": lambda state: state["model"].update({"norm.weight": torch.ones(3)}),
    "no weight": lambda state: state["model"].update({"norm.weight": "text"}),
    "no optimiser": lambda state: state.update(optimizer={}),
    "another optimiser": lambda state: state["optimizer"]["param_groups"].pop(),
    "no average": lambda state: state.update(ema={}),
    "an epoch too many": lambda state: state["position"].update(epoch=3),
    "a batch too many": lambda state: state["position"].update(batch=1000),
    "a batch below 0": lambda state: state["position"].update(batch=-1),
    "a position in words": lambda state: state.update(position={"epoch": "one"}),
    "half an epoch": lambda state: state["position"].update(epoch=1.5),
    "a loss that is none": lambda state: state["position"].update(loss=float("nan")),
    "no rows": lambda state: state.update(rows=[]),
    "rows that are none": lambda state: state.update(rows=[1, 2]),
    "no scaler": lambda state: state.pop("scaler"),
    "other experts": lambda state: state.update(health={2: torch.ones(3)}),
    "experts elsewhere": lambda state: state.update(health={7: torch.ones(8)}),
    "a number for a list": lambda state: state["broken"].update(train=3),
    "a list": lambda state: state.clear(),
}


@pytest.mark.parametrize("change", WRONG.values(), ids=WRONG.keys())
def test_a_state_of_wrong_content_gives_way_to_the_one_before_it(
    tmp_path: Path, stopped: Path, capsys: pytest.CaptureFixture[str], change: Callable[[dict[str, Any]], object]
) -> None:
    shutil.copytree(stopped, tmp_path / "run")
    newest = states(tmp_path / "run")[-1]
    state = torch.load(newest, weights_only=True)
    change(state)
    torch.save(state, newest)
    sum_of = hashlib.sha256(newest.read_bytes()).hexdigest()
    newest = newest.rename(newest.with_name(newest.name[: -len(f"{sum_of}.pt")] + f"{sum_of}.pt"))
    resumed = begun(tmp_path / "run", **EVERYTHING)
    resumed.resume()
    assert resumed.position.epoch == len(resumed.rows) == 1
    assert f"vimoe: {newest} does not fit this version (" in capsys.readouterr().err
    resumed.finish_epoch(StopRequest())


def test_a_state_of_other_training_images_is_refused(stopped: Path) -> None:
    splits = digits()
    fewer = replace(splits, train=type(splits.train)(splits.train.images[:-1], splits.train.targets[:-1]))  # type: ignore
    line = "the run began with 1077 training images of 10 classes, there are 1076 of 10: choose another --output"
    with pytest.raises(UserError, match=line):
        begun(stopped, fewer, **EVERYTHING).resume()


def poisoned(monkeypatch: pytest.MonkeyPatch, batch: int, what: str) -> None:
    """Make the loss, or a weight after the step, of the batch of this number (from 1) not a number."""
    train_batch, seen = Trainer.train_batch, 0

    def poison(self: Trainer, *args: Tensor) -> Tensor:
        nonlocal seen
        seen += 1
        loss = train_batch(self, *args)
        if seen == batch and what == "weight":
            next(self.model.parameters()).data.view(-1)[0] = math.nan
        return loss * math.nan if seen == batch and what == "loss" else loss

    monkeypatch.setattr(Trainer, "train_batch", poison)


@pytest.mark.parametrize(
    ("what", "batch", "line"),
    [
        # The eighth batch of the second epoch: losses are looked at later, and before a state is written.
        ("loss", 16, r"the loss is nan at step 15 \(epoch 2\): try a lower lr than 0.002"),
        ("weight", 16, r"the norm of the weights is nan at step 15 \(epoch 2\): try a lower lr than 0.002"),
    ],
)
def test_a_state_that_is_not_finite_never_takes_the_place_of_a_good_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, what: str, batch: int, line: str
) -> None:
    monkeypatch.setattr(trainer, "SYNC_SECONDS", 1e9)
    poisoned(monkeypatch, batch, what)
    with pytest.raises(UserError, match=line):
        fit.train(recipe(tmp_path / "run", epochs=2))
    assert [path.name[:19] for path in states(tmp_path / "run")] == ["state-00001-0000000"]


def test_mixup_with_an_odd_batch_is_refused_before_anything_is_written(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="mixup and cutmix mix pairs of images: 7 in a batch of each process is odd"):
        fit.train(recipe(tmp_path / "run", mixup=0.2, batch_size=7))
    assert not (tmp_path / "run").exists()


def test_the_losses_of_the_routers_are_learned_by_their_weights_and_shown_apart_from_the_tasks(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shown, learned, expected = list[Tensor](), list[Tensor](), Tensor()
    for balance, importance, z in ((0.0, 0.0, 0.0), (0.5, 0.25, 0.125)):
        settings = {"balance_weight": balance, "importance_weight": importance, "z_weight": z}
        trainer = begun(tmp_path, last=2, num_experts=3, augment=False, **settings)
        images = next(training_batches(trainer.splits.train, 128, 0, 0))
        monkeypatch.setattr(trainer.step.scaler, "scale", lambda loss: learned.append(loss) or loss)
        shown.append(trainer.train_batch(*images))
        selections = [layer.last_selection for layer in moe_layers(trainer.model).values()]
        expected = sum(
            balance * load_balance_loss(one.probs, one.expert_ids)
            + importance * importance_loss(one.probs)
            + z * z_loss(one.logits)
            for one in selections
            if one is not None
        )
    assert shown[0] == shown[1] == learned[0]
    assert (learned[1] - learned[0]).item() == pytest.approx(expected.item(), rel=1e-4)
    assert expected.item() > 1


def test_mixed_labels_are_smoothed_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    trainer, seen = begun(tmp_path, mixup=0.2, smoothing=0.1), list[Tensor]()
    loss = trainer.task.loss
    monkeypatch.setattr(trainer.task, "loss", lambda outputs, targets: seen.append(targets) or loss(outputs, targets))
    images, labels = next(training_batches(trainer.splits.train, 128, 0, 0))
    trainer.train_batch(images, torch.zeros_like(labels))
    torch.testing.assert_close(seen[0], torch.eye(10)[:1].expand(128, 10))  # the loss smooths them
