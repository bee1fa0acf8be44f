import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vimoe.training.defaults import PAPER, finetune
from vimoe.training.recipe import make_recipe


@pytest.mark.parametrize(
    ("images", "batch", "epochs", "lr"),
    [(60, 8, 60, 3.5e-4), (900, 32, 60, 7.1e-4), (3_068, 64, 20, 1e-3), (50_000, 64, 5, 1e-3), (10**6, 64, 5, 1e-3)],
)
def test_batch_epochs_and_rate_follow_from_the_number_of_images(
    images: int, batch: int, epochs: int, lr: float
) -> None:
    rule = finetune(images, {})
    assert (rule["batch_size"], rule["epochs"], rule["lr"]) == (batch, epochs, lr)
    assert ("aa" in rule) == (epochs >= 30)


@settings(deadline=None)
@given(st.integers(1, 10**7), st.sampled_from([1, 2, 8]))
def test_every_rule_is_a_recipe_and_more_images_never_mean_more_epochs(images: int, accumulate: int) -> None:
    rule = finetune(images, {"accumulate": accumulate})
    make_recipe(rule)
    assert rule["epochs"] >= finetune(images + 1, {})["epochs"]


def test_the_rate_follows_the_batch_that_is_given_as_its_root() -> None:
    assert finetune(5000, {"batch_size": 256})["lr"] == 2e-3
    assert finetune(5000, {"batch_size": 64, "accumulate": 16})["lr"] == 4e-3
    assert "lr" not in finetune(5000, {"lr": 0.1})
    assert finetune(5000, {"epochs": 2})["warmup_epochs"] == 0.2


def test_no_policy_where_images_are_in_memory_and_no_crops_of_masks() -> None:
    assert "aa" not in finetune(100, {"in_memory": True})
    assert not {"aa", "scale"} & finetune(100, {}, masks=True).keys()


def test_the_papers_settings_are_a_recipe() -> None:
    assert make_recipe(PAPER).preset == "paper"
