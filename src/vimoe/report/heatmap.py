"""Class × expert heatmaps, for files, page and studies alike."""

import itertools
import math
from collections.abc import Mapping, Sequence

import matplotlib
import matplotlib.cm
import matplotlib.colors
import numpy as np
from matplotlib.figure import Figure
from matplotlib.patches import Patch
from numpy.typing import NDArray

from vimoe.analysis.counts import RoutingCounts
from vimoe.analysis.specialisation import Specialisation
from vimoe.report.plots import legend, short
from vimoe.vit.plan import Plan

# Up to so many classes every row is named, in a grid of layers and in a figure of one layer.
NAMED, NAMED_ALONE = 24, 200
# Inches of all panels side by side, about.
WIDTH = 15.5
# Inches that a line of text takes.
_LETTER = 0.13
# Rows of fewer choices than this are grey: their shares say little.
FEW = 10


def class_shares(table: NDArray[np.int64]) -> NDArray[np.float64]:
    """`[class, expert]` share of each class's choices; rows sum to 1, or to 0 for a class that never occurred."""
    shares: NDArray[np.float64] = table / np.maximum(table.sum(1, keepdims=True), 1)
    return shares


def row_order(counts: RoutingCounts, number: int) -> NDArray[np.int64]:
    """`[classes]` labels in the order of a heatmap's rows: by super-class if there are many, then by dominant expert.

    Of one expert the class that is most faithful to it comes first.
    """
    shares = class_shares(counts.layer(number))
    keys = [-shares.max(1), shares.argmax(1)]
    if groups := _groups(counts):
        keys.append(np.unique(groups, return_inverse=True)[1])
    return np.lexsort(keys)


def _groups(counts: RoutingCounts) -> tuple[str, ...]:
    return counts.super_classes if len(counts.class_names) > NAMED else ()


def routing_heatmaps(
    counts: RoutingCounts,
    measures: Mapping[int, Specialisation],
    plan: Plan | None = None,
    *,
    blocks: Sequence[int] | None = None,
    unit: str = "image",
    columns: int = 6,
) -> Figure:
    """Class × expert heatmaps, the last layer first, on one colour scale for all layers of the model.

    Each row is the share of a class's choices that fell on each expert, so that rows sum to 1 and panels can be
    compared by eye. Rows of a class with few choices are grey. The axes are labelled `block N`.

    Args:
        plan: What becomes of the layers, written over the panels.
        blocks: The layers to draw; all by default.
        unit: What the counts count: `image` or `patch`.
    """
    numbers = sorted(counts.layers if blocks is None else blocks, reverse=True)
    alone, groups = len(numbers) == 1, _groups(counts)
    classes, experts = counts.counts.shape[1:]
    named = classes <= (NAMED_ALONE if alone else NAMED)
    names = [short(name) for name in counts.class_names]
    letters = max(map(len, names if named else [short(name) for name in groups]), default=0)
    height = 0.165 * classes if named else max(3.2, 0.16 * len(set(groups)))
    width = max(3.2, 0.3 * experts) if alone else max(1.35, 0.14 * experts)
    columns = min(columns, max(1, int(WIDTH / (width + 0.075 * letters))))
    rows = math.ceil(len(numbers) / columns)
    columns = math.ceil(len(numbers) / rows)
    size = (1.1 + columns * (width + 0.075 * letters), rows * (max(1.2, height) + 0.65) + 0.8)
    figure = Figure(figsize=size, layout="constrained")
    axes = figure.subplots(rows, columns, squeeze=False)
    for ax in axes.flat[len(numbers) :]:
        ax.set_visible(False)
    scale = matplotlib.cm.ScalarMappable(matplotlib.colors.Normalize(0, _top(counts)), "Blues")
    parts = {part.layer: part.pruned for part in plan.layers} if plan else {}
    units, some_few = "patches" if unit == "patch" else "images", False
    for ax, number in zip(axes.flat, numbers, strict=False):
        table = counts.layer(number)
        order, few = row_order(counts, number), table.sum(1) < FEW
        some_few |= bool(few.any())
        shares = class_shares(table)[order]
        colours = np.where(few[order, None, None], matplotlib.colormaps["Greys"](0.6 * shares), scale.to_rgba(shares))
        ax.imshow(colours, aspect="auto", interpolation="none")
        ax.set_label(f"block {number}")
        fate = "" if plan is None else (", pruned" if parts.get(number) else ", kept")
        ax.set_title(
            f"block {number}{fate}\n{measures[number].name} {100 * measures[number].normalised:.0f} %",
            fontsize=8,
            fontweight="bold" if plan and not parts.get(number) else "normal",
            url=f"#block-{number}",
        )
        ax.set_xticks(range(table.shape[1]), [str(e) for e in range(table.shape[1])] if table.shape[1] <= 16 else [])
        spans = [(name, len(list(same))) for name, same in itertools.groupby(groups[i] for i in order if groups)]
        ends = list(itertools.accumulate(size for _, size in spans))
        places = _apart(
            [(end - (size + 1) / 2, short(name), size) for end, (name, size) in zip(ends, spans, strict=True)],
            _LETTER * classes / height,
        )
        for end in ends[:-1]:
            ax.axhline(end - 0.5, color="black", linewidth=0.5)
        if named:
            ax.set_yticks(range(classes), [names[i] for i in order], parse_math=False)
            for place, name in places.items():
                where = {"transform": ax.get_yaxis_transform(), "rotation": 270, "va": "center"}
                ax.text(1.02, place, name, fontsize=7, parse_math=False, **where)
        else:
            ax.set_yticks(list(places), list(places.values()), parse_math=False)
        ax.tick_params(length=0, labelsize=7)
    figure.supxlabel("expert", fontsize=9)
    by = "super-class and " if groups else ""
    cut = "\n" if size[1] < 3.6 else " "  # a low figure has no room for one line
    y_label = f"class, ordered by{cut}{by}dominant expert" + ("" if alone else " in each panel")
    figure.supylabel(y_label, fontsize=9)
    bar = figure.colorbar(scale, ax=axes.ravel().tolist(), shrink=min(1.0, 2.4 / size[1] + 0.2), aspect=25, pad=0.02)
    bar.set_label(f"share of a class's {units}", fontsize=8)
    bar.ax.tick_params(labelsize=7)
    if some_few:
        grey = [Patch(color=matplotlib.colormaps["Greys"](0.4))]
        legend(figure, grey, [f"class with fewer than {FEW} {units}"], loc="outside upper right")
    return figure


def _top(counts: RoutingCounts) -> float:
    """Where the colour scale ends: the highest share of a class with enough choices, up to the next tenth."""
    tables = [counts.layer(number) for number in counts.layers]
    return max(0.1, *(math.ceil(10 * class_shares(t)[t.sum(1) >= FEW].max(initial=0)) / 10 for t in tables))


def _apart(labels: Sequence[tuple[float, str, int]], least: float) -> dict[float, str]:
    """By place, the names that do not come nearer to each other than `least`; of two, that of the larger span stays."""
    kept: dict[float, str] = {}
    for place, name, _ in sorted(labels, key=lambda label: -label[2]):
        if all(abs(place - other) >= least for other in kept):
            kept[place] = name
    return dict(sorted(kept.items()))
