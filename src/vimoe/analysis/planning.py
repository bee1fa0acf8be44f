"""Which MoE layers to keep: the rule that the paper leaves to the eye.

**The rule.** A layer is pruned once the held-out images show that the model loses at most `max_drop` points by it. The
layers are tried one after the other, the one first whose loss by itself is bounded lowest. Each becomes a plain FFN
on top of the changes accepted before, as `vimoe.prune` would do it, and the images are scored again. It stays pruned
if the upper end of the paired 95 % interval of the loss is at most `max_drop`: of all changes together, against the
model as it is, and of this one, against the changes before it (or what one change gains would pay for what
another loses). Else it stays, for one of two reasons:

- *needed*: the lower end lies above 0, so a loss is shown;
- *not decidable*: the images can show neither. With few images that is what every layer comes to; the plan then says
  about how many would decide.

In the layers that stay, experts that got nothing, and experts that answer as a more used one does, are dropped under
the same condition. Where experts were scored, the others are then tried one by one, the least worthy first by a cheap
criterion, until one of the layer is refused. A criterion gives the order alone; images decide.

**Why so.** A heatmap shows what the routing follows, not what it is worth: a layer may send every class to an expert
of its own and all experts answer alike. So what decides is what happens without the layer. Layers may stand in for
each other, each of two dispensable, not both; so they are tried together. A layer that matters without following the
class is kept, for it may follow something the labels do not name. One that routes by class and does not matter is
pruned, one that routes at random or not at all does not matter, and needs no rule of its own.

The burden of proof lies with pruning, as in a non-inferiority trial: that no loss was seen proves nothing where few
images looked for it. A change that alters no answer at all has an upper end of 196 / (N + 2) points, so fewer than 194
images never prune at the default of 1 point. What a wrong decision costs is not even: a layer kept in vain costs
multiply-adds, a layer pruned wrongly costs accuracy. Each single test lets a loss of just `max_drop` pass in 2.5 % of
samples of many images; where answers are only lost, none won, in 14 % of 194 images, 7 % of 1,000 and 4 % of 10,000
(exact binomial). Trying the cheapest first favours lucky ones; in simulations the plan as a whole still loses more than
`max_drop` in about 1 % of samples, with single experts too; in 10 % where 32 of them all cost a tenth of a point. In
the order of their ablation on the same images that were 91 %: those would go that the images are lucky with.
So ablation gives no order. What is lost is measured before any recovery training, so the plan errs towards
keeping.
"""

import math
from collections.abc import Callable, Mapping, Sequence

from torch import Tensor

from vimoe.analysis.analysis_result import Analysis, LayerAnalysis, Step
from vimoe.analysis.paired import mean_loss
from vimoe.analysis.specialisation import COLLAPSED
from vimoe.vit.plan import LayerPlan, Plan, blocks

# Points that the plan may lose.
MAX_DROP = 1.0
# Images a class below which specialisation reads high, see `specialisation`.
FEW = 20
# Two experts are the same when their answers differ by at most a fifth (root of 2 (1 - 0.98)) of their size.
SAME = 0.98

# Block number to the experts that it keeps, none for a plain FFN; gives the images' scores with these changes.
TryOut = Callable[[Mapping[int, tuple[int, ...]]], Tensor]


