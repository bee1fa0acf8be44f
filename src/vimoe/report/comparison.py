"""Models side by side on the same test images: how good each one is, what it costs, and how sure that is."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

from vimoe.analysis.paired import Estimate
from vimoe.report.tables import Table, giga_macs, metric_name, millions
from vimoe.vit.cost import Cost

COST = ("activated", "stored", "multiply-adds")
COST_NOTE = (
    "Activated parameters take part for one image; stored parameters include the experts that were not chosen. "
    "Multiply-adds are for one image."
)


class Speed(NamedTuple):
    """Time and memory, measured on one machine.

    Attributes:
        seconds: For one image in a batch of `batch_size`, median of several runs.
        peak_bytes: The most memory that weights and activations took at once while a batch was computed.
        batch_size: Images at once.
    """

    seconds: float
    peak_bytes: int
    batch_size: int


@dataclass(frozen=True)
class Variant:
    """A model in a comparison.

    Attributes:
        name: What to call it.
        score: How good it is on the test images, in percent.
        cost: Parameters and multiply-adds.
        lost: Percentage points lost against the model that it is compared with, paired on the same images; negative
            for a gain. None where it is compared with nothing.
        speed: Time and memory, if measured.
        training: Seconds of training, if they are part of the comparison.
    """

    name: str
    score: Estimate
    cost: Cost
    lost: Estimate | None = None
    speed: Speed | None = None
    training: float | None = None


def comparison_table(variants: Sequence[Variant], metric: str, images: int, note: str) -> Table:
    """A row a model.

    Args:
        variants: All with a speed or none, and all with training seconds or none.
        metric: What the scores are, see `metric_name`.
        images: Test images.
        note: What the changes are measured against.
    """
    header = ["model", f"test {metric_name(metric)} % (95 %)", "change (95 %)", *COST]
    rows = [[v.name, with_interval(v.score), change(v.lost) if v.lost else "", *cost_cells(v.cost)] for v in variants]
    notes = [f"{images} test images, the same ones for every model. {note} {COST_NOTE}"]
    if variants[0].speed:
        header += ["ms", "peak MB"]
        notes[0] += (
            f" ms: measured for one image in a batch of {variants[0].speed.batch_size}; peak: weights and "
            "activations of such a batch."
        )
    if variants[0].training is not None:
        header.append("training s")
    for row, variant in zip(rows, variants, strict=True):
        if variant.speed:
            row += [f"{1000 * variant.speed.seconds:.2f}", f"{variant.speed.peak_bytes / 2**20:.1f}"]
        if variant.training is not None:
            row.append(f"{variant.training:.0f}")
    return Table(header, rows, notes)


def pruning_table(states: Sequence[Variant], metric: str, images: int) -> Table:
    """The model before pruning, right after it, and recovered where it was."""
    return comparison_table(states, metric, images, "Changes are against the first row.")


def comparison_sentence(one: Variant, other: Variant, metric: str, images: int) -> str:
    """How `one` does against `other`, against which its loss was measured."""
    assert one.lost is not None
    costs: list[tuple[str, float, float]] = [
        ("Multiply-adds", other.cost.macs, one.cost.macs),
        ("stored parameters", other.cost.stored_params, one.cost.stored_params),
    ]
    if one.speed and other.speed:
        costs.append(("the time for an image", other.speed.seconds, one.speed.seconds))
    changes = ", ".join(f"{what} {relative(after, before)}" for what, before, after in costs)
    return (
        f"“{one.name}” reaches {one.score.value:.1f} % {metric_name(metric)} on {images} test images, “{other.name}” "
        f"{other.score.value:.1f} %: {change(one.lost, ' points (95 %: ')}, {verdict(one.lost)}. {changes}."
    )


def with_interval(score: Estimate) -> str:
    """`90.0 (82.5 to 97.5)`."""
    return f"{score.value:.1f} ({score.low:.1f} to {score.high:.1f})"


def change(lost: Estimate, between: str = " (") -> str:
    """A loss as a change, with its interval: `+1.0 (-0.5 to +2.5)`."""
    value, low, high = (round(0 - x, 1) + 0.0 for x in (lost.value, lost.high, lost.low))  # + 0.0: no minus zero
    return f"{value:+.1f}{between}{low:+.1f} to {high:+.1f})"


def verdict(lost: Estimate) -> str:
    """Whether the images at hand tell a loss from none: whether its interval leaves out 0."""
    return "within noise" if lost.low <= 0 <= lost.high else "beyond noise"


def relative(after: float, before: float) -> str:
    """`-25 %`."""
    return f"{100 * (after / before - 1):+.0f} %"


def cost_cells(cost: Cost) -> list[str]:
    """The cells under `COST`."""
    return [millions(cost.activated_params), millions(cost.stored_params), giga_macs(cost.macs)]
