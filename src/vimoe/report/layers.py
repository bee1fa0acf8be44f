"""What the page tells of one MoE layer, gathered from the counts, the analysis and the plan."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from markupsafe import Markup

from vimoe.analysis.analysis_result import ABLATIONS, Analysis, Estimate, LayerAnalysis
from vimoe.analysis.counts import RoutingCounts
from vimoe.report.charts import hex_colour, interval_bar, load_chart, span_of
from vimoe.report.heatmap import Heatmap, heatmap
from vimoe.report.results import change
from vimoe.tasks.palette import expert_colours
from vimoe.vit.plan import LayerPlan, Plan

# Classes that an expert's card names.
NAMED = 5


class Bar(NamedTuple):
    """A value with its interval.

    Attributes:
        words: What it is.
        drawn: As a bar.
        told: As text.
    """

    words: str
    drawn: Markup
    told: str


class ExpertView(NamedTuple):
    """An expert's card.

    Attributes:
        number: In its layer.
        colour: The same in every layer.
        load: Share of the choices.
        classes: Name, share of the expert's choices, and lift of its most frequent classes.
        others: How many more classes were named by the analysis.
        confident: Places of the images that the router was surest of.
        unsure: Places of those that it was least sure of.
        like: The expert whose answers are most like this one's, and how like; None for an only one.
    """

    number: int
    colour: str
    load: float
    classes: list[tuple[str, float, float]]
    others: int
    confident: list[int]
    unsure: list[int]
    like: tuple[int, float] | None


class LayerView(NamedTuple):
    """One layer.

    Attributes:
        analyzed: What was measured.
        heatmap: Classes × experts.
        specialised: How much of the class its choices tell, of the most they could.
        part: What becomes of it, None where the plan leaves it as it is.
        without: What becomes of the score without it.
        ablations: What becomes of the score under every ablation.
        neighbours: The block before or after, and the share of this layer's choice that is known from it.
        experts: Those that got anything.
        unused: Numbers of those that did not.
        load: Load over the epochs, None where it is not known.
        colours: By expert.
    """

    analyzed: LayerAnalysis
    heatmap: Heatmap
    specialised: Bar
    part: LayerPlan | None
    without: Bar | None
    ablations: list[Bar]
    neighbours: list[tuple[int, float]]
    experts: list[ExpertView]
    unused: list[int]
    load: Markup | None
    colours: list[str]

    @property
    def number(self) -> int:
        """Its block."""
        return self.analyzed.layer

    @property
    def pruned(self) -> bool:
        """Whether it becomes a plain FFN."""
        return self.part is not None and self.part.pruned

    @property
    def fate(self) -> str:
        """The decision in a word."""
        if self.part is None or len(self.part.experts) == self.heatmap.experts:
            return "keep"
        return "prune" if self.pruned else f"keep {len(self.part.experts)} of {self.heatmap.experts} experts"


def layer_views(
    counts: RoutingCounts,
    plan: Plan,
    analysis: Analysis,
    rows: Sequence[Mapping[str, Any]],
    shown: Mapping[int, Any],
) -> list[LayerView]:
    """All layers, the last block first.

    Args:
        counts: Routing counts.
        plan: What becomes of the layers.
        analysis: What was measured.
        rows: The epochs of the run that trained the routers, as in `metrics.jsonl`.
        shown: By place, the images that there are thumbnails of.
    """
    parts = {part.layer: part for part in plan.layers}
    return [
        _layer_view(layer, counts, parts.get(layer.layer), analysis, rows, shown)
        for layer in sorted(analysis.layers, key=lambda layer: -layer.layer)
    ]


def change_span(analysis: Analysis) -> tuple[float, float]:
    """The scale of all bars that tell a change of the score, in points."""
    lost = [ablation.lost for layer in analysis.layers for ablation in layer.ablations]
    return span_of([-end for estimate in lost for end in (estimate.low, estimate.high)])


def _layer_view(
    layer: LayerAnalysis,
    counts: RoutingCounts,
    part: LayerPlan | None,
    analysis: Analysis,
    rows: Sequence[Mapping[str, Any]],
    shown: Mapping[int, Any],
) -> LayerView:
    number, measure, span = layer.layer, layer.specialisation, change_span(analysis)
    drawn = heatmap(counts, number)
    colours = [hex_colour(colour) for colour in expert_colours(drawn.experts).tolist()]
    bars = {k.name: _change_bar(ABLATIONS[k.name], k.lost, span) for k in layer.ablations}
    loads = [row["routing"][str(number)]["load"] for row in rows]
    percents = (100 * measure.normalised, 100 * measure.low, 100 * measure.high)
    told = "{:.0f} % ({:.0f} to {:.0f})".format(*percents)
    return LayerView(
        analyzed=layer,
        heatmap=drawn,
        specialised=Bar("", interval_bar(measure.normalised, measure.low, measure.high, (0.0, 1.0)), told),
        part=part,
        without=bars.get("pruned"),
        ablations=list(bars.values()),
        neighbours=_neighbours(number, analysis),
        experts=_expert_views(layer, counts.class_names, colours, shown),
        unused=[expert.expert for expert in layer.experts if not expert.load],
        load=load_chart(loads) if loads else None,
        colours=colours,
    )


def _change_bar(words: str, lost: Estimate, span: tuple[float, float]) -> Bar:
    return Bar(words, interval_bar(0 - lost.value, 0 - lost.high, 0 - lost.low, span), change(lost))


def _neighbours(number: int, analysis: Analysis) -> list[tuple[int, float]]:
    pairs = [pair for pair in analysis.neighbours if number in (pair.first, pair.second)]
    return [(pair.first if pair.second == number else pair.second, pair.agreement) for pair in pairs]


def _expert_views(
    layer: LayerAnalysis, class_names: Sequence[str], colours: Sequence[str], shown: Mapping[int, Any]
) -> list[ExpertView]:
    views = []
    for expert in sorted(layer.experts, key=lambda expert: -expert.load):
        if not expert.load:
            continue
        alike = [
            (other, value)
            for other, value in enumerate(layer.output_similarity[expert.expert])
            if other != expert.expert and layer.experts[other].load
        ]
        views.append(
            ExpertView(
                number=expert.expert,
                colour=colours[expert.expert],
                load=expert.load,
                classes=[(class_names[c.label], c.share, c.lift) for c in expert.classes[:NAMED]],
                others=len(expert.classes[NAMED:]),
                confident=[place for place in expert.confident if place in shown],
                unsure=[place for place in expert.unsure if place in shown],
                like=max(alike, key=lambda pair: pair[1], default=None),
            )
        )
    return views
