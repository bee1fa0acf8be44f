import pytest

from vimoe.report.comparison import Variant, conclusion, standard_error
from vimoe.vit.cost import Cost


def variant(name: str, top1: float, images: int = 400, macs: int = 100) -> Variant:
    return Variant(name, top1, standard_error(top1, images), images, Cost(1, 1, macs), 1.0)


def test_the_standard_error_is_binomial_and_never_0() -> None:
    assert standard_error(50.0, 10_000) == pytest.approx(0.5, abs=1e-3)
    assert standard_error(100.0, 400) == pytest.approx(0.35, abs=0.01)


def test_a_small_difference_is_called_noise() -> None:
    sentence = conclusion(variant("pruned", 97.5, macs=116), variant("dense", 97.0))
    assert "0.5 points higher" in sentence
    assert "(97.5 against 97.0 %), inside the noise" in sentence
    assert "+16% multiply-adds" in sentence


def test_a_large_difference_is_called_one_either_way() -> None:
    assert "7.0 points higher" in conclusion(variant("a", 97.0), variant("b", 90.0))
    assert "beyond what 400 test images leave to chance" in conclusion(variant("a", 90.0), variant("b", 97.0))
    assert "7.0 points lower" in conclusion(variant("a", 90.0), variant("b", 97.0))


def test_equal_accuracies_are_called_equal() -> None:
    assert "the same as" in conclusion(variant("a", 97.0), variant("b", 97.0))
