import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.training.tiny import ARGS, recipe, train_killed
from vimoe.data.digits import digits
from vimoe.errors import UserError
from vimoe.moe.layer import MoELayer
from vimoe.tasks.segmenter_folder import load_segmenter
from vimoe.training.build import build_model
from vimoe.training.fit import train
from vimoe.training.recipe import Recipe, load_recipe
from vimoe.training.run_folder import RunFolder
from vimoe.training.trainer import Trainer
from vimoe.vit.checkpoint import load
from vimoe.vit.cost import cost
from vimoe.vit.upcycle import get_config


def weights(run: RunFolder) -> dict[str, torch.Tensor]:
    return load(run.model).state_dict()


def same(first: RunFolder, second: RunFolder) -> bool:
    a, b = weights(first), weights(second)
    return a.keys() == b.keys() and all(torch.equal(a[key], b[key]) for key in a)


def test_a_tiny_vit_learns_and_leaves_what_a_run_must_leave(tmp_path: Path) -> None:
    run = train(recipe(tmp_path / "run", epochs=6, lr=5e-3, augment=False))
    rows = run.read_rows()
    assert [row["epoch"] for row in rows] == [1, 2, 3, 4, 5, 6]
    assert rows[-1]["loss"] < rows[0]["loss"]
    assert rows[-1]["val_top1"] > 40  # chance is 10
    assert {p.name for p in run.path.iterdir()} == {
        ".lock",
        "recipe.yaml",
        "metrics.jsonl",
        "summary.csv",
        "model",
    }
    assert json.loads((run.model / "config.json").read_text())["label_names"][3] == "3"


def test_a_run_keeps_its_routers_as_they_were_before_the_first_step(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = {"last": 2, "num_experts": 3, "epochs": 2, "router_start": "centroids"}
    whole = train(recipe(tmp_path / "whole", **settings))
    still = train(recipe(tmp_path / "still", **settings, router_lr=0.0, balance_weight=0.0, weight_decay=0.0))
    train_killed(recipe(tmp_path / "killed", **settings), 1, monkeypatch)
    again = train(recipe(tmp_path / "killed", **settings))
    for number in (1, 2):
        first = torch.from_numpy(whole.read_initial_routers()[number])
        assert not torch.equal(weights(whole)[f"blocks.{number}.mlp.router.weight"], first)
        assert torch.equal(weights(still)[f"blocks.{number}.mlp.router.weight"], first)
        assert torch.equal(torch.from_numpy(again.read_initial_routers()[number]), first)
    assert not (train(recipe(tmp_path / "dense", epochs=1)).path / "initial_routers.npz").exists()


def test_the_same_seed_gives_the_same_bits_and_another_seed_does_not(tmp_path: Path) -> None:
    moe = {"last": 2, "num_experts": 3, "router_noise": True, "drop_path": 0.1, "epochs": 2}
    first, second = train(recipe(tmp_path / "a", **moe)), train(recipe(tmp_path / "b", **moe))
    assert same(first, second)
    assert not same(first, train(recipe(tmp_path / "c", seed=1, **moe)))


def test_an_interrupted_run_gives_the_bits_of_an_uninterrupted_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = {"last": 1, "num_experts": 3, "router_noise": True, "epochs": 3}
    whole = train(recipe(tmp_path / "whole", **settings))
    broken = recipe(tmp_path / "broken", **settings)
    train_killed(broken, 2, monkeypatch)
    assert not RunFolder(Path(broken.output)).finished
    resumed = train(broken)
    assert same(whole, resumed)
    assert [row["loss"] for row in resumed.read_rows()] == [row["loss"] for row in whole.read_rows()]


def test_a_finished_run_is_not_repeated(tmp_path: Path) -> None:
    settings = recipe(tmp_path / "run", epochs=1)
    before = (train(settings).model / "model.safetensors").stat().st_mtime_ns
    assert (train(settings).model / "model.safetensors").stat().st_mtime_ns == before


def test_an_upcycled_run_starts_from_a_dense_one_and_logs_its_routers(tmp_path: Path) -> None:
    dense = train(recipe(tmp_path / "dense", epochs=2))
    start = recipe(tmp_path / "moe", initial_checkpoint=str(dense.model), last=2, num_experts=3, epochs=1)
    model = build_model(start, digits())
    assert isinstance(model.get_submodule("blocks.2.mlp"), MoELayer)
    images = digits().test.images  # type: ignore[attr-defined]
    with torch.no_grad():
        expected = load(dense.model)(images)
        assert torch.allclose(model.eval()(images), expected, atol=1e-5)
    run = train(start)
    config = get_config(load(run.model))
    assert config is not None
    assert config.layers == (1, 2)
    health = run.read_rows()[-1]["routing"]
    assert set(health) == {"1", "2"}
    assert {"load", "max_load", "effective_experts", "balance_loss", "entropy", "top_gate"} == set(health["1"])


def test_the_balance_loss_reaches_the_routers(tmp_path: Path) -> None:
    base = recipe(tmp_path / "free", last=1, num_experts=4, epochs=1, balance_weight=0.0)
    free, balanced = train(base), train(replace(base, output=str(tmp_path / "balanced"), balance_weight=1.0))
    router = "blocks.2.mlp.router.weight"
    assert not torch.equal(weights(free)[router], weights(balanced)[router])


def test_a_checkpoint_of_other_classes_gets_a_new_head(tmp_path: Path) -> None:
    import timm

    from vimoe.vit.checkpoint import save

    save(timm.create_model("vit_tiny_patch16_224", img_size=8, in_chans=1, num_classes=7, **ARGS), tmp_path / "model")
    model = build_model(recipe(tmp_path / "run", initial_checkpoint=str(tmp_path / "model")), digits())
    assert model.get_submodule("head").out_features == 10


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model": "vit_nonsense"}, "timm has no model 'vit_nonsense'"),
        ({"model_args": {"patch_size": 4, "nonsense": 1}}, "timm cannot make the model"),
        ({"dataset": "nonsense"}, "unknown dataset 'nonsense'"),
        ({"opt": "nonsense"}, "timm cannot make opt 'nonsense' with sched 'cosine'"),
        ({"sched": "nonsense"}, "nonsense"),
        ({"device": "nonsense"}, "device 'nonsense' cannot be used here"),
        ({"device": "meta"}, "device 'meta' cannot be used here: it holds no values"),
        ({"model_args": {"patch_size": 16}}, "images of 8 pixels are smaller than a patch of this model, 16 pixels"),
        ({"batch_size": 5000}, r"batch_size 5000 \(accumulate 1\) is larger than the training data"),
        ({"last": 9}, "last must be 1 to 3"),
        ({"last": 1, "top_k": 9}, "top_k must be between 1 and the 8 experts"),
        ({"initial_checkpoint": "/does/not/exist"}, "is not a model folder"),
    ],
)
def test_what_cannot_be_trained_gets_one_line_and_leaves_no_folder(
    tmp_path: Path, changes: dict[str, object], message: str
) -> None:
    with pytest.raises(UserError, match=message) as caught:
        train(recipe(tmp_path / "run", **changes))
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "run").exists()


