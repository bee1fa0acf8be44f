"""Uneven classes: weights, the balanced sampler, and the epoch that is kept."""

from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch.nn import functional as F

from tests.data.image_files import write_folder
from tests.training.tiny import recipe, train_killed
from vimoe.data.digits import digits
from vimoe.data.epoch_order import epoch_order
from vimoe.data.images import class_weights
from vimoe.data.splits import Splits
from vimoe.errors import UserError
from vimoe.report.model_card import make_card
from vimoe.tasks.classification import Classification
from vimoe.tasks.segmentation import Segmentation
from vimoe.training.fit import best_key, recipe_task, train
from vimoe.training.recipe import Recipe
from vimoe.training.run_folder import kept_row
from vimoe.training.source import open_recipe_data
from vimoe.vit.checkpoint import load


def test_class_weights_make_classes_equal_and_images_1_on_average() -> None:
    counts = torch.tensor([10, 30, 0, 60])
    weights = class_weights(counts)
    assert torch.allclose(weights * counts, torch.tensor([100 / 3, 100 / 3, 0, 100 / 3]))
    assert (weights * counts).sum() == pytest.approx(100)


def test_the_weighted_loss_is_the_weighted_mean_of_the_images_losses() -> None:
    logits, labels, weights = torch.randn(6, 3), torch.tensor([0, 0, 0, 1, 1, 2]), torch.tensor([0.5, 1.0, 2.0])
    each = F.cross_entropy(logits, labels, reduction="none")
    expected = (weights[labels] * each).sum() / weights[labels].sum()
    assert torch.allclose(Classification(3, class_weights=weights).loss(logits, labels), expected)


def test_a_balanced_epoch_shows_classes_equally_often_and_depends_on_seed_and_epoch_alone() -> None:
    labels = torch.tensor([0] * 900 + [1] * 90 + [2] * 10)
    weights = class_weights(torch.bincount(labels))[labels]
    shown = epoch_order(1000, 50, 0, 0, weights=weights)
    assert shown == epoch_order(1000, 50, 0, 0, weights=weights) != epoch_order(1000, 50, 0, 1, weights=weights)
    counts = Counter(labels[torch.tensor(shown).flatten() % 1000].tolist())
    assert all(280 < counts[label] < 390 for label in range(3))


@pytest.mark.parametrize("way", ["loss", "sampler"])
def test_a_run_with_balanced_classes_trains_and_resumes_in_the_same_bits(
    way: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = {"balance_classes": way, "epochs": 2}
    whole = load(train(recipe(tmp_path / "whole", **settings)).model).state_dict()
    plain = load(train(recipe(tmp_path / "plain", epochs=2)).model).state_dict()
    train_killed(recipe(tmp_path / "broken", **settings), 2, monkeypatch)
    again = load(train(recipe(tmp_path / "broken", **settings)).model).state_dict()
    assert all(torch.equal(whole[name], again[name]) for name in whole)
    assert not torch.equal(whole["head.weight"], plain["head.weight"])


def test_masks_have_no_classes_to_balance(tmp_path: Path) -> None:
    wanted = Recipe(task="segmentation", balance_classes="loss", output=str(tmp_path))
    with pytest.raises(UserError, match="leave it out for segmentation"):
        recipe_task(wanted, open_recipe_data(replace(wanted, balance_classes="")))


def test_the_best_epoch_is_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    evaluate, scores, models = Classification.evaluate, iter([50.0, 70.0, 60.0]), []

    def judged(self: Classification, model: torch.nn.Module, *rest: object) -> dict[str, float]:
        models.append({name: value.clone() for name, value in model.state_dict().items()})
        return {**evaluate(self, model, *rest), "top1": next(scores)}  # type: ignore[arg-type]

    monkeypatch.setattr(Classification, "evaluate", judged)
    run = train(recipe(tmp_path / "run", keep="best", epochs=3))
    kept = load(run.model).state_dict()
    assert all(torch.equal(kept[name], models[1][name]) for name in kept)
    assert not torch.equal(kept["head.weight"], models[2]["head.weight"])
    assert not run.checkpoints.exists()
    assert kept_row(run.read_rows())["epoch"] == 2
    assert "## Metrics of epoch 2" in make_card(run.path)[0]


def test_uneven_classes_are_judged_by_their_mean(tmp_path: Path) -> None:
    data = write_folder(tmp_path / "data", {"train": 6, "val": 1})
    settings = {"dataset": "folder", "data_dir": str(data), "img_size": 16}
    wanted = recipe(tmp_path / "run", **settings)
    even: Splits = digits()
    assert best_key(wanted, even, Classification.metric) == "val_top1"
    for i in range(2, 6):
        (data / "train" / "grass" / f"{i:03}.jpg").unlink()
    assert best_key(wanted, open_recipe_data(wanted), Classification.metric) == "val_mean_class"
    assert best_key(replace(wanted, task="segmentation"), even, Segmentation.metric) == "val_miou"
