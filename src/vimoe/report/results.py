"""What came out, as a table and a sentence: of a plan, and of carrying it out."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Protocol

from vimoe.analysis.analysis_result import Analysis, Estimate, Step
from vimoe.report.comparison import Variant
from vimoe.report.tables import METRICS, Table, giga_macs, millions, variant_header, variant_rows
from vimoe.vit.cost import Cost
from vimoe.vit.plan import Plan

# What is right, by metric.
RIGHT = {"top1": "{} images", "pixels": "the pixels of {} images"}

_COST = ("activated", "stored", "multiply-adds")


class Timing(Protocol):
    """How fast a model is."""

    @property
    def seconds(self) -> float:
        """For one image in a batch."""

    @property
    def peak_bytes(self) -> int:
        """The most memory that weights and activations took at once."""

    @property
    def batch_size(self) -> int:
        """Images at once."""


class State(Protocol):
    """A model before, right after or some time after it was pruned."""

    @property
    def name(self) -> str:
        """What to call it."""

    @property
    def score(self) -> Estimate:
        """How much is right, in percent."""

    @property
    def lost(self) -> Estimate:
        """Percentage points lost against the first state."""

    @property
    def cost(self) -> Cost:
        """Parameters and multiply-adds."""

    @property
    def speed(self) -> Timing:
        """Time and memory."""


def variants_table(variants: Sequence[Variant]) -> Table:
    """Models that were trained side by side."""
    note = (
        f"The ± is one standard error from the {variants[0].images} test images alone: this is one seed, and another "
        "seed would move every line as well. Activated parameters are those that take part for one image; stored "
        "parameters include the experts that were not chosen. Seconds are of training since the dense model (for the "
        "dense model, its own)."
    )
    return Table(variant_header(variants), variant_rows(variants), [note])


def plan_table(analysis: Analysis, plan: Plan, before: Cost, after: Cost) -> Table:
    """The model as it is, and as the plan would leave it before any recovery training."""
    header = ("model", f"{METRICS[analysis.metric]} (95 %)", "change (95 %)", *_COST)
    score, lost = analysis.score, planned_loss(analysis)
    as_it_is = f"{score.value:.1f} ({score.low:.1f} to {score.high:.1f})"
    rows = [[f"as it is: MoE in {blocks(layer.layer for layer in analysis.layers)}", as_it_is, "", *_cost(before)]]
    if lost is not None:
        then = f"{score.value - lost.value:.1f}"
        rows.append([f"as planned: MoE in {blocks(kept_blocks(plan))}", then, change(lost), *_cost(after)])
    note = (
        f"Measured on the {analysis.images} images of “{analysis.split}”, on which the plan was made as well; "
        "“vimoe prune” measures the planned model on test images, which decided nothing. Activated parameters are "
        "those that take part for one image; stored parameters include the experts that were not chosen."
    )
    return Table(header, rows, [note])


def plan_conclusion(analysis: Analysis, plan: Plan, before: Cost, after: Cost) -> str:
    """One sentence on which layers earn their keep."""
    kept, total, lost = kept_blocks(plan), len(analysis.layers), planned_loss(analysis)
    if lost is None:
        return f"All {total} MoE layers are needed as they are: each change that was tried costs more than it may."
    if len(kept) == total:
        told = f"All {total} MoE layers stay, some with fewer experts"
    elif not kept:
        told = f"None of the {total} MoE layers is needed: all become plain FFNs"
    else:
        told = f"Of {total} MoE layers {len(kept)} {'earns its' if len(kept) == 1 else 'earn their'} keep, "
        told += f"{blocks(kept)}; the others become plain FFNs"
    seen = f"{RIGHT[analysis.metric].format(analysis.images)} of “{analysis.split}”"
    return (
        f"{told}. On {seen} this changes the accuracy by {change(lost, ' points (95 %: ')}, {_verdict(lost)}, "
        f"before any recovery training; multiply-adds change by {_relative(after.macs, before.macs)}, stored "
        f"parameters by {_relative(after.stored_params, before.stored_params)}."
    )


def pruning_table(states: Sequence[State], metric: str, images: int) -> Table:
    """Accuracy, cost and speed of a model on its way through pruning and recovery."""
    header = ("model", f"test {METRICS[metric]} (95 %)", "change (95 %)", *_COST, "ms", "peak MB")
    rows = [
        [
            state.name,
            f"{state.score.value:.1f} ({state.score.low:.1f} to {state.score.high:.1f})",
            change(state.lost) if i else "",
            *_cost(state.cost),
            f"{1000 * state.speed.seconds:.2f}",
            f"{state.speed.peak_bytes / 2**20:.1f}",
        ]
        for i, state in enumerate(states)
    ]
    note = (
        f"{images} test images, the same ones for every model. ms: measured for one image in a batch of "
        f"{states[0].speed.batch_size}; peak: weights and activations of such a batch."
    )
    return Table(header, rows, [note])


def pruning_conclusion(states: Sequence[State], metric: str, images: int) -> str:
    """One sentence on what pruning, and recovery if there was any, did to the model."""
    before, last = states[0], states[-1]
    told = "Pruned and recovered" if len(states) > 2 else "Pruned, without recovery training"
    return (
        f"{told}, the model has {last.score.value:.1f} % of {RIGHT[metric].format(f'{images} test')} right against "
        f"{before.score.value:.1f} % before: {change(last.lost, ' points (95 %: ')}, {_verdict(last.lost)}. "
        f"Multiply-adds change by {_relative(last.cost.macs, before.cost.macs)}, stored parameters by "
        f"{_relative(last.cost.stored_params, before.cost.stored_params)}, the time for an image by "
        f"{_relative(last.speed.seconds, before.speed.seconds)}."
    )


def planned_loss(analysis: Analysis) -> Estimate | None:
    """What all accepted steps together lose; None where none was accepted."""
    accepted: list[Step] = [step for step in analysis.steps if step.accepted]
    return accepted[-1].lost if accepted else None


def kept_blocks(plan: Plan) -> list[int]:
    """Numbers of the blocks whose MoE layers stay, ascending."""
    return sorted(part.layer for part in plan.layers if not part.pruned)


def blocks(numbers: Iterable[int]) -> str:
    """`blocks 0 to 3, 5`: runs of three and more are drawn together."""
    listed = sorted(numbers)
    if not listed:
        return "no block"
    runs: list[list[int]] = []
    for number in listed:
        if runs and number == runs[-1][-1] + 1:
            runs[-1].append(number)
        else:
            runs.append([number])
    told = [f"{run[0]} to {run[-1]}" if len(run) > 2 else ", ".join(map(str, run)) for run in runs]
    return f"block{'s' if len(listed) > 1 else ''} {', '.join(told)}"


def change(lost: Estimate, between: str = " (") -> str:
    """A loss as a change, with its interval: `+1.0 (-0.5 to +2.5)`."""
    value, low, high = (0 - x for x in (lost.value, lost.high, lost.low))
    return f"{value:+.1f}{between}{low:+.1f} to {high:+.1f})"


def _cost(cost: Cost) -> list[str]:
    return [millions(cost.activated_params), millions(cost.stored_params), giga_macs(cost.macs)]


def _verdict(lost: Estimate) -> str:
    return "within noise" if lost.low <= 0 <= lost.high else "beyond noise"


def _relative(after: float, before: float) -> str:
    return f"{100 * (after / before - 1):+.0f} %"
