"""Figures of one model, drawn with matplotlib; files and the page show the same ones."""

import itertools
import math
import textwrap
from collections.abc import Mapping, Sequence
from typing import Any

import matplotlib
import numpy as np
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch

from vimoe.analysis.analysis_result import ABLATIONS, Analysis
from vimoe.analysis.paired import Estimate
from vimoe.analysis.specialisation import Specialisation
from vimoe.report.comparison import Variant
from vimoe.report.tables import METRICS, metric_name
from vimoe.tasks.palette import expert_colours
from vimoe.vit.plan import Plan

# Okabe and Ito's colours, which colour-blind readers can tell apart too.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")
KEPT, PRUNED = "#0072B2", "#757575"
# Letters of a name in a legend.
LETTERS = 60


def short(name: str, most: int = 28) -> str:
    """A name from outside on one line of at most so many characters; draw it with `parse_math=False`."""
    line = " ".join(name.split())
    return line if len(line) <= most else line[: most - 1] + "…"


def legend(owner: Any, handles: Sequence[Any], names: Sequence[str], **settings: Any) -> None:
    """A legend of axes or of a figure whose names may come from outside."""
    made = owner.legend(
        handles, [short(name, LETTERS) for name in names], **{"frameon": False, "fontsize": 8, **settings}
    )
    for text in made.get_texts():
        text.set_parse_math(False)


def clean(ax: Any) -> None:
    """Axes without a frame, with small numbers."""
    ax.spines[["top", "right"]].set_visible(False)
    ax.tick_params(labelsize=8)


def intervals(
    ax: Any, places: Sequence[Any], estimates: Sequence[Estimate], *, across: bool = False, **style: Any
) -> Any:
    """Values with their intervals, upright or (`across`) lying; a bootstrap interval may lie beside its value."""
    values = [estimate.value for estimate in estimates]
    low = [max(0.0, estimate.value - estimate.low) for estimate in estimates]
    high = [max(0.0, estimate.high - estimate.value) for estimate in estimates]
    where = (values, places) if across else (places, values)
    style = {"fmt": "none", "capsize": 2, "elinewidth": 1, **style}
    return ax.errorbar(*where, **{"xerr" if across else "yerr": [low, high]}, **style)


def removal_curve(analysis: Analysis, control: tuple[str, Estimate] | None = None) -> Figure:
    """The score as MoE layers are removed one after the other: a point for each layer that was tried.

    Accepted steps are joined; a refused one stands beside the line, and the next one starts from the line again.
    `control`, the name and score of a dense model on the same images, is a line with its interval.
    """
    steps = [step for step in analysis.steps if not step.drop]
    figure = Figure(figsize=(max(6.0, 1.6 + 0.55 * len(steps)), 3.2), layout="constrained")
    ax = figure.subplots()
    score = analysis.score.value
    handles = {"intact model": ax.axhline(score, color="black", linewidth=0.8, linestyle=":")}
    if control is not None:
        handles[control[0]] = ax.axhline(control[1].value, color=COLOURS[2], linewidth=1.2)
        ax.axhspan(control[1].low, control[1].high, color=COLOURS[2], alpha=0.12, linewidth=0)
    if analysis.max_drop:
        lowest = score - analysis.max_drop
        handles["lowest score allowed"] = ax.axhline(lowest, color=COLOURS[1], linewidth=1, linestyle="--")
    for accepted, words, colour, mark in ((True, "accepted", KEPT, "o"), (False, "refused", COLOURS[1], "D")):
        found = {place: step.lost for place, step in enumerate(steps, 1) if step.accepted == accepted}
        after = [Estimate(*(score - x for x in (lost.value, lost.high, lost.low))) for lost in found.values()]
        style: dict[str, Any] = {"color": colour, "markersize": 5, "markerfacecolor": colour if accepted else "none"}
        if found:
            handles[f"step {words}"] = intervals(ax, list(found), after, fmt=mark, **style)
        if accepted:
            ax.plot([0, *found], [score, *(one.value for one in after)], color=colour, linewidth=1.4)
    removed = itertools.accumulate(int(step.accepted) for step in steps)
    ax.set_xticks(range(len(steps) + 1), ["–\n0", *(f"{s.layer}\n{n}" for s, n in zip(steps, removed, strict=True))])
    ax.set_xlabel("block that is tried; below it, layers removed by then", fontsize=9)
    ax.set_ylabel(f"{metric_name(analysis.metric)} % on {analysis.split}", fontsize=9)
    ax.set_ylim(top=min(100.4, ax.get_ylim()[1]))
    clean(ax)
    legend(figure, list(handles.values()), list(handles), loc="outside upper center", ncols=3)
    return figure


