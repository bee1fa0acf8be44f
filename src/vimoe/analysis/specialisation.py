"""How far the class decides the expert, in numbers, with its chance level and its interval."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from vimoe.analysis.observations import Counts, ImageObservations, Observations

RESAMPLES = 200


@dataclass(frozen=True)
class Specialisation:
    """What one layer's choices say about the class.

    Attributes:
        information: Mutual information of class and expert in bits beyond its chance level, never below 0.
        normalised: The same over the most it could be beyond chance, 0 to 1: see `specialisation`.
        top_share: Share of a class's choices that fall on its top expert, mean over classes (the paper's darkness).
        p_value: How often shuffled images give at least this much information.
        effective_experts: 2^H(load): how many experts are really used, 1 to E.
        load: Share of the assignments of each expert.
        low: Lower end of the 95 % interval of `normalised`.
        high: Upper end.
        chance_top_share: What `top_share` is when images are shuffled.
        consistency: Chance that two choices of one class fall on the same expert, mean over classes.
        chance_consistency: The same for two choices of any class.
    """

    information: float
    normalised: float
    top_share: float
    p_value: float
    effective_experts: float
    load: tuple[float, ...]
    low: float
    high: float
    chance_top_share: float
    consistency: float
    chance_consistency: float


def entropy_bits(weights: NDArray[np.floating] | Counts) -> float:
    """Shannon entropy in bits of weights of any positive scale; 0 when there are none."""
    total = weights.sum()
    if total <= 0:
        return 0.0
    some = weights[weights > 0]
    return max(0.0, float(np.log2(total) - (some * np.log2(some)).sum() / total))


def mutual_information(counts: Counts) -> float:
    """Plug-in mutual information in bits of rows and columns of a table of counts."""
    return entropy_bits(counts.sum(1)) + entropy_bits(counts.sum(0)) - entropy_bits(counts.ravel())


def top_share(counts: Counts) -> float:
    """Share of a row's counts in its largest cell, mean over the rows that have any."""
    totals = counts.sum(1)
    seen = totals > 0
    return float((counts.max(1)[seen] / totals[seen]).mean()) if seen.any() else 0.0


def consistency(counts: Counts) -> float:
    """Chance that two counts of one row, drawn without replacement, share a cell; mean over rows with two or more."""
    totals = counts.sum(1)
    pairs = totals * (totals - 1)
    seen = pairs > 0
    return float(((counts * (counts - 1)).sum(1)[seen] / pairs[seen]).mean()) if seen.any() else 0.0


def specialisation(seen: Observations | Counts, shuffles: int = 999) -> Specialisation:
    """All measures of one layer.

    A finite sample shows information where there is none. How much, the same sample tells when its images are
    shuffled, so that their mean is taken off above and below: (I - I₀) / (min(H(class), H(expert)) - I₀), the
    adjusted mutual information (Vinh, Epps and Bailey 2010, with the smaller entropy). A collapsed layer scores 0:
    with one expert both parts of the fraction are 0, which counts as 0; and with a few strays what little the
    choice could tell is told by shuffled images as well, so that nothing is left above.

    The interval is a bootstrap over images. Drawing images again raises every plug-in estimate, so what is taken
    from it is the spread about its own mean.

    Args:
        seen: Choices image by image, or a table `[class, expert]` of independent ones.
        shuffles: Shuffled tables behind the chance levels and the p-value, (1 + hits) / (1 + shuffles).
    """
    if isinstance(seen, np.ndarray):
        seen = ImageObservations.from_counts(seen)
    counts = seen.table()
    rng = np.random.default_rng(0)
    shuffled = (seen.shuffled(rng) for _ in range(shuffles))
    by_chance = np.array([(mutual_information(table), top_share(table)) for table in shuffled])
    observed = mutual_information(counts)
    expected = by_chance[:, 0].mean()
    information = max(0.0, observed - expected)
    room = min(entropy_bits(counts.sum(1)), entropy_bits(counts.sum(0))) - expected
    drawn = np.array([mutual_information(seen.resampled(rng)) for _ in range(RESAMPLES)])
    low, high = information + np.quantile(drawn - drawn.mean(), [0.025, 0.975])

    def of_the_most(bits: float) -> float:
        return float(np.clip(bits / room, 0, 1)) if room > 1e-9 else 0.0

    return Specialisation(
        information=float(information),
        normalised=of_the_most(information),
        top_share=top_share(counts),
        p_value=(1 + int((by_chance[:, 0] >= observed - 1e-12).sum())) / (1 + shuffles),
        effective_experts=float(2 ** entropy_bits(counts.sum(0))),
        load=tuple(float(share) for share in counts.sum(0) / max(1, counts.sum())),
        low=of_the_most(low),
        high=of_the_most(high),
        chance_top_share=float(by_chance[:, 1].mean()),
        consistency=consistency(counts),
        chance_consistency=consistency(counts.sum(0, keepdims=True)),
    )
