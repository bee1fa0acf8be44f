"""Evidence: a score, and what a change costs on the same images, each with its 95 % interval."""

import math
from dataclasses import dataclass

from scipy import stats
from torch import Tensor

Z = 1.959964  # of a 95 % interval


@dataclass(frozen=True)
class Estimate:
    """A value and its 95 % interval."""

    value: float
    low: float
    high: float


def mean_score(scores: Tensor) -> Estimate:
    """Mean of `[N]` scores in 0 to 1, one an image, in percent.

    For scores of 0 and 1 the interval is taken after adding two images of score 1 and two of 0 (Agresti and Coull
    1998), so that a perfect score does not come without doubt. For scores between it is Student's.
    """
    count, total = len(scores), float(scores.double().sum())
    value = total / max(1, count)
    if _are_right_or_wrong(scores):
        centre = (total + 2) / (count + 4)
        half = Z * math.sqrt(centre * (1 - centre) / (count + 4))
    else:
        centre, half = value, _student(scores.double())
    return Estimate(100 * value, 100 * max(0.0, centre - half), 100 * min(1.0, centre + half))


def mean_loss(before: Tensor, after: Tensor) -> Estimate:
    """Percentage points lost from `before` to `after`, `[N]` scores in 0 to 1 paired by image; negative for a gain.

    For scores of 0 and 1 the interval is that of Agresti and Min (2005): Wald's after adding half an image to each
    of the four outcomes, which keeps its promise where few images change sides. For scores between it is Student's,
    unless all lose the same, which says nothing of others.
    """
    lost = (before - after).double()
    count, total, squares = len(lost), float(lost.sum()), float(lost.square().sum())
    value = total / max(1, count)
    if (_are_right_or_wrong(before) and _are_right_or_wrong(after)) or bool((lost == lost[:1]).all()):
        centre = total / (count + 2)
        half = Z * math.sqrt(((squares + 1) / (count + 2) - centre**2) / (count + 2))
    else:
        centre, half = value, _student(lost)
    return Estimate(100 * value, 100 * (centre - half), 100 * (centre + half))


def _are_right_or_wrong(scores: Tensor) -> bool:
    return bool(((scores == 0) | (scores == 1)).all())


def _student(values: Tensor) -> float:
    """Half the width of the interval of a mean."""
    count = len(values)
    return float(stats.t.ppf(0.975, count - 1) * values.std() / math.sqrt(count)) if count > 1 else 1.0
