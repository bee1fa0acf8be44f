"""The report: one HTML file that opens offline and explains a comparison to somebody who was not there."""

from __future__ import annotations

import platform
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import timm
import torch
from jinja2 import Environment, PackageLoader, select_autoescape
from markupsafe import Markup

import vimoe
from vimoe.analysis.counts import RoutingCounts
from vimoe.analysis.specialisation import Specialisation
from vimoe.report.arm import Arm
from vimoe.report.figures import routing_heatmaps, specialisation_by_depth, to_svg, training_curves
from vimoe.report.tables import ARM_HEADER, arm_rows
from vimoe.training.run import write_text
from vimoe.vit.plan import Plan


@dataclass(frozen=True)
class Report:
    """What a report tells.

    Attributes:
        title: Its heading.
        conclusion: One sentence.
        arms: The compared models.
        counts: Routing counts of the ViMoE.
        measures: Specialisation by block.
        plan: What became of each MoE layer, and why.
        rows: Name of a run to the rows of its `metrics.jsonl`.
        recipes: Name of a run to its recipe as YAML.
        command: What makes this report again.
    """

    title: str
    conclusion: str
    arms: Sequence[Arm]
    counts: RoutingCounts
    measures: Mapping[int, Specialisation]
    plan: Plan
    rows: Mapping[str, Sequence[Mapping[str, Any]]]
    recipes: Mapping[str, str]
    command: str


def write_page(report: Report, path: Path) -> Path:
    """Write the page and, beside it, its figures as PNG.

    Returns:
        `path`.
    """
    figures = {
        "heatmaps": routing_heatmaps(report.counts, report.measures, report.plan),
        "depth": specialisation_by_depth(report.measures, report.plan),
        "curves": training_curves(report.rows),
    }
    (path.parent / "figures").mkdir(parents=True, exist_ok=True)
    for name, figure in figures.items():
        figure.savefig(path.parent / "figures" / f"{name}.png", dpi=150)
    environment = Environment(
        loader=PackageLoader("vimoe.report", "."), autoescape=select_autoescape(default=True), trim_blocks=True
    )
    html = environment.get_template("page.html.j2").render(
        report=report,
        header=ARM_HEADER,
        arm_rows=arm_rows(report.arms),
        measures=sorted(report.measures.items(), reverse=True),
        decisions={part.layer: part for part in report.plan.layers},
        depth=max(report.counts.layers) + 1,
        figures={name: Markup(to_svg(figure)) for name, figure in figures.items()},
        versions=f"vimoe {vimoe.__version__}, torch {torch.__version__}, timm {timm.__version__}, "
        f"Python {platform.python_version()}",
    )
    write_text(path, html)
    return path
