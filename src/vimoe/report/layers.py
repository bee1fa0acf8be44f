"""What the page says of one MoE layer, gathered from the analysis and the plan."""

from __future__ import annotations

from typing import NamedTuple

from vimoe.analysis.analysis_result import ABLATIONS, Analysis, ExpertAnalysis, LayerAnalysis
from vimoe.report.comparison import change
from vimoe.report.results import edited_blocks, fate_of
from vimoe.report.tables import Table
from vimoe.tasks.palette import expert_colours
from vimoe.vit.plan import Plan


class ExpertView(NamedTuple):
    """An expert's card.

    Attributes:
        analysed: What was measured.
        colour: `#rrggbb`, the same in every layer.
        like: The expert whose outputs are most like this one's, and how like; None for an only one.
    """

    analysed: ExpertAnalysis
    colour: str
    like: tuple[int, float] | None


class LayerView(NamedTuple):
    """One layer.

    Attributes:
        analysed: What was measured.
        pruned: Whether it becomes a plain FFN.
        fate: The decision in a word.
        reason: The decision in a sentence.
        ablations: What becomes of the score under every ablation; None where none was tried.
        neighbours: The block before or after, and the share of this layer's choice that is known from it.
        experts: Those that got anything, by load.
    """

    analysed: LayerAnalysis
    pruned: bool
    fate: str
    reason: str
    ablations: Table | None
    neighbours: list[tuple[int, float]]
    experts: list[ExpertView]


def layer_views(plan: Plan, analysis: Analysis) -> list[LayerView]:
    """All layers, the last block first."""
    parts, edited = {part.layer: part for part in plan.layers}, edited_blocks(analysis, plan)
    views = []
    for layer in sorted(analysis.layers, key=lambda layer: -layer.layer):
        part = parts.get(layer.layer)
        reason = part.reason if part else "the plan leaves this layer as it is"
        if layer.layer in edited:
            reason = "edited by hand: the analysis decided otherwise"
        changes = [[ABLATIONS[k.name], change(k.lost)] for k in layer.ablations]
        pairs = [pair for pair in analysis.neighbours if layer.layer in (pair.first, pair.second)]
        views.append(
            LayerView(
                analysed=layer,
                pruned=part is not None and part.pruned,
                fate=fate_of(part.experts if part else None, len(layer.experts)),
                reason=f"{reason[:1].upper()}{reason[1:]}." if reason else "",
                ablations=Table(("ablation of this layer alone", "points (95 %)"), changes) if changes else None,
                neighbours=[(p.first if p.second == layer.layer else p.second, p.agreement) for p in pairs],
                experts=_expert_views(layer),
            )
        )
    return views


def _expert_views(layer: LayerAnalysis) -> list[ExpertView]:
    used = sorted((expert for expert in layer.experts if expert.load), key=lambda expert: -expert.load)
    colours = expert_colours(len(layer.experts))
    views = []
    for one in used:
        alike = [(e.expert, layer.output_similarity[one.expert][e.expert]) for e in used if e is not one]
        like = max(alike, key=lambda pair: pair[1], default=None)
        views.append(ExpertView(one, f"#{colours[one.expert].tobytes().hex()}", like))
    return views
