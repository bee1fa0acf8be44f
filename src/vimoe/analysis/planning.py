"""Which MoE layers to keep: the rule that the paper leaves to the eye.

**The rule.** The layers are tried one after the other, the one first that costs least by itself. Each one becomes a
plain FFN on top of all changes accepted before, as `vimoe.prune` would do it, and the held-out images are scored
again. It stays pruned unless points are lost beyond noise, that is, unless the lower end of a paired 95 % interval
lies above `max_drop`: neither by all changes together, against the model as it is, nor by this one, against the changes
before it (or what one change gains would pay for what another loses). In the layers that stay, experts that got
nothing, and experts that answer as a more used one does, are dropped under the same condition.

**Why so.** A heatmap shows what the routing follows, not what it is worth: a layer may send every class to an expert
of its own and all experts answer alike. So what decides is what happens without the layer. Layers may stand in for
each other, each of two dispensable, not both; so they are tried together. A layer that matters without following the
class is kept, for it may follow something the labels do not name. One that routes by class and does not matter is
pruned, one that routes at random or not at all does not matter, and needs no rule of its own.

What is lost is measured before any recovery training, so the plan errs towards keeping; and a loss that the images
at hand cannot tell from noise counts as none, so with few of them it errs towards pruning. `max_drop` is the only knob.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from torch import Tensor

from vimoe.analysis.analysis_result import Estimate, LayerAnalysis, Step
from vimoe.analysis.paired import mean_loss
from vimoe.vit.plan import LayerPlan, Plan

SIGNIFICANCE = 0.01
# Two experts are the same when their answers differ by at most a fifth (root of 2 (1 - 0.98)) of their size.
SAME = 0.98

# Block number to the experts that it keeps, none for a plain FFN; gives the images' scores with these changes.
TryOut = Callable[[Mapping[int, tuple[int, ...]]], Tensor]


def plan_layers(
    layers: Sequence[LayerAnalysis], before: Tensor, try_out: TryOut, max_drop: float = 0.0, top_k: int = 1
) -> tuple[Plan, tuple[Step, ...]]:
    """Eliminate backwards, see above.

    Args:
        layers: What was measured on each layer.
        before: `[N]` scores of the images, 0 to 1, by the model as it is.
        try_out: Scores the model with these changes.
        max_drop: Percentage points that may be lost beyond noise.
        top_k: Experts that every choice needs.

    Returns:
        The plan, by block, and the steps that led to it.
    """
    accepted: dict[int, tuple[int, ...]] = {}
    steps: list[Step] = []
    so_far = before

    def attempt(number: int, kept: tuple[int, ...], drop: tuple[int, ...]) -> None:
        nonlocal so_far
        scores = try_out({**accepted, number: kept})
        lost, own = mean_loss(before, scores), mean_loss(so_far, scores)
        steps.append(Step(number, drop, lost, own, max(lost.low, own.low) <= max_drop))
        if steps[-1].accepted:
            accepted[number], so_far = kept, scores

    for layer in sorted(layers, key=lambda layer: (_alone(layer).value, layer.layer)):
        attempt(layer.layer, (), ())
    for layer in layers:
        if layer.layer not in accepted and (drop := superfluous(layer, top_k)):
            attempt(layer.layer, tuple(e.expert for e in layer.experts if e.expert not in drop), drop)
    decisive = {step.layer: step for step in steps if not step.drop}
    parts = [_part(layer, accepted, decisive[layer.layer], max_drop) for layer in sorted(layers, key=lambda x: x.layer)]
    return Plan(tuple(parts)), tuple(steps)


def superfluous(layer: LayerAnalysis, top_k: int = 1) -> tuple[int, ...]:
    """Experts that got nothing, and experts that answer as a more used one does; never so many that < `top_k` stay."""
    by_load = sorted(layer.experts, key=lambda expert: (-expert.load, expert.expert))
    kept: list[int] = []
    for expert in by_load:
        twin = any(layer.output_similarity[expert.expert][other] >= SAME for other in kept)
        if len(kept) < top_k or (expert.load > 0 and not twin):
            kept.append(expert.expert)
    return tuple(sorted(expert.expert for expert in layer.experts if expert.expert not in kept))


def _alone(layer: LayerAnalysis) -> Estimate:
    """What pruning this layer and no other costs."""
    return next(ablation.lost for ablation in layer.ablations if ablation.name == "pruned")


def _part(layer: LayerAnalysis, accepted: Mapping[int, tuple[int, ...]], step: Step, max_drop: float) -> LayerPlan:
    everything = tuple(expert.expert for expert in layer.experts)
    kept = accepted.get(layer.layer, everything)
    measure = layer.specialisation
    evidence = {
        "lost": step.lost.value,
        "lost_low": step.lost.low,
        "lost_high": step.lost.high,
        "lost_by_this": step.own.value,
        "lost_by_this_low": step.own.low,
        "lost_by_this_high": step.own.high,
        "lost_alone": _alone(layer).value,
        "max_drop": max_drop,
        "normalised_information": measure.normalised,
        "p_value": measure.p_value,
        "effective_experts": measure.effective_experts,
    }
    # The change that spoke louder: this one by itself, or all so far.
    worst = max(step.own, step.lost, key=lambda lost: lost.low)
    by = "by itself" if worst is step.own else "with all changes before it"
    change, least, most = (0.0 - lost for lost in (worst.value, worst.high, worst.low))
    cost = f"{change:+.1f} points without it, {by} (95 %: {least:+.1f} to {most:+.1f})"
    limit = "noise" if max_drop == 0 else f"noise and the {max_drop:g} points that may be lost"
    if not kept:
        reason = f"dispensable: {cost}, within {limit}; {_told(layer)}"
    else:
        reason = f"needed: {cost}, beyond {limit}; {_told(layer)}"
        if kept != everything:
            gone = [str(expert) for expert in everything if expert not in kept]
            reason += f"; without experts {', '.join(gone)}, which are unused or answer like another"
    return LayerPlan(layer.layer, kept, measure.load, reason, evidence)


def _told(layer: LayerAnalysis) -> str:
    measure = layer.specialisation
    if measure.effective_experts < 1.05:
        return "its routing has collapsed to one expert"
    if measure.p_value > SIGNIFICANCE:
        return f"its routing follows the class no more than chance would (p = {measure.p_value:.2g})"
    return f"its routing tells {measure.normalised:.0%} of what it could about the class"
