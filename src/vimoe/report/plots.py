"""Figures, drawn with matplotlib on any machine: each function gives a figure that can be saved as PNG, SVG or PDF."""

from __future__ import annotations

import math
import textwrap
from collections.abc import Mapping, Sequence
from typing import Any

import matplotlib
import matplotlib.cm
import matplotlib.colors
import matplotlib.patches
import numpy as np
from matplotlib.figure import Figure
from numpy.typing import NDArray

from vimoe.analysis.analysis_result import ABLATIONS, Analysis
from vimoe.analysis.counts import RoutingCounts
from vimoe.analysis.specialisation import Specialisation
from vimoe.report.tables import METRICS
from vimoe.tasks.palette import expert_colours
from vimoe.vit.plan import Plan

# Okabe and Ito's colours, told apart by colour-blind readers too.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")
KEPT, PRUNED = "#0072B2", "#757575"
# Up to this many classes every row of a heatmap is named.
NAMED_CLASSES = 30


def order_by_expert(shares: NDArray[np.float64]) -> NDArray[np.int64]:
    """Rows ordered by their dominant expert, the most faithful to it first.

    Args:
        shares: `[class, expert]`, each row summing to 1 (or to 0 for a class that never occurred).
    """
    top = shares.argmax(1)
    return np.lexsort((-shares.max(1), top))


def routing_heatmaps(
    counts: RoutingCounts,
    measures: Mapping[int, Specialisation],
    plan: Plan | None = None,
    columns: int = 6,
    unit: str = "image",
) -> Figure:
    """Class × expert heatmaps of all MoE layers, the last layer first, on one colour scale from 0 to 1.

    Each row is the share of a class's choices that fell on each expert, so that rows sum to 1 and panels can be
    compared by eye. Rows stand in the order of their dominant expert, panel by panel. `unit` is what the counts count.
    """
    depth = max(counts.layers) + 1
    numbers = sorted(counts.layers, reverse=True)
    columns = min(columns, len(numbers))
    rows = math.ceil(len(numbers) / columns)
    classes, experts = counts.counts.shape[1:]
    height = min(6.0, max(1.7, 0.19 * min(classes, NAMED_CLASSES)))
    figure = Figure(
        figsize=(1.0 + columns * max(1.5, 0.17 * experts), rows * (height + 0.95) + 0.7), layout="constrained"
    )
    axes = figure.subplots(rows, columns, squeeze=False)
    pruned = {part.layer for part in plan.layers if part.pruned} if plan else set()
    for ax in axes.flat[len(numbers) :]:
        ax.set_visible(False)
    scale = matplotlib.cm.ScalarMappable(matplotlib.colors.Normalize(0, 1), "Blues")
    for ax, number in zip(axes.flat, numbers, strict=False):
        table = counts.layer(number)
        shares = table / np.maximum(table.sum(1, keepdims=True), 1)
        order = order_by_expert(shares)
        ax.imshow(shares[order], scale.cmap, scale.norm, aspect="auto", interpolation="nearest")
        fate = "" if plan is None else ("  pruned" if number in pruned else "  kept")
        ax.set_title(
            f"block {number} (l = {depth - number}){fate}\n{measures[number].information:.2f} bits, "
            f"{measures[number].normalised:.0%} of most",
            fontsize=8,
            color=PRUNED if number in pruned else "black",
        )
        ax.set_xticks(range(table.shape[1]), [str(e) for e in range(table.shape[1])] if table.shape[1] <= 16 else [])
        named = classes <= NAMED_CLASSES
        ax.set_yticks(range(classes) if named else [], [counts.class_names[i] for i in order] if named else [])
        ax.tick_params(length=0, labelsize=7)
    figure.supxlabel("expert", fontsize=9)
    figure.supylabel("class, ordered by its dominant expert in each panel", fontsize=9)
    bar = figure.colorbar(scale, ax=axes.ravel().tolist(), shrink=0.5, aspect=30, pad=0.01)
    bar.set_label(f"share of a class's {'patches' if unit == 'patch' else 'images'}", fontsize=8)
    bar.ax.tick_params(labelsize=7)
    return figure


def specialisation_by_depth(measures: Mapping[int, Specialisation], plan: Plan | None = None) -> Figure:
    """Normalised mutual information of class and expert over the blocks, kept layers in colour."""
    figure = Figure(figsize=(6.4, 2.8), layout="constrained")
    ax = figure.subplots()
    numbers = sorted(measures)
    pruned = {part.layer for part in plan.layers if part.pruned} if plan else set()
    values = [100 * measures[n].normalised for n in numbers]
    ends = [(v - 100 * measures[n].low, 100 * measures[n].high - v) for n, v in zip(numbers, values, strict=True)]
    # A bootstrap interval may lie a little beside its estimate.
    reach = [[max(0.0, end) for end in side] for side in zip(*ends, strict=True)]
    colours = [PRUNED if n in pruned else KEPT for n in numbers]
    bars = ax.bar([str(n) for n in numbers], values, color=colours, yerr=reach, ecolor="#222222", capsize=2)
    ax.bar_label(bars, [f"{value:.0f}" for value in values], fontsize=8, padding=2)
    ax.set_xlabel("block (0 is the first)")
    ax.set_ylabel("% of the most it could tell")
    ax.set_ylim(0, 108)
    if plan is not None:
        handles = [matplotlib.patches.Patch(color=KEPT), matplotlib.patches.Patch(color=PRUNED)]
        ax.legend(handles, ["kept", "pruned"], frameon=False, fontsize=8, loc="upper left")
    _clean(ax)
    return figure


