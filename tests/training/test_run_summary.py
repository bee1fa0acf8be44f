from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from PIL import Image

from tests.data.image_files import write_folder
from tests.training.tiny import recipe
from vimoe.data.images import is_uneven
from vimoe.data.loaders import Batch, training_batches
from vimoe.training.fit import train
from vimoe.training.health import RoutingHealth
from vimoe.training.run_summary import data_words
from vimoe.training.source import open_recipe_data


def test_a_run_says_what_it_is_about_to_do_and_shows_its_first_images(tmp_path: Path) -> None:
    said: list[str] = []
    data = write_folder(tmp_path / "data", {"train": 6, "val": 2}, size=32)
    (data / "more").mkdir()
    settings = {"dataset": "folder", "data_dir": str(data), "batch_size": 4, "epochs": 1, "img_size": 16, "workers": 0}
    wanted = recipe(tmp_path / "run", last=1, num_experts=3, **settings)
    train(wanted, say=said.append)
    (summary,) = said
    lines = dict(line.split(maxsplit=1) for line in summary.splitlines())
    assert lines["data"] == "18 train, 6 val images of 3 classes, 6 of each class in training"
    assert lines["size"] == "16 x 16 pixels"
    assert "random weights" in lines["start"]
    assert "3 experts, image routing" in lines["model"]
    assert lines["training"].startswith("1 epochs of 4 steps, batches of 4, ")
    assert lines["output"] == str(tmp_path / "run")
    assert lines["note:"] == f"{data / 'more'} is not used"
    with Image.open(tmp_path / "run" / "first_batch.jpg") as sheet:
        assert sheet.width > 4 * 144
    assert not (tmp_path / "run" / "checkpoints").exists()


def test_uneven_classes_are_named(tmp_path: Path) -> None:
    data = write_folder(tmp_path / "data", {"train": 6, "val": 2})
    for i in range(1, 6):
        (data / "train" / "grass" / f"{i:03}.jpg").unlink()
    settings = {"dataset": "folder", "data_dir": str(data), "img_size": 16}
    words = data_words(open_recipe_data(recipe(tmp_path / "run", **settings)))
    assert words.endswith("1 (grass) to 6 (<script>) of a class in training: uneven, look at the mean of the classes")
    assert [is_uneven(torch.tensor(counts)) for counts in ([2, 5], [2, 6], [0, 3])] == [False, True, True]


def test_a_collapsed_router_is_named_once_and_in_the_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    settings = {"last": 2, "num_experts": 3, "epochs": 4}
    train(recipe(tmp_path / "even", **settings | {"epochs": 1}))
    assert "collapsed" not in capsys.readouterr().err
    monkeypatch.setattr(RoutingHealth, "metrics", lambda self: {"1": {"max_load": 0.5}, "2": {"max_load": 0.95}})
    train(recipe(tmp_path / "run", **settings))
    assert capsys.readouterr().err.count("by block the share of the epoch that one expert got: 2 95%; ") == 2


def test_the_routing_of_a_start_is_its_own(tmp_path: Path) -> None:
    start = train(recipe(tmp_path / "start", last=1, num_experts=3, routing="token", epochs=1))
    said: list[str] = []
    train(recipe(tmp_path / "run", initial_checkpoint=str(start.model), epochs=1), say=said.append)
    assert "3 experts, token routing" in said[0]


def test_the_first_images_are_those_that_a_sampler_draws(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[dict[str, object]] = []

    def noted(*arguments: object, **settings: object) -> Iterator[Batch]:
        asked.append(settings)
        return training_batches(*arguments, **settings)  # type: ignore[arg-type]

    monkeypatch.setattr("vimoe.training.run_summary.training_batches", noted)
    wanted = recipe(tmp_path / "run", balance_classes="sampler", aug_repeats=2, epochs=1)
    train(wanted, say=lambda _: None)
    assert asked[0]["repeats"] == 2
    assert isinstance(asked[0]["weights"], torch.Tensor)