def plan_layers(
    layers: Sequence[LayerAnalysis],
    before: Tensor,
    alone: Mapping[int, Tensor],
    try_out: TryOut,
    max_drop: float = MAX_DROP,
    top_k: int = 1,
    order: Sequence[tuple[int, int]] = (),
) -> tuple[tuple[LayerPlan, ...], tuple[Step, ...]]:
    """Eliminate backwards, see above.

    Args:
        layers: What was measured on each layer.
        before: `[N]` scores of the images, 0 to 1, by the model as it is.
        alone: By block number, `[N]` scores with this layer alone pruned.
        try_out: Scores the model with these changes.
        top_k: Experts that every choice needs.
        order: Block and number of experts to try one by one, see `removal_order`.

    Returns:
        What becomes of each layer, by block, and the steps that led to it.
    """
    accepted: dict[int, tuple[int, ...]] = {}
    steps: list[Step] = []
    reasons: dict[int, tuple[str, dict[str, float]]] = {}
    so_far = before
    dropped: dict[int, dict[str, list[int]]] = {layer.layer: {} for layer in layers}  # by reason

    def attempt(layer: LayerAnalysis, drop: tuple[int, ...] = (), why: str = "") -> bool:
        nonlocal so_far
        number = layer.layer
        there = accepted.get(number, tuple(expert.expert for expert in layer.experts))
        kept = tuple(expert for expert in there if expert not in drop) if drop else ()
        scores = try_out({**accepted, number: kept}) if accepted or kept else alone[number]
        lost, own = mean_loss(before, scores), mean_loss(so_far, scores)
        outcome = "needed" if max(own.low, lost.low) > 0 else "undecided"
        step = Step(number, drop, lost, own, "accepted" if max(own.high, lost.high) <= max_drop else outcome)
        steps.append(step)
        if not drop:
            reasons[number] = _reason(step, layer, len(before), sorted(accepted), max_drop)
        if step.accepted:
            accepted[number], so_far = kept, scores
            dropped[number].setdefault(why, []).extend(drop)
        return step.accepted

    for layer in sorted(layers, key=lambda layer: (mean_loss(before, alone[layer.layer]).high, layer.layer)):
        attempt(layer)
    for layer in layers:
        if layer.layer not in accepted and (drop := superfluous(layer, top_k)):
            attempt(layer, drop, "unused or answering like another")
    by_number, refused = {layer.layer: layer for layer in layers}, set[int]()
    for number, expert in order:
        there = accepted.get(number, range(len(by_number[number].experts)))
        possible = number not in refused and expert in there and len(there) > top_k
        if possible and not attempt(by_number[number], (expert,), "shown to cost little"):
            refused.add(number)
    parts = []
    for layer in sorted(layers, key=lambda layer: layer.layer):
        everything = tuple(expert.expert for expert in layer.experts)
        kept = accepted.get(layer.layer, everything)
        words, evidence = reasons[layer.layer]
        for why, gone in dropped[layer.layer].items() if kept else ():
            words += f"; without expert{'s' if len(gone) > 1 else ''} {', '.join(map(str, sorted(gone)))}, {why}"
        parts.append(LayerPlan(layer.layer, kept, layer.specialisation.load, words, evidence))
    return tuple(parts), tuple(steps)


def removal_order(layers: Sequence[LayerAnalysis], criteria: Sequence[str]) -> list[tuple[int, int]]:
    """Block and number of every expert, the least worthy first by the first of the criteria that is not `ablation`.

    Load takes its place where there is no other. Worth compares within a layer: the last of all layers come first.
    """
    criterion, places = next((name for name in criteria if name != "ablation"), "load"), []
    for layer in layers:
        ordered = sorted(layer.experts, key=lambda expert: (expert.scores.get(criterion, expert.load), expert.expert))
        places += [(place, layer.layer, expert.expert) for place, expert in enumerate(ordered)]
    return [(block, expert) for _, block, expert in sorted(places)]


def superfluous(layer: LayerAnalysis, top_k: int = 1) -> tuple[int, ...]:
    """Experts that got nothing, and experts that answer as a more used one does; never so many that < `top_k` stay."""
    by_load = sorted(layer.experts, key=lambda expert: (-expert.load, expert.expert))
    kept: list[int] = []
    for expert in by_load:
        twin = any(layer.output_similarity[expert.expert][other] >= SAME for other in kept)
        if len(kept) < top_k or (expert.load > 0 and not twin):
            kept.append(expert.expert)
    return tuple(sorted(expert.expert for expert in layer.experts if expert.expert not in kept))


