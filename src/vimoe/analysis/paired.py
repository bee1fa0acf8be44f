"""What a change costs, from the scores of the same pictures before and after: sums alone, whatever their number."""

from __future__ import annotations

import math

from torch import Tensor

from vimoe.analysis.result import Estimate

Z = 1.959964  # of a 95 % interval


def mean_score(scores: Tensor) -> Estimate:
    """Mean of scores in 0 to 1, in percent.

    The interval is taken after adding two pictures of score 1 and two of 0 (Agresti and Coull 1998), so that a
    perfect score does not come without doubt.

    Args:
        scores: `[N]`, one a picture.
    """
    count, total, squares = len(scores), float(scores.double().sum()), float(scores.double().square().sum())
    centre = (total + 2) / (count + 4)
    half = Z * math.sqrt(max(0.0, (squares + 2) / (count + 4) - centre**2) / (count + 4))
    return Estimate(100 * total / max(1, count), 100 * max(0.0, centre - half), 100 * min(1.0, centre + half))


def mean_loss(before: Tensor, after: Tensor) -> Estimate:
    """Percentage points lost from `before` to `after`, paired by picture; negative for a gain.

    For scores of 0 and 1 the interval is that of Agresti and Min (2005): Wald's after adding half a picture to each
    of the four outcomes, which keeps its promise where few pictures change sides. For scores between, the same
    two pictures are added.

    Args:
        before: `[N]` scores in 0 to 1, one a picture.
        after: `[N]`.
    """
    lost = (before - after).double()
    count, total, squares = len(lost), float(lost.sum()), float(lost.square().sum())
    centre = total / (count + 2)
    half = Z * math.sqrt(max(0.0, (squares + 1) / (count + 2) - centre**2) / (count + 2))
    return Estimate(100 * total / max(1, count), 100 * (centre - half), 100 * (centre + half))
