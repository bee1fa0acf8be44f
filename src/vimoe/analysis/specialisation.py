"""How far the class decides the expert, in numbers, from a table of counts `[class, expert]`."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

Counts = NDArray[np.int64]


class Specialisation(NamedTuple):
    """What one layer's table of counts says.

    Attributes:
        information: Mutual information of class and expert in bits, corrected for the finite sample, never below 0.
        normalised: `information` over the most it could be, min(H(class), H(expert), both uniform at most): 0 to 1.
        top_share: Share of a class's pictures that go to its top expert, mean over classes (the paper's darkness).
        p_value: How often shuffled labels give at least this much information.
        effective_experts: exp(H(load)): how many experts are really used, 1 to E.
        load: Share of the assignments of each expert.
    """

    information: float
    normalised: float
    top_share: float
    p_value: float
    effective_experts: float
    load: tuple[float, ...]


def entropy_bits(weights: NDArray[np.floating] | Counts) -> float:
    """Shannon entropy in bits of weights of any positive scale; 0 when there are none."""
    total = weights.sum()
    p = weights[weights > 0] / total if total > 0 else np.ones(1)
    return float(-(p * np.log2(p)).sum()) + 0.0


def mutual_information(counts: Counts) -> float:
    """Plug-in mutual information in bits of rows and columns of a table of counts."""
    return entropy_bits(counts.sum(1)) + entropy_bits(counts.sum(0)) - entropy_bits(counts.ravel())


def corrected_information(counts: Counts) -> float:
    """Mutual information in bits less its bias for independent samples (Miller 1955), not below 0.

    The plug-in estimate is too high by about (rows - 1)(columns - 1) / (2 n ln 2), counting the rows
    and columns that occur.
    """
    total = counts.sum()
    if total == 0:
        return 0.0
    degrees = (np.count_nonzero(counts.sum(1)) - 1) * (np.count_nonzero(counts.sum(0)) - 1)
    return max(0.0, mutual_information(counts) - degrees / (2 * total * np.log(2)))


def permutation_p_value(counts: Counts, shuffles: int = 999, seed: int = 0) -> float:
    """Share of shuffled tables with the same margins that hold at least as much information.

    Right for one choice an image, where the samples are independent; (1 + hits) / (1 + shuffles), so never 0.
    """
    rng = np.random.default_rng(seed)
    rows = np.repeat(np.arange(counts.shape[0]), counts.sum(1))
    columns = np.repeat(np.tile(np.arange(counts.shape[1]), counts.shape[0]), counts.ravel())
    observed = mutual_information(counts)
    hits = 0
    for _ in range(shuffles):
        cells = rows * counts.shape[1] + rng.permutation(columns)
        shuffled = np.bincount(cells, minlength=counts.size).reshape(counts.shape)
        hits += mutual_information(shuffled) >= observed - 1e-12
    return (1 + hits) / (1 + shuffles)


def specialisation(counts: Counts, shuffles: int = 999) -> Specialisation:
    """All measures of one layer.

    Args:
        counts: `[class, expert]`.
        shuffles: Shuffled tables behind the p-value.
    """
    information = corrected_information(counts)
    # The most a layer with these classes and this many experts could tell, used evenly or not:
    # a collapsed layer scores 0, not 1.
    ceiling = min(entropy_bits(counts.sum(1)), float(np.log2(counts.shape[1])))
    per_class = counts[counts.sum(1) > 0]
    load = counts.sum(0) / max(1, counts.sum())
    return Specialisation(
        information=information,
        normalised=information / ceiling if ceiling > 0 else 0.0,
        top_share=float((per_class.max(1) / per_class.sum(1)).mean()) if len(per_class) else 0.0,
        p_value=permutation_p_value(counts, shuffles),
        effective_experts=float(2 ** entropy_bits(counts.sum(0))),
        load=tuple(float(share) for share in load),
    )
