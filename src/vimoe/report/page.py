"""The report: one HTML file that opens offline and explains a model's MoE layers to somebody who was not there."""

from __future__ import annotations

import platform
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import timm
import torch
from jinja2 import Environment, PackageLoader, select_autoescape
from markupsafe import Markup
from matplotlib.figure import Figure

import vimoe
from vimoe.analysis.analysis_result import Analysis
from vimoe.analysis.counts import RoutingCounts
from vimoe.analysis.patches import ExpertMap
from vimoe.files import write_text
from vimoe.report.charts import hex_colour, line_chart, span_labels
from vimoe.report.comparison import Variant
from vimoe.report.expert_maps import expert_maps, served_classes, shown_classes
from vimoe.report.gallery import Thumbnail, map_panels
from vimoe.report.heatmap import hover_data, scale
from vimoe.report.layers import change_span, layer_views
from vimoe.report.plots import (
    ablations,
    load_over_time,
    metric_of,
    routing_heatmaps,
    specialisation_by_depth,
    training_curves,
)
from vimoe.report.results import variants_table
from vimoe.report.saving import save_figure
from vimoe.report.tables import Table
from vimoe.tasks.palette import class_colours
from vimoe.vit.plan import Plan


@dataclass(frozen=True)
class Report:
    """What a report tells.

    Attributes:
        title: Its heading.
        conclusion: One sentence.
        counts: Routing counts of the model whose MoE layers are shown.
        analysis: What was measured on it.
        plan: What became of each MoE layer, and why.
        rows: Name of a run to the rows of its `metrics.jsonl`; the last one with routing trained the routers.
        recipes: Name of a run to its recipe as YAML.
        command: What makes this report again.
        variants: Models that were trained side by side.
        tables: Other results.
        images: By place, images that the analysis names.
        maps: Images with an expert for every patch.
    """

    title: str
    conclusion: str
    counts: RoutingCounts
    analysis: Analysis
    plan: Plan
    rows: Mapping[str, Sequence[Mapping[str, Any]]]
    recipes: Mapping[str, str]
    command: str
    variants: Sequence[Variant] = ()
    tables: Sequence[Table] = ()
    images: Mapping[int, Thumbnail] = field(default_factory=dict)
    maps: Sequence[ExpertMap] = ()


def write_page(report: Report, path: Path) -> Path:
    """Write the page and, under `figures/` beside it, its figures for papers as PNG, SVG and PDF.

    Returns:
        `path`.
    """
    for name, figure in paper_figures(report).items():
        save_figure(figure, path.parent / "figures" / name)
    write_text(path, page(report))
    return path


def page(report: Report) -> str:
    """The page as HTML."""
    environment = Environment(
        loader=PackageLoader("vimoe.report", "."),
        autoescape=select_autoescape(default=True),
        trim_blocks=True,
        lstrip_blocks=True,
    )
    routed = routed_rows(report)
    classes = len(report.counts.class_names)
    sizes = dict(zip(report.counts.layers, report.counts.num_experts, strict=True))
    return environment.get_template("page.html.j2").render(
        report=report,
        analysis=report.analysis,
        unit=report.analysis.unit,
        tables=([variants_table(report.variants)] if report.variants else []) + list(report.tables),
        layers=layer_views(report.counts, report.plan, report.analysis, routed, report.images),
        change_scale=span_labels(change_span(report.analysis)),
        scale=scale(),
        hover=hover_data(report.counts),
        maps=[map_panels(one, classes, sizes) for one in report.maps],
        served={number: served_classes(report.counts.layer(number), report.counts.class_names) for number in sizes},
        map_classes=map_classes(report.maps, report.counts.class_names),
        curves=training_charts(report.rows, routed),
        versions=f"vimoe {vimoe.__version__}, torch {torch.__version__}, timm {timm.__version__}, "
        f"Python {platform.python_version()}",
    )


def map_classes(maps: Sequence[ExpertMap], class_names: Sequence[str]) -> list[tuple[str, str]]:
    """Name and colour of the classes in the images (see `shown_classes`)."""
    colours = class_colours(len(class_names)).tolist()
    return [(class_names[label], hex_colour(colours[label])) for label in shown_classes(maps, len(class_names))]


def routed_rows(report: Report) -> Sequence[Mapping[str, Any]]:
    """The rows of the run that trained the routers: the one that tells of all layers."""
    wanted = {str(number) for number in report.counts.layers}
    told = [rows for rows in report.rows.values() if rows and wanted <= set(rows[-1].get("routing", {}))]
    return told[0] if told else []


def training_charts(
    rows: Mapping[str, Sequence[Mapping[str, Any]]], routed: Sequence[Mapping[str, Any]]
) -> list[tuple[Markup, list[str]]]:
    """Charts of the training, each with the names of its lines, none where they are ordered."""
    some = {name: history for name, history in rows.items() if history}
    if not some:
        return []
    key, words = metric_of(next(iter(some.values())))
    charts = []
    for field_name, label in (("loss", "training loss"), (key, words)):
        series = {
            name: [(row["epoch"], row[field_name]) for row in history if row.get(field_name) is not None]
            for name, history in some.items()
        }
        series = {name: points for name, points in series.items() if points}
        if series:
            charts.append((line_chart(series, "epoch of the run", label), list(series)))
    if routed:
        used = {
            f"block {number}": [(row["epoch"], row["routing"][number]["effective_experts"]) for row in routed]
            for number in sorted(routed[0]["routing"], key=int)
        }
        charts.append((line_chart(used, "epoch", "experts in use (effective number)", ordered=True), []))
    return charts


def paper_figures(report: Report) -> dict[str, Figure]:
    """By file name, the page's figures as papers have them."""
    measures = {layer.layer: layer.specialisation for layer in report.analysis.layers}
    figures = {
        "heatmaps": routing_heatmaps(report.counts, measures, report.plan, unit=report.analysis.unit),
        "depth": specialisation_by_depth(measures, report.plan),
    }
    some = {name: history for name, history in report.rows.items() if history}
    if some:
        figures["curves"] = training_curves(some, metric_of(next(iter(some.values())))[0])
    if routed := routed_rows(report):
        figures["load"] = load_over_time(routed)
    if any(layer.ablations for layer in report.analysis.layers):
        figures["ablations"] = ablations(report.analysis)
    if report.maps:
        figures["expert_maps"] = expert_maps(report.maps, report.counts)
    return figures
