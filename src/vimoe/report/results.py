"""A plan in words and tables: what each step of the elimination cost, and what the plan makes of the model."""

from __future__ import annotations

from collections.abc import Iterable

from vimoe.analysis.analysis_result import Analysis
from vimoe.analysis.paired import Estimate
from vimoe.analysis.planning import power
from vimoe.analysis.specialisation import Specialisation
from vimoe.report.comparison import COST, COST_NOTE, change, cost_cells, relative, verdict, with_interval
from vimoe.report.tables import Table, metric_name
from vimoe.vit.cost import Cost
from vimoe.vit.plan import Plan


def plan_table(analysis: Analysis, plan: Plan, before: Cost, after: Cost) -> Table:
    """The model as it is, and as the plan would leave it before any recovery training."""
    header = ("model", f"{metric_name(analysis.metric)} % (95 %)", "change (95 %)", *COST)
    score, lost = analysis.score, planned_loss(analysis)
    everything = blocks(layer.layer for layer in analysis.layers)
    rows = [[f"as it is: MoE in {everything}", with_interval(score), "", *cost_cells(before)]]
    if lost is not None and not edited_blocks(analysis, plan):
        planned = f"as planned: MoE in {blocks(kept_blocks(plan))}"
        rows.append([planned, f"{score.value - lost.value:.1f}", change(lost), *cost_cells(after)])
    note = (
        f"Measured on the {analysis.images} images of “{analysis.split}”, the ones that made the plan. "
        f"“vimoe prune” measures the planned model on the test images. {COST_NOTE}"
    )
    return Table(header, rows, [note])


def plan_sentence(analysis: Analysis, plan: Plan, before: Cost, after: Cost) -> str:
    """Which layers the plan keeps, and what that changes."""
    kept, total, lost = kept_blocks(plan), len(analysis.layers), planned_loss(analysis)
    costs = (
        f"Multiply-adds {relative(after.macs, before.macs)}, stored parameters "
        f"{relative(after.stored_params, before.stored_params)}."
    )
    if edited := edited_blocks(analysis, plan):
        return f"The plan was edited by hand in {blocks(edited)} and keeps MoE layers in {blocks(kept)}. {costs}"
    if lost is None:
        limit = f"{analysis.max_drop:g} point{'' if analysis.max_drop == 1 else 's'}"
        return f"All {total} MoE layers stay as they are: no change was shown to cost at most {limit}."
    if len(kept) == total:
        decision = f"All {total} MoE layers stay, some with fewer experts"
    elif not kept:
        decision = f"None of the {total} MoE layers is needed: all become plain FFNs"
    else:
        decision = f"{len(kept)} of {total} MoE layers stay, {blocks(kept)}; the others become plain FFNs"
    return (
        f"{decision}. On the {analysis.images} images of “{analysis.split}” this changes the "
        f"{metric_name(analysis.metric)} by {change(lost, ' points (95 %: ')}, {verdict(lost)}, before any recovery "
        f"training. {costs}"
    )


def decision_table(analysis: Analysis, plan: Plan) -> Table:
    """What every step of the elimination cost, in the order in which they were tried, and what the plan decides."""
    edited, parts = edited_blocks(analysis, plan), {part.layer: part for part in plan.layers}
    header = ("block", "specialisation (95 %)", "this step (95 %)", "all steps so far (95 %)", "decision")
    rows = []
    for step in analysis.steps:
        layer = analysis.layer(step.layer)
        fate = fate_of(parts[step.layer].experts if step.layer in parts else None, len(layer.experts))
        if step.outcome == "undecided" and fate != "prune":
            fate += ", not decidable"
        if step.layer in edited:
            fate += ", edited by hand"
        cells = [str(step.layer), share(layer.specialisation), change(step.own), change(step.lost), fate]
        if step.drop:
            cells[0] += f", without expert{'s' if len(step.drop) > 1 else ''} {', '.join(map(str, step.drop))}"
            cells[1], cells[4] = "", step.outcome
        rows.append(cells)
    notes = [
        "Changes are percentage points of the score when the layer becomes a plain FFN, with paired 95 % intervals. "
        "“This step” is against the model with the steps accepted before it, “all steps so far” against the intact "
        "model. A step is accepted if both intervals show a loss of at most "
        f"{analysis.max_drop:g} points. Specialisation is "
        "0 % where routing ignores the class, 100 % where the class decides the expert."
    ]
    if analysis.steps:
        notes.append(power(analysis, plan))
    return Table(header, rows, notes)


def fate_of(experts: tuple[int, ...] | None, total: int) -> str:
    """A plan's decision on a layer in a word.

    Args:
        experts: The experts that it keeps; None where the plan does not name the layer.
        total: Experts of the layer.
    """
    if experts is None or len(experts) == total:
        return "keep"
    return f"keep {len(experts)} of {total} experts" if experts else "prune"


def edited_blocks(analysis: Analysis, plan: Plan) -> list[int]:
    """Blocks for which the plan says something else than the analysis' steps led to."""
    found = {layer.layer: {expert.expert for expert in layer.experts} for layer in analysis.layers}
    planned = {part.layer: set(part.experts) for part in plan.layers}
    wanted = dict(found)
    for step in analysis.steps:
        if step.accepted:
            wanted[step.layer] = found[step.layer] - set(step.drop) if step.drop else set()
    return [number for number, experts in wanted.items() if planned.get(number, found[number]) != experts]


def planned_loss(analysis: Analysis) -> Estimate | None:
    """What all accepted steps together lose; None where none was accepted."""
    accepted = [step for step in analysis.steps if step.accepted]
    return accepted[-1].lost if accepted else None


def kept_blocks(plan: Plan) -> list[int]:
    """Numbers of the blocks whose MoE layers stay, ascending."""
    return sorted(part.layer for part in plan.layers if not part.pruned)


def share(measure: Specialisation) -> str:
    """`60 % (50 to 70)`: how far the class decides the expert."""
    return f"{100 * measure.normalised:.0f} % ({100 * measure.low:.0f} to {100 * measure.high:.0f})"


def blocks(numbers: Iterable[int]) -> str:
    """`blocks 0 to 3, 5`: three and more in a row are written as a range."""
    listed = sorted(numbers)
    if not listed:
        return "no block"
    runs: list[list[int]] = []
    for number in listed:
        if runs and number == runs[-1][-1] + 1:
            runs[-1].append(number)
        else:
            runs.append([number])
    words = [f"{run[0]} to {run[-1]}" if len(run) > 2 else ", ".join(map(str, run)) for run in runs]
    return f"block{'s' if len(listed) > 1 else ''} {', '.join(words)}"