def score_and_cost(variants: Sequence[Variant], metric: str, split: str) -> Figure:
    """Models' scores over their multiply-adds, and beside it their changes against the first one."""
    figure = Figure(figsize=(8.4, max(2.8, 1.2 + 0.35 * len(variants))), layout="constrained")
    left, right = figure.subplots(1, 2)
    unit = 1e9 if max(variant.cost.macs for variant in variants) >= 1e9 else 1e6
    for i, variant in enumerate(variants):
        colour, macs = COLOURS[i % len(COLOURS)], variant.cost.macs / unit
        intervals(left, [macs], [variant.score], color=colour)
        left.plot(macs, variant.score.value, "o", color=colour, markersize=5)
        if (lost := variant.lost) is not None:
            gain = Estimate(-lost.value, -lost.high, -lost.low)
            intervals(right, [i], [gain], across=True, color=colour)
        right.plot(-lost.value if lost else 0.0, i, "o", color=colour, markersize=5)
    left.set_xlabel(f"multiply-adds of an image, {'millions' if unit < 1e9 else 'billions'}", fontsize=9)
    left.margins(x=0.2)
    left.set_ylabel(f"{split} {metric_name(metric)} % (95 %)", fontsize=9)
    right.axvline(0, color="black", linewidth=0.8, linestyle=":")
    right.set_yticks(range(len(variants)), [short(variant.name) for variant in variants], parse_math=False)
    right.set_ylim(len(variants) - 0.5, -0.5)
    right.set_xlabel(f"points against “{short(variants[0].name)}”, paired", fontsize=9, parse_math=False)
    for ax in (left, right):
        clean(ax)
    return figure


def specialisation_by_depth(measures: Mapping[int, Specialisation], plan: Plan | None = None) -> Figure:
    """Specialisation over the blocks with its interval, kept layers in colour."""
    figure = Figure(figsize=(max(4.0, 1.2 + 0.45 * len(measures)), 2.8), layout="constrained")
    ax = figure.subplots()
    names = [str(number) for number in sorted(measures)]
    pruned = {str(part.layer) for part in plan.layers if part.pruned} if plan else set()
    found = [Estimate(*(100 * x for x in (m.normalised, m.low, m.high))) for _, m in sorted(measures.items())]
    ax.bar(names, [x.value for x in found], color=[PRUNED if n in pruned else KEPT for n in names])
    intervals(ax, names, found, ecolor="black")
    for place, x in enumerate(found):
        ax.text(place, max(x.value, x.high) + 2, f"{x.value:.0f}", fontsize=8, ha="center")
    ax.set_xlabel("block (0 is the first)", fontsize=9)
    ax.set_ylabel(f"{next(iter(measures.values())).name}, %", fontsize=9)
    ax.set_ylim(0, 109)
    if plan is not None:
        swatches = [Patch(color=KEPT), Patch(color=PRUNED)]
        legend(figure, swatches, ["kept", "pruned"], loc="outside upper center", ncols=2)
    clean(ax)
    return figure


def ablations(analysis: Analysis) -> Figure:
    """What becomes of the score when one layer is ablated and all others are intact: a panel a way of ablating."""
    names = [name for name in ABLATIONS if any(k.name == name for x in analysis.layers for k in x.ablations)]
    figure = Figure(figsize=(1.0 + 2.3 * len(names), 1.3 + 0.24 * len(analysis.layers)), layout="constrained")
    panels = figure.subplots(1, len(names), sharex=True, sharey=True, squeeze=False)[0]
    for name, ax in zip(names, panels, strict=True):
        ax.axvline(0, color="black", linewidth=0.8)
        found = {str(x.layer): k.lost for x in analysis.layers for k in x.ablations if k.name == name}
        changes = [Estimate(-lost.value, -lost.high, -lost.low) for lost in found.values()]
        intervals(ax, list(found), changes, across=True, ecolor="black")
        colours = [PRUNED if x.low <= 0 <= x.high else COLOURS[1] for x in changes]
        ax.scatter([x.value for x in changes], list(found), s=24, color=colours, zorder=3)
        ax.set_title(textwrap.fill(ABLATIONS[name], 24), fontsize=8)
        clean(ax)
    panels[0].set_ylabel("block", fontsize=9)
    figure.supxlabel("change of the score in points, with its 95 % interval", fontsize=9)
    dots = [Line2D([], [], marker="o", linestyle="none", color=colour) for colour in (COLOURS[1], PRUNED)]
    legend(figure, dots, ["beyond noise", "within noise: the interval holds 0"], loc="outside upper center", ncols=2)
    return figure