def test_a_loss_that_is_not_finite_stops_the_run_before_it_is_saved(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from vimoe.tasks.classification import Classification

    monkeypatch.setattr(Classification, "loss", lambda _self, outputs, _targets: outputs.sum() * float("nan"))
    with pytest.raises(UserError, match=r"the loss is nan at step 0 \(epoch 1\): try a lower lr than 0.002"):
        train(recipe(tmp_path / "run"))
    assert not (tmp_path / "run" / "checkpoints").exists()


def test_a_loss_of_the_routing_that_is_not_finite_stops_the_run_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("vimoe.training.step.routing_loss", lambda *_, **__: torch.tensor(float("inf")))
    with pytest.raises(UserError, match=r"the loss is inf at step 0 \(epoch 1\)"):
        train(recipe(tmp_path / "run", last=2, num_experts=3))


def test_the_dense_control_is_the_same_run_without_experts(tmp_path: Path) -> None:
    control = train(recipe(tmp_path / "control", last=2, num_experts=3, baseline="dense", epochs=1))
    dense = train(recipe(tmp_path / "dense", epochs=1))
    assert same(control, dense)


def test_the_wide_control_activates_what_the_moe_model_does_but_for_routers(tmp_path: Path) -> None:
    settings = recipe(tmp_path / "wide", last=2, num_experts=3, epochs=1)
    wide = load(train(replace(settings, baseline="wide")).model)
    moe = build_model(settings, digits())
    assert get_config(wide) is None
    assert cost(moe).activated_params > cost(wide).activated_params > 0.97 * cost(moe).activated_params


def test_a_segmentation_run_is_trained_and_read_back_from_its_folder(tmp_path: Path) -> None:
    args = {"patch_size": 8, "embed_dim": 16, "depth": 2, "num_heads": 2, "weight_init": "jax"}
    settings = recipe(
        tmp_path / "run",
        task="segmentation",
        dataset="digit_scenes",
        model_args=args,
        last=1,
        num_experts=3,
        routing="token",
        epochs=1,
    )
    run = train(settings)
    row = run.read_rows()[-1]
    assert {"val_miou", "val_aacc", "val_macc", "val_images"} <= set(row)
    assert row["val_aacc"] > 30
    model = load_segmenter(run.model)
    assert model(torch.randn(1, 3, 32, 40)).shape == (1, 11, 32, 40)
    again = train(replace(settings, output=str(tmp_path / "more"), initial_checkpoint=str(run.model), last=0))
    assert set(load_segmenter(again.model).state_dict()) == set(model.state_dict())


@pytest.mark.parametrize(
    ("changes", "line"),
    [
        ({"routing": "image"}, "use routing 'token' for segmentation"),
        ({"routing": "token", "mixup": 0.2}, "mixup and cutmix mix images of one label each"),
        ({"routing": "token", "in_memory": True}, "dataset 'digit_scenes' does not use in_memory"),
        ({"dataset_args": {"classes": 5}}, "dataset 'digit_scenes' does not use dataset_args"),
        ({"routing": "token", "dataset": "digits"}, "dataset 'digits' has no masks"),
        ({"routing": "token", "last": 9}, "last must be 1 to 3"),
        ({"routing": "token", "last": 9, "baseline": "wide"}, "last must be 1 to 3"),
    ],
)
def test_what_makes_no_sense_in_a_segmentation_recipe_is_told(
    tmp_path: Path, changes: dict[str, Any], line: str
) -> None:
    base: dict[str, Any] = {"task": "segmentation", "dataset": "digit_scenes", "last": 1, "num_experts": 3}
    settings = recipe(tmp_path / "run", **{**base, **changes})
    with pytest.raises(UserError, match=line):
        train(settings)
    assert not (tmp_path / "run").exists()


def failing(monkeypatch: pytest.MonkeyPatch, batch: int, error: Exception) -> None:
    """Raise `error` in the batch of this number, from 1."""
    train_batch, seen = Trainer.train_batch, 0

    def fails(self: Trainer, *args: torch.Tensor) -> torch.Tensor:
        nonlocal seen
        seen += 1
        if seen == batch:
            raise error
        return train_batch(self, *args)

    monkeypatch.setattr(Trainer, "train_batch", fails)


@pytest.mark.parametrize(
    ("batch", "go_on"), [(3, "starts again"), (11, "goes on from epoch 2, batch 0")], ids=["no state yet", "a state"]
)
def test_a_step_that_fails_is_one_line_and_costs_no_more_than_the_last_state(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, batch: int, go_on: str
) -> None:
    settings = recipe(tmp_path / "run", epochs=2, last=1, num_experts=3)
    error = ValueError("bits must be between or equal to 1 and 8\nmore")
    with monkeypatch.context() as patch:
        failing(patch, batch, error)
        with pytest.raises(UserError) as caught:
            train(settings)
    run = RunFolder(tmp_path / "run")
    assert str(caught.value) == (
        f"training failed in epoch {1 + batch // 9}, batch {batch % 8} (ValueError: bits must be between or equal to "
        f"1 and 8; see {run.path / 'error.txt'}): the same command {go_on}; "
        "--resume-changed allows another augmentation"
    )
    assert "Traceback" in (run.path / "error.txt").read_text()
    whole = train(replace(settings, output=str(tmp_path / "whole")))
    assert same(train(settings), whole)


def test_a_decoding_process_that_is_killed_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from vimoe.tasks.classification import Classification

    def killed(*_: object) -> None:
        raise RuntimeError("DataLoader worker (pid(s) 17) exited unexpectedly") from OSError("many lines")

    monkeypatch.setattr(Classification, "evaluate", killed)
    with pytest.raises(
        UserError, match=r"\(RuntimeError: DataLoader worker \(pid\(s\) 17\) exited unexpectedly; see "
    ) as e:
        train(recipe(tmp_path / "run", epochs=1))
    assert "\n" not in str(e.value)


def stopped(monkeypatch: pytest.MonkeyPatch, settings: Recipe, batch: int = 11) -> RunFolder:
    """A run that failed in its second epoch."""
    with monkeypatch.context() as patch:
        failing(patch, batch, ValueError("no"))
        with pytest.raises(UserError, match="training failed"):
            train(settings)
    return RunFolder(Path(settings.output))


def test_a_run_goes_on_with_another_augmentation_when_the_user_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = recipe(tmp_path / "run", epochs=2, mixup=0.2)
    run, changed = stopped(monkeypatch, settings), replace(settings, mixup=0.0)
    with pytest.raises(UserError, match=r"mixup was 0.2, is 0.0\): .* with --resume-changed"):
        train(changed)
    train(changed, resume_changed=True)
    note = {"epoch": 2, "batch": 0, "changed": {"mixup": [0.2, 0.0]}}
    assert json.loads((run.path / "changes.jsonl").read_text()) == note
    assert load_recipe(run.path / "recipe.yaml").mixup == 0.0
    assert not same(run, train(replace(settings, output=str(tmp_path / "whole"))))


@pytest.mark.parametrize("damage", ["", '{"epo', "\x00"])
def test_damaged_rows_beside_a_whole_state_cost_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, damage: str
) -> None:
    settings = recipe(tmp_path / "run", epochs=2)
    run = stopped(monkeypatch, settings)
    before = run.read_rows()
    (run.path / "metrics.jsonl").write_text(damage)
    train(settings)
    assert [row["epoch"] for row in run.read_rows()] == [1, 2]
    assert run.read_rows()[:1] == before
