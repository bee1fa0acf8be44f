"""One variant of a comparison: a finished model, how good it is and what it costs."""

from __future__ import annotations

import math
from typing import NamedTuple

from vimoe.vit.cost import Cost


class Variant(NamedTuple):
    """A model in a comparison.

    Attributes:
        name: What to call it.
        score: How good it is on the test images, in percent.
        error: Its standard error in percentage points, from the number of test images alone.
        images: Test images.
        cost: Parameters and multiply-adds.
        seconds: Training time since the common starting point, in seconds.
        metric: What the score is.
    """

    name: str
    score: float
    error: float
    images: int
    cost: Cost
    seconds: float
    metric: str = "top-1"


def standard_error(top1: float, images: int) -> float:
    """Binomial standard error of an accuracy, in percentage points.

    The rate is taken after adding two right and two wrong answers (Agresti and Coull 1998), so that a perfect
    score does not come with an error of 0.
    """
    rate = (top1 / 100 * images + 2) / (images + 4)
    return 100 * math.sqrt(rate * (1 - rate) / (images + 4))


def conclusion(variant: Variant, control: Variant) -> str:
    """One sentence on how `variant` compares with its control."""
    difference = variant.score - control.score
    noise = 2 * math.hypot(variant.error, control.error)
    if difference == 0:
        compared = "the same as"
    else:
        compared = f"{abs(difference):.1f} points {'higher' if difference > 0 else 'lower'} than"
    if abs(difference) <= noise:
        verdict = "inside the noise: one seed and so few images cannot tell them apart"
    else:
        verdict = f"beyond what {variant.images} test images leave to chance; other seeds were not tried"
    macs = variant.cost.macs / control.cost.macs - 1
    return (
        f"The {variant.metric} of “{variant.name}” is {compared} that of “{control.name}” "
        f"({variant.score:.1f} against {control.score:.1f} %), {verdict}. It takes {macs:+.0%} multiply-adds."
    )