def training_curves(
    rows: Mapping[str, Sequence[Mapping[str, Any]]], routed: Sequence[Mapping[str, Any]] = ()
) -> Figure:
    """Training loss and validation metric of runs (name to the rows of `metrics.jsonl`) over their epochs.

    Beside them the experts in use, by the rows of the run that trained the routers, if there is one.
    """
    first = next(iter(rows.values()))[0]
    panels = {"loss": "training loss"}
    panels |= {f"val_{key}": f"validation {name} %" for key, name in METRICS.items() if f"val_{key}" in first}
    figure = Figure(figsize=(1.0 + 3.4 * (len(panels) + bool(routed)), 3.1), layout="constrained")
    axes = figure.subplots(1, len(panels) + bool(routed), squeeze=False)[0]
    handles: dict[str, Any] = {}
    for ax, (key, words) in zip(axes, panels.items(), strict=False):
        for colour, (name, history) in zip(itertools.cycle(COLOURS), rows.items(), strict=False):
            points = [(row["epoch"], row[key]) for row in history if row.get(key) is not None]
            if points:
                (handles[name],) = ax.plot(*zip(*points, strict=True), color=colour, marker=".")
        ax.set_ylabel(words, fontsize=9)
    if routed:
        numbers = sorted(routed[0]["routing"], key=int)
        shades = matplotlib.colormaps["viridis"](np.linspace(0, 0.9, len(numbers)))
        for number, shade in zip(numbers, shades, strict=True):
            used = [row["routing"][number]["effective_experts"] for row in routed]
            label = f"block {number}" if number in (numbers[0], numbers[-1]) else "_"
            axes[-1].plot([row["epoch"] for row in routed], used, color=shade, marker=".", label=label)
        axes[-1].set_ylim(0, 1.03 * max(len(layer["load"]) for layer in routed[0]["routing"].values()))
        axes[-1].set_ylabel("experts in use (effective number)", fontsize=9)
        axes[-1].legend(frameon=False, fontsize=8)
    for ax in axes:
        ax.set_xlabel("epoch of the run", fontsize=9)
        ax.xaxis.get_major_locator().set_params(integer=True)
        clean(ax)
    if len(rows) > 1:
        legend(figure, list(handles.values()), list(handles), loc="outside upper center", ncols=4)
    return figure


def load_over_time(rows: Sequence[Mapping[str, Any]], columns: int = 6) -> Figure:
    """The load of every expert over the epochs of a run, stacked, a panel a layer, the last one first."""
    numbers = sorted(rows[0]["routing"], key=int, reverse=True)
    columns = min(columns, len(numbers))
    height = math.ceil(len(numbers) / columns)
    figure = Figure(figsize=(0.8 + 1.7 * columns, 1.0 + 1.4 * height), layout="constrained")
    axes = figure.subplots(height, columns, sharex=True, sharey=True, squeeze=False)
    if len(rows) == 1:  # an area needs two ends
        rows = [rows[0], {**rows[0], "epoch": rows[0]["epoch"] + 1}]
    epochs = [row["epoch"] for row in rows]
    loads = {n: np.array([row["routing"][n]["load"] for row in rows]).T for n in numbers}
    colours = expert_colours(max(map(len, loads.values()))) / 255
    for ax in axes.flat[len(numbers) :]:
        ax.set_visible(False)
    for ax, number in zip(axes.flat, numbers, strict=False):
        ax.stackplot(epochs, loads[number], colors=colours, linewidth=0)
        ax.set_title(f"block {number}", fontsize=8)
        ax.set(ylim=(0, 1), xlim=(epochs[0], epochs[-1]))
        ax.xaxis.get_major_locator().set_params(integer=True)
        clean(ax)
    figure.supxlabel("epoch", fontsize=9)
    figure.supylabel("share of the choices", fontsize=9)
    if len(colours) <= 16:
        names = [f"expert {e}" for e in range(len(colours))]
        legend(figure, [Patch(color=c) for c in colours], names, loc="outside upper center", ncols=2 + columns)
    return figure
