import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from sklearn.metrics import mutual_info_score

from vimoe.analysis.specialisation import (
    corrected_information,
    entropy_bits,
    mutual_information,
    permutation_p_value,
    specialisation,
)

tables = hnp.arrays(np.int64, st.tuples(st.integers(1, 6), st.integers(1, 6)), elements=st.integers(0, 30))


def test_entropy_of_a_fair_coin_is_one_bit() -> None:
    assert entropy_bits(np.array([5, 5])) == 1.0
    assert entropy_bits(np.array([0, 0])) == 0.0


@given(tables)
@settings(deadline=None, max_examples=50)
def test_mutual_information_agrees_with_scikit_learn(counts: np.ndarray) -> None:
    if counts.sum() == 0:
        return
    expected = mutual_info_score(None, None, contingency=counts) / np.log(2)
    assert mutual_information(counts) == pytest.approx(expected, abs=1e-9)


def test_one_expert_a_class_is_fully_specialised() -> None:
    measure = specialisation(np.eye(4, dtype=np.int64) * 25, shuffles=99)
    assert measure.normalised == pytest.approx(1.0, abs=0.04)  # 2 bits less the correction of 9 / (200 ln 2)
    assert measure.information == pytest.approx(2 - 9 / (200 * np.log(2)))
    assert measure.top_share == 1.0
    assert measure.p_value == 0.01
    assert measure.effective_experts == pytest.approx(4)


def test_a_collapsed_layer_is_not_specialised() -> None:
    counts = np.zeros((4, 8), dtype=np.int64)
    counts[:, 2] = 25
    measure = specialisation(counts, shuffles=99)
    assert (measure.information, measure.normalised, measure.p_value) == (0.0, 0.0, 1.0)
    assert measure.effective_experts == pytest.approx(1)
    assert measure.top_share == 1.0  # the paper's darkness alone would take it for specialised


def test_random_routing_is_not_beyond_chance_and_its_bias_is_taken_off() -> None:
    rng = np.random.default_rng(0)
    plug_in, corrected, p = [], [], []
    for _ in range(40):
        counts = rng.multinomial(20, np.full(8, 1 / 8), size=10)
        plug_in.append(mutual_information(counts))
        corrected.append(corrected_information(counts))
        p.append(permutation_p_value(counts, 99))
    assert np.mean(plug_in) > 0.2
    assert np.mean(corrected) < 0.2 * np.mean(plug_in)  # the correction is of first order, and clipped at 0
    assert np.mean(np.array(p) < 0.05) < 0.15


def test_the_p_value_is_the_same_every_time() -> None:
    counts = np.array([[9, 1], [4, 6]])
    assert permutation_p_value(counts, 199) == permutation_p_value(counts, 199)


def test_a_class_with_no_picture_changes_nothing_but_its_row() -> None:
    counts = np.array([[8, 2], [1, 9]])
    padded = np.vstack([counts, [[0, 0]]])
    assert specialisation(padded, 99) == specialisation(counts, 99)


def test_an_empty_table_and_a_single_class_have_no_information() -> None:
    assert specialisation(np.zeros((3, 4), dtype=np.int64), 9).normalised == 0.0
    assert specialisation(np.array([[3, 4]]), 9).normalised == 0.0
