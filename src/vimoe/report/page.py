"""The report: one HTML file that opens offline and explains a model's MoE layers to somebody who was not there."""

import platform
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import timm
import torch
from jinja2 import Environment, PackageLoader, select_autoescape
from matplotlib.figure import Figure

import vimoe
from vimoe.analysis.analysis_result import ABLATIONS, Analysis, LayerAnalysis
from vimoe.analysis.counts import RoutingCounts
from vimoe.analysis.paired import Estimate
from vimoe.analysis.patches import ExpertMap
from vimoe.files import write_text
from vimoe.report.comparison import change
from vimoe.report.expert_maps import expert_maps
from vimoe.report.expert_table import agreement_table, expert_table
from vimoe.report.gallery import Thumbnail
from vimoe.report.heatmap import routing_heatmaps, row_order
from vimoe.report.plots import ablations, load_over_time, removal_curve, specialisation_by_depth, training_curves
from vimoe.report.results import decision_table, fate_of, reason_of
from vimoe.report.saving import embed, embed_pixels, save_figure
from vimoe.report.tables import Table
from vimoe.tasks.palette import expert_colours
from vimoe.vit.plan import Plan


@dataclass(frozen=True)
class Report:
    """What a report says."""

    title: str
    conclusion: str
    counts: RoutingCounts  # routing counts of the model whose MoE layers are shown
    analysis: Analysis  # what was measured on it
    plan: Plan
    # Name of a run to the rows of its `metrics.jsonl`; the first with the routing of all layers trained them.
    rows: Mapping[str, Sequence[Mapping[str, Any]]]
    recipes: Mapping[str, str]  # name of a run to its recipe as YAML
    command: str  # what makes this report again
    tables: Sequence[Table] = ()
    images: Mapping[int, Thumbnail] = field(default_factory=dict)  # by place, images that the analysis names
    maps: Sequence[ExpertMap] = ()
    control: tuple[str, Estimate] | None = None  # name and score of a dense model on the analysis' images


# What a figure shows, for those who cannot see it.
_WORDS = {
    "heatmaps": "class by expert heatmaps of all MoE layers",
    "depth": "specialisation by block",
    "removal": "the score as MoE layers are removed one after the other",
    "ablations": "change of the score when one layer is ablated",
    "curves": "training loss, validation metric and experts in use over the epochs",
    "load": "load of the experts over the epochs",
}


def write_page(report: Report, path: Path) -> Path:
    """Write the page and, under `figures/` beside it, its figures as PNG, SVG and PDF; returns `path`."""
    drawn = figures(report)
    for name, figure in drawn.items():
        save_figure(figure, path.parent / "figures" / name)
    write_text(path, page(report, drawn))
    return path


def page(report: Report, drawn: Mapping[str, Figure] | None = None) -> str:
    """The page as HTML; `drawn` are its `figures`, if they were drawn already."""
    environment = Environment(
        loader=PackageLoader("vimoe.report", "."),
        autoescape=select_autoescape(default=True),
        trim_blocks=True,
        lstrip_blocks=True,
    )
    drawn, analysis = drawn or figures(report), report.analysis
    measures = {layer.layer: layer.specialisation for layer in analysis.layers}
    heatmaps = {
        n: embed(
            routing_heatmaps(report.counts, measures, report.plan, blocks=[n], unit=analysis.unit),
            f"heatmap-{n}",
            f"heatmap of block {n}",
        )
        for n in measures
    }
    return environment.get_template("page.html.j2").render(
        report=report,
        analysis=analysis,
        units="patches" if analysis.unit == "patch" else "images",
        decisions=decision_table(analysis, report.plan),
        experts=[table for table in (agreement_table(analysis), expert_table(analysis)) if table],
        layers=sorted(analysis.layers, key=lambda layer: -layer.layer),
        pruned=[part.layer for part in report.plan.layers if part.pruned],
        fates={layer.layer: fate_of(layer, report.plan) for layer in analysis.layers},
        reasons={layer.layer: reason_of(layer.layer, analysis, report.plan) for layer in analysis.layers},
        ablations=ABLATIONS,
        change=change,
        nearest=nearest,
        colours=["#" + colour.tobytes().hex() for colour in expert_colours(max(report.counts.num_experts))],
        drawings={name: embed(figure, name, _WORDS[name]) for name, figure in drawn.items() if name in _WORDS},
        heatmaps=heatmaps,
        maps=embed_pixels(drawn["expert_maps"]) if "expert_maps" in drawn else None,
        hover=hover_data(report.counts),
        versions=f"vimoe {vimoe.__version__}, torch {torch.__version__}, timm {timm.__version__}, "
        f"Python {platform.python_version()}",
    )


def figures(report: Report) -> dict[str, Figure]:
    """By file name, the page's figures."""
    analysis, plan = report.analysis, report.plan
    measures = {layer.layer: layer.specialisation for layer in analysis.layers}
    drawn = {
        "heatmaps": routing_heatmaps(report.counts, measures, plan, unit=analysis.unit),
        "depth": specialisation_by_depth(measures, plan),
    }
    if any(not step.drop for step in analysis.steps):
        drawn["removal"] = removal_curve(analysis, report.control)
    if any(layer.ablations for layer in analysis.layers):
        drawn["ablations"] = ablations(analysis)
    routed = routed_rows(report)
    if some := {name: history for name, history in report.rows.items() if history}:
        drawn["curves"] = training_curves(some, routed)
    if routed:
        drawn["load"] = load_over_time(routed)
    if report.maps:
        drawn["expert_maps"] = expert_maps(report.maps, report.counts)
    return drawn


def nearest(layer: LayerAnalysis, expert: int) -> tuple[int, float] | None:
    """The used expert whose outputs are most like another one's, and how like; None for an only one."""
    others = [e.expert for e in layer.experts if e.load and e.expert != expert]
    return max(((e, layer.output_similarity[expert][e]) for e in others), key=lambda pair: pair[1], default=None)


def routed_rows(report: Report) -> Sequence[Mapping[str, Any]]:
    """The rows of the run that trained the routers: the first one that has all layers."""
    wanted = {str(number) for number in report.counts.layers}
    found = (rows for rows in report.rows.values() if rows and wanted <= set(rows[-1].get("routing", {})))
    return next(found, [])


def hover_data(counts: RoutingCounts) -> dict[str, Any]:
    """What the page's script reads: class names, and by block the order of the rows and their counts."""
    layers = {
        str(number): {
            "experts": counts.layer(number).shape[1],
            "order": row_order(counts, number).tolist(),
            "counts": counts.layer(number).ravel().tolist(),
        }
        for number in counts.layers
    }
    return {"classes": list(counts.class_names), "layers": layers}
