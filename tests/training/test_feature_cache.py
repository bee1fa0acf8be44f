"""A run on cached features is the run on images, and a cache is never wrong in silence."""

from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from tests.data.image_files import write_folder
from tests.training.tiny import ARGS, recipe
from vimoe.errors import UserError
from vimoe.tasks.model import load_model
from vimoe.training import feature_cache
from vimoe.training.fit import train
from vimoe.training.recipe import Recipe
from vimoe.training.run_folder import RunFolder
from vimoe.training.trainer import Trainer


@pytest.fixture
def images(tmp_path: Path) -> Path:
    return write_folder(tmp_path / "images", {"train": 8, "val": 4})


@pytest.fixture(autouse=True)
def _nothing_held() -> Iterator[None]:
    feature_cache._held.clear()
    yield
    feature_cache._held.clear()


def frozen(output: Path, images: Path, **changes: Any) -> Recipe:
    settings = {"dataset": "folder", "data_dir": str(images), "img_size": 16, "batch_size": 8, "epochs": 2}
    settings |= {"augment": False, "workers": 0, "last": 1, "num_experts": 3, "freeze": "trunk", "model_args": ARGS}
    return recipe(output, **settings | changes)


def losses(run: RunFolder) -> list[float]:
    return [row["loss"] for row in run.read_rows()]


def weights(run: RunFolder) -> dict[str, torch.Tensor]:
    return load_model(run.model).state_dict()


def same(one: RunFolder, other: RunFolder) -> bool:
    mine, theirs = weights(one), weights(other)
    return mine.keys() == theirs.keys() and all(torch.equal(mine[name], theirs[name]) for name in mine)


def no_computing(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: Any) -> Iterator[Any]:
        raise AssertionError("computed again")
        yield

    monkeypatch.setattr(feature_cache._Trunk, "_batches", fail)


def test_a_run_on_features_learns_what_the_run_on_images_learns(tmp_path: Path, images: Path) -> None:
    plain = train(frozen(tmp_path / "plain", images))
    cached = train(frozen(tmp_path / "cached", images, cache_features="memory"))
    assert losses(cached) == pytest.approx(losses(plain), rel=1e-3)  # tokens are kept in fp16
    expected = weights(plain)
    for name, value in weights(cached).items():
        torch.testing.assert_close(value, expected[name], rtol=0, atol=5e-3)
    moved = {name for name in expected if not torch.equal(expected[name], weights(cached)[name])}
    assert moved
    assert all(name.startswith(("blocks.2.", "norm.", "head.")) for name in moved)


