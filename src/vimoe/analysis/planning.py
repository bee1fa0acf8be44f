"""Which MoE layers to keep: the rule that the paper leaves to the eye."""

from __future__ import annotations

from collections.abc import Mapping

from vimoe.analysis.specialisation import Specialisation
from vimoe.vit.plan import LayerPlan, Plan

# A layer that tells less than this share of what the most telling layer does is pruned. The paper states no rule.
# Read off its Figure 5 (ADE20K, all 12 layers MoE), this one keeps the last layer alone, which is the paper's own
# choice there; in the demo it keeps the last two layers at two seeds of three, and six at the third.
KEEP_FROM = 0.75
SIGNIFICANCE = 0.01


def choose_layers(measures: Mapping[int, Specialisation], keep_from: float = KEEP_FROM) -> Plan:
    """Keep the layers whose routing follows the class, beyond chance and nearly as far as the best layer's does.

    A layer stays when its normalised mutual information is at least `keep_from` of the largest of all layers,
    and shuffled labels reach it in less than 1 % of cases. Where no layer is beyond chance, all become plain FFNs.

    Args:
        measures: By block number.
        keep_from: Share of the largest normalised mutual information, 0 to 1.
    """
    best = max((measure.normalised for measure in measures.values()), default=0.0)
    return Plan(tuple(_decide(layer, measure, keep_from * best) for layer, measure in sorted(measures.items())))


def _decide(layer: int, measure: Specialisation, least: float) -> LayerPlan:
    told = f"its routing tells {measure.normalised:.0%} of what it could about the class"
    if measure.p_value >= SIGNIFICANCE:
        return LayerPlan(layer, (), measure.load, f"{told}, no more than chance would (p = {measure.p_value:.2g})")
    if measure.normalised < least:
        return LayerPlan(layer, (), measure.load, f"{told}, too little beside the best layer (from {least:.0%} on)")
    return LayerPlan(layer, tuple(range(len(measure.load))), measure.load, told)
