"""Figures over several seeds: curves of means with their spread, every seed as a dot."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import matplotlib
import numpy as np
from matplotlib.figure import Figure
from matplotlib.transforms import ScaledTranslation

from vimoe.report.plots import COLOURS

GREY = "#555555"
# Points (1/72 inch) between two curves.
_BESIDE = 7
# Of a panel between its outermost places, about.
_WIDTH = 170
_MOST_TICKS = 13
# Panels in a line, where rows of them say nothing.
_SIDE_BY_SIDE = 3


@dataclass(frozen=True)
class Series:
    """One curve.

    Attributes:
        label: What it is, the same word in every panel.
        points: Places on the x axis, each with a value for each seed.
        dashed: Whether the curve is dashed.
        line: Whether the means are joined.
        colour: Number of the colour, so that one label has one colour in all panels; grey for None.
        shade: Instead of a colour by number, a place between 0 and 1 on a dark-to-light scale, for ordered curves.
    """

    label: str
    points: Sequence[tuple[float, Sequence[float]]]
    dashed: bool = False
    line: bool = True
    colour: int | None = None
    shade: float | None = None


@dataclass(frozen=True)
class Panel:
    """One set of axes.

    Attributes:
        title: Above it.
        series: Its curves.
        level: A name and a value for each seed, drawn as a horizontal line with a band of a standard deviation.
    """

    title: str
    series: Sequence[Series]
    level: tuple[str, Sequence[float]] | None = None


def mean_and_std(values: Sequence[float]) -> tuple[float, float]:
    """Mean, and standard deviation between seeds (n - 1), 0 for one seed."""
    return float(np.mean(values)), float(np.std(values, ddof=1)) if len(values) > 1 else 0.0


def panels_over_seeds(
    panels: Sequence[Sequence[Panel]], x_label: str, y_label: str, *, log_base: int | None = None, dots: bool = True
) -> Figure:
    """A grid of panels on common axes: means joined by lines, bars of one standard deviation, seeds as dots.

    Where x takes a few whole numbers, the curves of a panel stand a little beside each other, so that none hides
    another; dots stand a little to the right of their mean.

    Args:
        panels: Rows of panels; where these differ in length or hold one each, the panels follow each other in lines.
        x_label: Below.
        y_label: To the left.
        log_base: Base of a logarithmic x axis, None for a linear one.
        dots: Whether seeds and bars are drawn; without them only the means.
    """
    columns = max(len(row) for row in panels)
    if columns == 1 or any(len(row) < columns for row in panels):  # no panel keeps a line to itself
        flat = [panel for row in panels for panel in row]
        columns = min(len(flat), max(columns, _SIDE_BY_SIDE))
        panels = [flat[i : i + columns] for i in range(0, len(flat), columns)]
    figure = Figure(figsize=(1.0 + 3.3 * columns, 0.9 + 2.6 * len(panels)), layout="constrained")
    axes = figure.subplots(len(panels), columns, squeeze=False, sharex=True, sharey=True)
    places = sorted({x for row in panels for panel in row for series in panel.series for x, _ in series.points})
    few = log_base is None and len(places) <= _MOST_TICKS and all(float(x).is_integer() for x in places)
    most = max((len(panel.series) for row in panels for panel in row), default=0)
    beside = _beside(places, most) if few else 0.0
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
            handles |= _draw(ax, panel, beside, dots)
            ax.spines[["top", "right"]].set_visible(False)
            ax.tick_params(labelsize=8, labelbottom=True)
    figure.supxlabel(x_label, fontsize=9)
    figure.supylabel(y_label, fontsize=9)
    figure.legend(
        list(handles.values()), list(handles), loc="outside upper center", ncols=2 * columns, frameon=False, fontsize=8
    )
    return figure


def _draw(ax: Any, panel: Panel, beside: float, dots: bool) -> dict[str, Any]:
    handles: dict[str, Any] = {}
    ax.set_title(panel.title, fontsize=9)
    if panel.level is not None:
        name, values = panel.level
        mean, std = mean_and_std(values)
        handles[name] = ax.axhline(mean, color=GREY, linewidth=1.2)
        ax.axhspan(mean - std, mean + std, color=GREY, alpha=0.15, linewidth=0)
    for i, series in enumerate(panel.series):
        points = sorted(series.points)
        places = [x for x, _ in points]
        means, stds = zip(*(mean_and_std(values) for _, values in points), strict=True)
        style = {"color": _colour(series), "linestyle": _line(series), "linewidth": 1.4}
        if not dots:
            (handles[series.label],) = ax.plot(places, means, **style)
            continue
        shift = beside * (i - (len(panel.series) - 1) / 2)
        handles[series.label] = ax.errorbar(
            places,
            means,
            stds,
            marker="o" if series.line else "D",
            markersize=4.5,
            capsize=2,
            transform=_shifted(ax, shift),
            **style,
        )
        seeds = [(x, value) for x, values in points for value in values]
        where = _shifted(ax, shift + (beside or _BESIDE) / 2)
        ax.scatter(*zip(*seeds, strict=True), s=9, color=_colour(series), linewidth=0, transform=where)
        # What is moved does not count for the axes' range, so that they are told.
        bars = [(x, mean + sign * std) for x, mean, std in zip(places, means, stds, strict=True) for sign in (-1, 1)]
        ax.update_datalim([*seeds, *bars])
    ax.autoscale_view()
    return handles


def _beside(places: Sequence[float], curves: int) -> float:
    """Points between two curves, so that all of a place stay nearer to it than to the next."""
    if len(places) < 2 or curves < 2:
        return _BESIDE
    gap = min(b - a for a, b in itertools.pairwise(places)) / (places[-1] - places[0])
    return min(_BESIDE, 0.6 * gap * _WIDTH / (curves - 1))


def _shifted(ax: Any, points: float) -> Any:
    """The axes' own scale, moved to the right by so many points."""
    return ax.transData + ScaledTranslation(points / 72, 0, ax.figure.dpi_scale_trans)


def _line(series: Series) -> str:
    if not series.line:
        return "none"
    return "--" if series.dashed else "-"


def _colour(series: Series) -> Any:
    if series.shade is not None:
        return matplotlib.colormaps["viridis"](0.9 * series.shade)
    return GREY if series.colour is None else COLOURS[series.colour % len(COLOURS)]
