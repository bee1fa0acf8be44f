import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from vimoe.study.statistics import holm, paired, pooled_std, power, seeds_needed, smallest_difference


def test_the_paired_interval_of_a_known_case() -> None:
    # Student's sleep data (1908): ten patients, mean 1.58, t = 4.0621, p = 0.002833, interval 0.7001 to 2.4599.
    differences = [1.2, 2.4, 1.3, 1.3, 0.0, 1.0, 1.8, 0.8, 4.6, 1.4]
    result = paired(differences)
    assert result.n == 10
    assert result.mean == pytest.approx(1.58)
    assert result.p_value == pytest.approx(0.002833, abs=1e-6)
    assert (result.low, result.high) == (pytest.approx(0.7001, abs=1e-4), pytest.approx(2.4599, abs=1e-4))


def test_one_seed_gives_a_mean_and_no_interval() -> None:
    result = paired([0.5])
    assert (result.n, result.mean) == (1, 0.5)
    assert math.isnan(result.low)
    assert math.isnan(result.p_value)


def test_differences_without_spread_say_nothing() -> None:
    for differences in ([0.0, 0.0], [100 / 360] * 3, [97.5 - 97.2, 98.5 - 98.2, 99.5 - 99.2]):
        found = paired(differences)
        assert found.std == 0.0
        assert all(math.isnan(value) for value in (found.low, found.high, found.p_value))
    assert not math.isnan(paired([0.0, 0.001]).p_value)


@pytest.mark.parametrize(("effect", "n"), [(1.0, 10), (0.5, 34), (0.8, 15)])
def test_power_agrees_with_scipy_where_scipy_is_sound(effect: float, n: int) -> None:
    noncentrality = effect * math.sqrt(n)
    critical = stats.t.ppf(0.975, n - 1)
    expected = stats.nct.sf(critical, n - 1, noncentrality) + stats.nct.cdf(-critical, n - 1, noncentrality)
    assert power(noncentrality, n) == pytest.approx(expected, abs=1e-4)


def test_power_is_what_simulated_tests_find() -> None:
    rng = np.random.default_rng(0)
    n, std = 3, 0.4
    difference = smallest_difference(std, n)
    trials = rng.normal(difference, std, size=(20_000, n))
    t = trials.mean(1) / (trials.std(1, ddof=1) / math.sqrt(n))
    assert np.mean(np.abs(t) > 4.302653) == pytest.approx(0.8, abs=0.01)  # t of 2 degrees of freedom at 97.5 %


@given(st.floats(0.01, 100), st.integers(2, 30))
def test_the_smallest_difference_grows_with_the_spread_and_shrinks_with_the_seeds(std: float, n: int) -> None:
    assert smallest_difference(2 * std, n) == pytest.approx(2 * smallest_difference(std, n))
    assert smallest_difference(std, n + 1) < smallest_difference(std, n)


def test_what_cannot_be_told_is_infinite() -> None:
    assert smallest_difference(1.0, 1) == math.inf
    assert smallest_difference(math.nan, 5) == math.inf
    assert smallest_difference(0.0, 3) == math.inf


def test_seeds_needed_is_the_inverse_of_the_smallest_difference() -> None:
    assert seeds_needed(1.0, 1.0) == 10
    assert seeds_needed(1.0, smallest_difference(1.0, 4)) == 4
    assert seeds_needed(1.0, 0.01, most=50) is None


def test_the_pooled_spread_ignores_the_means_and_lone_values() -> None:
    assert pooled_std([[1.0, 3.0], [101.0, 103.0], [7.0]]) == pytest.approx(math.sqrt(2))
    assert math.isnan(pooled_std([[1.0], [2.0]]))


def test_holm_adjusts_for_the_number_of_tests_in_their_order() -> None:
    assert holm([0.01, 0.04, 0.03]) == pytest.approx([0.03, 0.06, 0.06])
    adjusted = holm([math.nan, 0.5, 0.9])
    assert math.isnan(adjusted[0])
    assert adjusted[1:] == [1.0, 1.0]