def power(analysis: Analysis, plan: Plan) -> str:
    """What the images could have shown, and what they could not decide, in words."""
    halves = [(step.decisive.high - step.decisive.low) / 2 for step in analysis.steps if not step.drop]
    words = f"With {analysis.images} images losses below {min(halves):.1f} points cannot be told from none"
    words += f" ({max(halves):.1f} where a layer changes many answers)." if max(halves) > min(halves) else "."
    open_layers = [step.layer for step in analysis.steps if step.outcome == "undecided" and not step.drop]
    if open_layers:
        images = [part.evidence.get("images_needed", 0) for part in plan.layers if part.layer in open_layers]
        needed = max(images, default=0)  # a plan edited by hand may leave them out
        more = f" (about {needed:,.0f})" if needed else ""
        words += (
            f" {len(open_layers)} of {len(analysis.layers)} layers are not decidable and stay: use more images{more} "
            "by --split or a larger --val-share in training, or allow a larger --max-drop."
        )
    each = analysis.images / len(analysis.class_names)
    if analysis.metric == "top1" and each < FEW:
        words += (
            " With fewer than two images a class specialisation cannot be told."
            if each < 2
            else f" With {each:.0f} images a class the specialisation reads up to 6 percentage points high."
        )
    return words


def _reason(
    step: Step, layer: LayerAnalysis, images: int, pruned: Sequence[int], max_drop: float
) -> tuple[str, dict[str, float]]:
    """Why, in words that tell one number, and the numbers."""
    loss, measure = step.decisive, layer.specialisation
    evidence = {
        "lost": loss.value,
        "lost_low": loss.low,
        "lost_high": loss.high,
        "max_drop": max_drop,
        "images": float(images),
        "normalised_information": measure.normalised,
        "p_value": measure.p_value,
        "effective_experts": measure.effective_experts,
    }
    change, least, most = (0.0 - points for points in (loss.value, loss.high, loss.low))
    others = blocks(pruned)
    context = "" if not pruned else f" and {others}" if loss == step.lost else f", with {others} pruned before it"
    cost = f"{change:+.1f} points without it{context} (95 %: {least:+.1f} to {most:+.1f})"
    allowed = f"the {max_drop:g} point{'' if max_drop == 1 else 's'} allowed"
    if step.accepted:
        words = f"dispensable: {cost}, a loss of at most {allowed}"
    elif step.outcome == "needed":
        words = f"needed: {cost}, {'more than' if loss.low > max_drop else 'a loss, and perhaps more than'} {allowed}"
    else:
        words = f"not decidable with {images} images: {cost}, perhaps more than {allowed}"
        # The interval has to leave out `max_drop`, or 0.
        half, centre = (loss.high - loss.low) / 2, (loss.high + loss.low) / 2
        if distance := max(max_drop - centre, centre):
            evidence["images_needed"] = _rounded(_images_needed(images, half, distance))
            words += f"; about {evidence['images_needed']:,.0f} images would decide"
    return f"{words}; {_routing(layer)}", evidence


def _images_needed(images: int, half: float, wanted: float) -> float:
    """How many images make half an interval, of `half` points with so many, as small as wanted.

    With N images of which a share c of the answers changes it is 196 √(c N + 1) / (N + 2), see `mean_loss`.
    """
    changed = max(0.0, (half * (images + 2) / 196) ** 2 - 1) / images
    middle, rest = (196 / wanted) ** 2 * changed / 2 - 2, (196 / wanted) ** 2 - 4
    return middle + math.sqrt(middle**2 + rest)


def _rounded(number: float) -> float:
    """Up, to two digits."""
    digit = 10 ** max(0, math.floor(math.log10(number)) - 1)
    return float(math.ceil(number / digit) * digit)


def _routing(layer: LayerAnalysis) -> str:
    measure = layer.specialisation
    if measure.effective_experts < COLLAPSED:
        return "its routing has collapsed to one expert"
    if not measure.follows_class:
        return f"no sign that its routing follows the class (p = {measure.p_value:.2g})"
    return f"its {measure.name} is {100 * measure.normalised:.0f} %"