def training_curves(rows: Mapping[str, Sequence[Mapping[str, Any]]], metric: str = "val_top1") -> Figure:
    """Training loss and validation accuracy of several runs over their own epochs."""
    figure = Figure(figsize=(7.6, 2.8), layout="constrained")
    left, right = figure.subplots(1, 2)
    for colour, (name, history) in zip(COLOURS, rows.items(), strict=False):
        epochs = [row["epoch"] for row in history]
        left.plot(epochs, [row["loss"] for row in history], color=colour, label=name)
        right.plot(epochs, [row[metric] for row in history], color=colour, label=name)
    left.set_ylabel("training loss")
    right.set_ylabel(metric_words(metric))
    right.set_ylim(bottom=max(0, min(row[metric] for history in rows.values() for row in history[2:] or history) - 2))
    right.legend(frameon=False, fontsize=8)
    for ax in (left, right):
        ax.set_xlabel("epoch of the run")
        _clean(ax)
    return figure


def metric_of(rows: Sequence[Mapping[str, Any]]) -> tuple[str, str]:
    """The figure that a run's rows of `metrics.jsonl` are judged by: its key, and what to call it."""
    key = next((f"val_{name}" for name in METRICS if f"val_{name}" in rows[0]), "loss")
    return key, metric_words(key)


def metric_words(key: str) -> str:
    """What to call a figure of `metrics.jsonl`."""
    split, _, name = key.partition("_")
    return f"validation {METRICS.get(name, name)}" if split == "val" else f"training {key}"


def ablations(analysis: Analysis) -> Figure:
    """What becomes of the score when one layer is ablated: a panel a way of ablating, all on one scale."""
    names = [name for name in ABLATIONS if any(k.name == name for x in analysis.layers for k in x.ablations)]
    figure = Figure(figsize=(1.0 + 2.3 * len(names), 0.9 + 0.24 * len(analysis.layers)), layout="constrained")
    panels = figure.subplots(1, len(names), sharex=True, sharey=True, squeeze=False)[0]
    for name, ax in zip(names, panels, strict=True):
        found = [(x.layer, k.lost) for x in analysis.layers for k in x.ablations if k.name == name]
        changes = [0 - lost.value for _, lost in found]
        reach = [[lost.high - lost.value for _, lost in found], [lost.value - lost.low for _, lost in found]]
        sure = [lost.low > 0 or lost.high < 0 for _, lost in found]
        ax.axvline(0, color="#555555", linewidth=0.8)
        ax.errorbar(changes, [str(n) for n, _ in found], xerr=reach, fmt="none", ecolor="#222222", elinewidth=1)
        ax.scatter(
            changes, [str(n) for n, _ in found], s=22, color=[COLOURS[1] if x else PRUNED for x in sure], zorder=3
        )
        ax.set_title(textwrap.fill(ABLATIONS[name], 24), fontsize=8)
        _clean(ax)
    panels[0].set_ylabel("block")
    figure.supxlabel("change of the score in points, with its 95 % interval", fontsize=9)
    return figure


def load_over_time(rows: Sequence[Mapping[str, Any]], columns: int = 6) -> Figure:
    """The load of every expert over the epochs of a run, stacked, a panel a layer, the last one first."""
    numbers = sorted(rows[0]["routing"], key=int, reverse=True)
    columns = min(columns, len(numbers))
    height = math.ceil(len(numbers) / columns)
    figure = Figure(figsize=(0.8 + 1.5 * columns, 0.6 + 1.4 * height), layout="constrained")
    axes = figure.subplots(height, columns, sharex=True, sharey=True, squeeze=False)
    epochs = [row["epoch"] for row in rows]
    for ax in axes.flat[len(numbers) :]:
        ax.set_visible(False)
    for ax, number in zip(axes.flat, numbers, strict=False):
        loads = np.array([row["routing"][number]["load"] for row in rows]).T
        ax.stackplot(epochs, loads, colors=expert_colours(len(loads)) / 255, linewidth=0)
        ax.set_title(f"block {number}", fontsize=8)
        ax.set_ylim(0, 1)
        if len(epochs) > 1:
            ax.set_xlim(epochs[0], epochs[-1])
        _clean(ax)
    figure.supxlabel("epoch", fontsize=9)
    figure.supylabel("share of the choices, a colour an expert", fontsize=9)
    return figure


def _clean(ax: Any) -> None:
    ax.spines[["top", "right"]].set_visible(False)
    ax.tick_params(labelsize=8)
