import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vimoe.training.defaults import PAPER, finetune
from vimoe.training.recipe import make_recipe


@pytest.mark.parametrize(
    ("images", "batch", "epochs", "lr"),
    [(60, 8, 60, 1.1e-3), (900, 32, 60, 2.1e-3), (3_068, 64, 20, 3e-3), (50_000, 64, 5, 3e-3), (10**6, 64, 5, 3e-3)],
)
def test_batch_epochs_and_rate_follow_from_the_number_of_images(
    images: int, batch: int, epochs: int, lr: float
) -> None:
    rule = finetune(images, 192, {})
    assert (rule["batch_size"], rule["epochs"], rule["lr"]) == (batch, epochs, lr)
    assert ("aa" in rule) == (epochs >= 30)


@settings(deadline=None)
@given(st.integers(1, 10**7), st.sampled_from([1, 2, 8]))
def test_every_rule_is_a_recipe_and_more_images_never_mean_more_epochs(images: int, accumulate: int) -> None:
    rule = finetune(images, 192, {"accumulate": accumulate})
    make_recipe(rule)
    assert rule["epochs"] >= finetune(images + 1, 192, {})["epochs"]


def test_the_rate_follows_the_batch_that_is_given_as_its_root() -> None:
    assert finetune(5000, 192, {"batch_size": 256})["lr"] == 6e-3
    assert finetune(5000, 192, {"batch_size": 64, "accumulate": 16})["lr"] == 1.2e-2
    assert "lr" not in finetune(5000, 192, {"lr": 0.1})
    assert finetune(5000, 192, {"epochs": 2})["warmup_epochs"] == 0.2


def test_the_rate_goes_down_as_the_width_goes_up() -> None:
    assert [finetune(5000, width, {"batch_size": 256})["lr"] for width in (96, 384, 768)] == [1.2e-2, 3e-3, 1.5e-3]


def test_no_policy_where_images_are_in_memory_and_no_crops_of_masks() -> None:
    assert "aa" not in finetune(100, 192, {"in_memory": True})
    assert not {"aa", "scale"} & finetune(100, 192, {}, masks=True).keys()


def test_the_papers_settings_are_a_recipe() -> None:
    assert make_recipe(PAPER).preset == "paper"
