"""Figures over several seeds: curves of means with their spread, every seed as a dot."""

import itertools
import math
import textwrap
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import matplotlib
import numpy as np
from matplotlib.figure import Figure
from scipy import stats

from vimoe.report.plots import COLOURS, clean, legend

GREY = "#555555"
# Panels in a line, where rows of them say nothing.
_SIDE_BY_SIDE = 3


@dataclass(frozen=True)
class Series:
    """One curve."""

    label: str  # what it is, the same word in every panel
    points: Sequence[tuple[float, Sequence[float]]]  # places on the x axis, each with a value for each seed
    dashed: bool = False
    line: bool = True
    colour: int | None = None  # number of the colour, so that one label has one colour in all panels; grey for None
    # Instead of a colour by number, a place between 0 and 1 on a dark-to-light scale, for ordered curves.
    shade: float | None = None


@dataclass(frozen=True)
class Panel:
    """One set of axes; `level` is a name and a value for each seed, drawn as a horizontal line with a band."""

    title: str
    series: Sequence[Series]
    level: tuple[str, Sequence[float]] | None = None


def mean_and_std(values: Sequence[float]) -> tuple[float, float]:
    """Mean, and standard deviation between seeds (n - 1), 0 for one seed."""
    return float(np.mean(values)), float(np.std(values, ddof=1)) if len(values) > 1 else 0.0


def mean_and_half(values: Sequence[float]) -> tuple[float, float]:
    """Mean, and half the width of its 95 % t interval over seeds, 0 for one seed."""
    mean, std = mean_and_std(values)
    n = len(values)
    return mean, float(stats.t.ppf(0.975, n - 1)) * std / math.sqrt(n) if std else 0.0


def panels_over_seeds(
    panels: Sequence[Sequence[Panel]],
    x_label: str,
    y_label: str,
    *,
    log_base: int | None = None,
    dots: bool = True,
    interval: bool = False,
) -> Figure:
    """A grid of panels on common axes: means joined by lines with bars, seeds as dots.

    Where x takes a few whole numbers, the curves of a panel stand a little beside each other, so that none hides
    another, and dots stand a little to the right of their mean.

    Args:
        panels: Rows of panels; where these differ in length or hold one each, the panels follow each other in lines.
        log_base: Base of a logarithmic x axis, None for a linear one.
        dots: Whether seeds and bars are drawn; without them only the means.
        interval: Whether bars are 95 % t intervals of the means; else they are standard deviations between seeds.
    """
    columns = max(len(row) for row in panels)
    if columns == 1 or any(len(row) < columns for row in panels):  # no panel keeps a line to itself
        flat = [panel for row in panels for panel in row]
        columns = min(len(flat), max(columns, _SIDE_BY_SIDE))
        panels = [flat[i : i + columns] for i in range(0, len(flat), columns)]
    figure = Figure(figsize=(1.0 + 3.3 * columns, 0.9 + 2.6 * len(panels)), layout="constrained")
    axes = figure.subplots(len(panels), columns, squeeze=False, sharex=True, sharey=True)
    places = sorted({x for row in panels for panel in row for series in panel.series for x, _ in series.points})
    few = log_base is None and len(places) <= 13 and all(float(x).is_integer() for x in places)
    # Of the distance between two places, what the curves of one take up.
    beside = 0.6 * min((b - a for a, b in itertools.pairwise(places)), default=1.0) if few and dots else 0.0
    handles: dict[str, Any] = {}
    for row, row_axes in zip(panels, axes, strict=True):
        for ax in row_axes[len(row) :]:
            ax.set_visible(False)
        for panel, ax in zip(row, row_axes, strict=False):
            if log_base is not None:
                ax.set_xscale("log", base=log_base)
            elif few:
                ax.set_xticks(places)
            ax.margins(x=0.08)
            handles |= _draw(
                ax,
                panel,
                min(beside / max(1, len(panel.series)), beside / 4),
                dots,
                mean_and_half if interval else mean_and_std,
            )
            clean(ax)
            ax.tick_params(labelbottom=True)
    figure.supxlabel(x_label, fontsize=9)
    figure.supylabel(y_label, fontsize=9)
    legend(figure, list(handles.values()), list(handles), loc="outside upper center", ncols=2 * columns)
    return figure


def _draw(
    ax: Any, panel: Panel, beside: float, dots: bool, bar: Callable[[Sequence[float]], tuple[float, float]]
) -> dict[str, Any]:
    """A panel's curves, so far beside each other on the x axis; by label, what a legend shows."""
    handles: dict[str, Any] = {}
    # Hard spaces keep "N = 8" on one line.
    title = textwrap.wrap(panel.title.replace(" = ", "\xa0=\xa0"), 36, max_lines=2, placeholder="…")
    ax.set_title("\n".join(title).replace("\xa0", " "), fontsize=9, parse_math=False)
    if panel.level is not None:
        name, values = panel.level
        mean, std = bar(values)
        handles[name] = ax.axhline(mean, color=GREY, linewidth=1.2)
        ax.axhspan(mean - std, mean + std, color=GREY, alpha=0.15, linewidth=0)
    for i, series in enumerate(panel.series):
        points, shift = sorted(series.points), beside * (i - (len(panel.series) - 1) / 2)
        places = [x + shift for x, _ in points]
        means, stds = zip(*(bar(values) for _, values in points), strict=True)
        line = ("--" if series.dashed else "-") if series.line else "none"
        style = {"color": _colour(series), "linestyle": line, "linewidth": 1.4}
        if not dots:
            (handles[series.label],) = ax.plot(places, means, **style)
            continue
        mark = {"marker": "o" if series.line else "D", "markersize": 4.5, "capsize": 2}
        handles[series.label] = ax.errorbar(places, means, stds, **mark, **style)
        seeds = [(x + shift + beside / 2, value) for x, values in points for value in values]
        ax.scatter(*zip(*seeds, strict=True), s=9, color=_colour(series), linewidth=0)
    return handles


def _colour(series: Series) -> Any:
    if series.shade is not None:
        return matplotlib.colormaps["viridis"](0.9 * series.shade)
    return GREY if series.colour is None else COLOURS[series.colour % len(COLOURS)]
