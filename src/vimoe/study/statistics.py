"""What a few seeds can tell: paired intervals, and the smallest difference that so many seeds would find."""

import math
from collections.abc import Sequence
from functools import lru_cache
from typing import NamedTuple

import numpy as np
from scipy import optimize, stats

LEVEL, POWER = 0.05, 0.8
_SLICES = 4000


class Paired(NamedTuple):
    """Differences between two settings, paired by seed."""

    n: int  # seeds that both have
    mean: float
    std: float  # standard deviation of the differences between seeds (n - 1), NaN for one seed
    low: float  # lower end of the 95 % t interval of the mean, NaN for one seed or without spread
    high: float  # upper end
    p_value: float  # of a two-sided paired t test, NaN for one seed or without spread


def paired(differences: Sequence[float]) -> Paired:
    """The paired t interval and test (Student 1908); the differences of one seed each are taken as normal.

    Seeds that all differ by the same, as a few images right or wrong make them, show no spread to test against.
    """
    values = np.asarray(differences, dtype=float)
    n, mean = len(values), float(values.mean())
    if n < 2:
        return Paired(n, mean, math.nan, math.nan, math.nan, math.nan)
    std = float(values.std(ddof=1))
    if std <= 1e-9 * (1 + abs(mean)):
        return Paired(n, mean, 0.0, math.nan, math.nan, math.nan)
    test = stats.ttest_1samp(values, 0.0)
    low, high = test.confidence_interval(1 - LEVEL)
    return Paired(n, mean, std, float(low), float(high), float(test.pvalue))


def power(noncentrality: float, n: int) -> float:
    """Chance that a two-sided paired t test of n seeds at 5 % finds a difference of `noncentrality` standard errors.

    T = (Z + δ) / √(V / ν) with ν = n - 1, Z normal and V chi-squared (the noncentral t distribution; Cohen 1988,
    chapter 2), averaged over equally likely V: scipy's own noncentral t fails at so few degrees of freedom.
    """
    free = n - 1
    middle = (np.arange(_SLICES) + 0.5) / _SLICES
    bar = stats.t.ppf(1 - LEVEL / 2, free) * np.sqrt(stats.chi2.ppf(middle, free) / free)
    return float((stats.norm.sf(bar - noncentrality) + stats.norm.cdf(-bar - noncentrality)).mean())


def smallest_difference(std: float, n: int) -> float:
    """The true mean difference that a paired t test of n seeds finds with a chance of 80 %, two-sided at 5 %.

    `std` is that of the paired differences between seeds. Infinite for one seed, and without spread, which says
    nothing.
    """
    if n < 2 or math.isnan(std) or std == 0:
        return math.inf
    return _needed_errors(n) * std / math.sqrt(n)


@lru_cache
def _needed_errors(n: int) -> float:
    """The noncentrality at which a test of n seeds has the wanted power."""
    return float(optimize.brentq(lambda errors: power(errors, n) - POWER, 0.0, 100.0))


def seeds_needed(std: float, difference: float, most: int = 1000) -> int | None:
    """The fewest seeds with which a paired t test would find this difference, None where `most` do not suffice."""
    return next((n for n in range(2, most + 1) if smallest_difference(std, n) <= difference), None)


def pooled_std(groups: Sequence[Sequence[float]]) -> float:
    """The common standard deviation within groups whose means differ, NaN where no group has two values."""
    free = sum(len(group) - 1 for group in groups)
    if free < 1:
        return math.nan
    return math.sqrt(sum(float(((np.asarray(group) - np.mean(group)) ** 2).sum()) for group in groups) / free)


def holm(p_values: Sequence[float]) -> list[float]:
    """p-values adjusted for their number (Holm 1979); NaNs stay and do not count."""
    adjusted = [math.nan] * len(p_values)
    order = sorted((i for i, p in enumerate(p_values) if not math.isnan(p)), key=lambda i: p_values[i])
    largest = 0.0
    for rank, i in enumerate(order):
        largest = max(largest, min(1.0, (len(order) - rank) * p_values[i]))
        adjusted[i] = largest
    return adjusted
