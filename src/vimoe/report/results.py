"""A plan in words and tables: what each step of the elimination cost, and what the plan makes of the model."""

from vimoe.analysis.analysis_result import Analysis, LayerAnalysis
from vimoe.analysis.paired import Estimate
from vimoe.analysis.planning import power
from vimoe.report.comparison import Variant, change, comparison_sentence, comparison_table, cost_changes
from vimoe.report.tables import Table
from vimoe.vit.cost import Cost
from vimoe.vit.plan import Plan, blocks

_WHY = {"accepted": "", "needed": ", needed", "undecided": ", not decidable"}
_DROP = {"accepted": "dropped", "needed": "kept, needed", "undecided": "kept, not decidable"}


def plan_table(analysis: Analysis, plan: Plan, before: Cost, after: Cost) -> Table:
    """The model as it is, and as the plan would leave it before any recovery training."""
    variants = _variants(analysis, plan, before, after)
    note = "They made the plan; “vimoe prune” measures the planned model on the test images."
    return comparison_table(variants, analysis.metric, analysis.images, note, analysis.split)


def plan_sentence(analysis: Analysis, plan: Plan, before: Cost, after: Cost) -> str:
    """Which layers the plan keeps, and what that changes."""
    kept, total = [part.layer for part in plan.layers if not part.pruned], len(analysis.layers)
    intact, *planned = _variants(analysis, plan, before, after)
    if edited := edited_blocks(analysis, plan):
        costs = cost_changes(before, after)
        return f"The plan was edited by hand in {blocks(edited)} and keeps MoE layers in {blocks(kept)}. {costs}."
    if not planned:
        limit = _points(analysis.max_drop)
        return f"All {total} MoE layers stay as they are: no change was shown to cost at most {limit}."
    if len(kept) == total:
        decision = f"All {total} MoE layers stay, some with fewer experts."
    elif not kept:
        decision = f"None of the {total} MoE layers is needed: all become plain FFNs."
    else:
        stay = "stays" if len(kept) == 1 else "stay"
        decision = f"{len(kept)} of {total} MoE layers {stay}, {blocks(kept)}; the others become plain FFNs."
    return f"{decision} {comparison_sentence(planned[0], intact, analysis.metric, analysis.images, analysis.split)}"


def _variants(analysis: Analysis, plan: Plan, before: Cost, after: Cost) -> list[Variant]:
    """The intact model; and the planned one, where a change was accepted and nothing was edited by hand."""
    found, accepted = [Variant("as it is", analysis.score, before)], [step for step in analysis.steps if step.accepted]
    if accepted and not edited_blocks(analysis, plan):
        value = analysis.score.value - accepted[-1].lost.value
        planned = Estimate(value, value, value)
        found.append(Variant("as planned, before any recovery training", planned, after, accepted[-1].lost))
    return found


def decision_table(analysis: Analysis, plan: Plan) -> Table:
    """What every step of the elimination cost, in the order in which they were tried, and what the plan decides."""
    edited = edited_blocks(analysis, plan)
    header = ("block", f"{analysis.measure} (95 %)", "this step (95 %)", "all steps so far (95 %)", "decision")
    rows = []
    for step in analysis.steps:
        layer = analysis.layer(step.layer)
        m = layer.specialisation
        fate = fate_of(layer, plan) + (", edited by hand" if step.layer in edited else _WHY[step.outcome])
        share = "{:.0f} % ({:.0f} to {:.0f})".format(*(100 * x for x in (m.normalised, m.low, m.high)))
        cells = [str(step.layer), share, change(step.own), change(step.lost), fate]
        if step.drop:
            cells[0] += f", without expert{'s' if len(step.drop) > 1 else ''} {', '.join(map(str, step.drop))}"
            cells[1], cells[4] = "", _DROP[step.outcome]
        rows.append(cells)
    notes = [
        "Changes are percentage points of the score when the layer becomes a plain FFN, with paired 95 % intervals. "
        "“This step” is against the model with the steps accepted before it, “all steps so far” against the intact "
        f"model. A step is accepted if both intervals show a loss of at most {_points(analysis.max_drop)}. "
        "Specialisation is 0 % where routing ignores the class, 100 % where the class decides the expert."
    ]
    if analysis.steps:
        notes.append(power(analysis, plan))
    if any(layer.specialisation.guided for layer in analysis.layers):
        notes.append("Training guided routing to super-classes: that it follows the class was taught, not found.")
    return Table(header, rows, notes)


def fate_of(layer: LayerAnalysis, plan: Plan) -> str:
    """A plan's decision on a layer in a word."""
    part = next((part for part in plan.layers if part.layer == layer.layer), None)
    if part is None or len(part.experts) == len(layer.experts):
        return "keep"
    kept, total = len(part.experts), len(layer.experts)
    return f"{'merge into' if part.merge else 'keep'} {kept} of {total} experts" if kept else "prune"


def reason_of(number: int, analysis: Analysis, plan: Plan) -> str:
    """A plan's decision on a block in a sentence."""
    if number in edited_blocks(analysis, plan):
        return "Edited by hand: the analysis decided otherwise."
    reason = next((part.reason for part in plan.layers if part.layer == number), "the plan leaves this layer as it is")
    return f"{reason[:1].upper()}{reason[1:]}." if reason else ""


def edited_blocks(analysis: Analysis, plan: Plan) -> list[int]:
    """Blocks for which the plan says something else than the analysis' steps led to."""
    found = {layer.layer: {expert.expert for expert in layer.experts} for layer in analysis.layers}
    planned = {part.layer: set(part.experts) for part in plan.layers}
    wanted = dict(found)
    for step in analysis.steps:
        if step.accepted:
            wanted[step.layer] = wanted[step.layer] - set(step.drop) if step.drop else set()
    merged = {part.layer for part in plan.layers if part.merge}
    return [n for n, experts in wanted.items() if n in merged or planned.get(n, found[n]) != experts]


def _points(number: float) -> str:
    return f"{number:g} point{'' if number == 1 else 's'}"