def test_memory_and_disk_and_a_later_run_end_in_the_same_bits(
    tmp_path: Path, images: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    memory = train(frozen(tmp_path / "memory", images, cache_features="memory"))
    store = str(tmp_path / "features")
    disk = train(frozen(tmp_path / "disk", images, cache_features=store))
    no_computing(monkeypatch)
    again = train(frozen(tmp_path / "again", images, cache_features=store))
    assert same(memory, disk)
    assert same(disk, again)


def test_runs_that_differ_behind_the_cut_alone_share_the_features(
    tmp_path: Path, images: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = tmp_path / "features"
    train(frozen(tmp_path / "moe", images, cache_features=str(store)))
    assert len(list(store.glob("*.npy"))) == 2
    start = {"cache_features": str(store), "lr": 1e-3, "epochs": 1, "initial_checkpoint": None}
    no_computing(monkeypatch)
    for name, changes in {"dense": {"baseline": "dense"}, "experts": {"num_experts": 5}}.items():
        train(frozen(tmp_path / name, images, **start, **changes))
    monkeypatch.undo()
    train(frozen(tmp_path / "two", images, **start | {"last": 2}))
    assert len(list(store.glob("*.npy"))) == 4  # another cut


def test_each_epoch_takes_the_next_view(tmp_path: Path, images: Path) -> None:
    store = tmp_path / "features"
    train(frozen(tmp_path / "run", images, cache_features=str(store), feature_views=2, augment=True))
    (tokens,) = [t for t in map(np.load, store.glob("*.npy")) if t.shape[0] == 2]
    assert tokens.shape[1] == 24
    assert not np.array_equal(tokens[0], tokens[1])
    labels = [[0, 1], [0, 1]]
    views = feature_cache.FeatureViews(feature_cache.Features(tokens[:, :2], labels, {}), {})
    for epoch in range(4):
        assert torch.equal(views.at_epoch(epoch)[1][0], torch.from_numpy(tokens[epoch % 2, 1]))


@pytest.mark.parametrize("damage", ["cut short", "changed", "no facts", "nonsense"])
def test_a_damaged_cache_is_computed_again_and_said(
    tmp_path: Path, images: Path, damage: str, capsys: pytest.CaptureFixture[str]
) -> None:
    store = tmp_path / "features"
    whole = train(frozen(tmp_path / "a", images, cache_features=str(store)))
    for path in store.glob("*.npy"):
        data = bytearray(path.read_bytes())
        data[-1] ^= 1
        path.write_bytes(data[:-7] if damage == "cut short" else data if damage == "changed" else path.read_bytes())
    for path in store.glob("*.json"):
        if damage in ("no facts", "nonsense"):
            path.write_text("{}" if damage == "no facts" else "\0")
    capsys.readouterr()
    again = train(frozen(tmp_path / "b", images, cache_features=str(store)))
    assert "damaged" in capsys.readouterr().err
    assert same(whole, again)


def test_a_changed_image_makes_other_features(tmp_path: Path, images: Path) -> None:
    store = tmp_path / "features"
    train(frozen(tmp_path / "a", images, cache_features=str(store)))
    Image.new("RGB", (30, 30), (1, 2, 3)).save(next(images.glob("train/*/*.jpg")))
    train(frozen(tmp_path / "b", images, cache_features=str(store)))
    assert len(list(store.glob("*.npy"))) == 3


def test_broken_images_are_replaced_in_training_and_left_out_of_evaluation(tmp_path: Path, images: Path) -> None:
    for split in ("train", "val"):
        next((images / split).glob("*/*.jpg")).write_bytes(b"no image")
    settings = {"max_broken": 0.5, "epochs": 1}
    plain = train(frozen(tmp_path / "plain", images, **settings))
    for name in ("made", "found"):
        cached = train(frozen(tmp_path / name, images, cache_features=str(tmp_path / "features"), **settings))
        assert cached.read_rows()[0]["val_images"] == plain.read_rows()[0]["val_images"] == 11
        assert (cached.path / "skipped.csv").read_text() == (plain.path / "skipped.csv").read_text()
        assert losses(cached) == pytest.approx(losses(plain), rel=1e-3)


def test_an_interrupted_run_goes_on_to_the_same_bits(
    tmp_path: Path, images: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = {"cache_features": str(tmp_path / "features"), "feature_views": 2, "augment": True, "epochs": 3}
    settings |= {"checkpoint_minutes": 0.0}
    whole = train(frozen(tmp_path / "whole", images, **settings))
    step, calls = Trainer.train_batch, []

    def dies(self: Any, *batch: Any) -> torch.Tensor:
        calls.append(batch)
        if len(calls) == 6:
            raise KeyboardInterrupt
        return step(self, *batch)

    monkeypatch.setattr(Trainer, "train_batch", dies)
    with pytest.raises(KeyboardInterrupt):
        train(frozen(tmp_path / "killed", images, **settings))
    monkeypatch.undo()
    assert same(whole, train(frozen(tmp_path / "killed", images, **settings)))


def test_what_is_killed_while_writing_leaves_nothing_that_counts(
    tmp_path: Path, images: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = tmp_path / "features"
    compute, calls = feature_cache._Trunk._compute, []

    def dies(self: Any, pixels: torch.Tensor) -> Any:
        calls.append(len(pixels))
        if len(calls) == 3:
            raise KeyboardInterrupt
        return compute(self, pixels)

    monkeypatch.setattr(feature_cache._Trunk, "_compute", dies)
    with pytest.raises(KeyboardInterrupt):
        train(frozen(tmp_path / "a", images, cache_features=str(store), feature_views=4))
    assert not [path for path in store.iterdir() if path.suffix in (".npy", ".json", ".writing")]


def test_a_cache_that_does_not_fit_is_refused_before_it_is_begun(
    tmp_path: Path, images: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(feature_cache.shutil, "disk_usage", lambda _: SimpleNamespace(free=10))
    with pytest.raises(UserError, match=r"GB do not fit into .* are free"):
        train(frozen(tmp_path / "a", images, cache_features=str(tmp_path / "features")))
    assert not list((tmp_path / "features").glob("*.npy"))


@pytest.mark.parametrize(
    "changes", [{"freeze": ""}, {"drop_path": 0.1}, {"mixup": 0.2}, {"cutmix": 1.0}, {"fsdp": True}]
)
def test_what_would_reach_into_the_trunk_is_refused(tmp_path: Path, images: Path, changes: dict[str, Any]) -> None:
    with pytest.raises(UserError, match="cache_features"):
        frozen(tmp_path, images, cache_features="memory", **changes)


def test_tokens_of_another_precision_are_other_tokens_in_evaluation_too(tmp_path: Path, images: Path) -> None:
    cache = str(tmp_path / "cache")
    for amp in (True, False):
        train(frozen(tmp_path / f"amp-{amp}", images, cache_features=cache, amp=amp))
    assert len(list((tmp_path / "cache").glob("*.npy"))) == 4
