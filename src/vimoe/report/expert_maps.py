"""Expert maps: which expert each patch of an image chose, coloured over the image."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from matplotlib.collections import LineCollection
from matplotlib.figure import Figure
from matplotlib.patches import Patch
from numpy.typing import NDArray

from vimoe.analysis.counts import RoutingCounts
from vimoe.analysis.patches import ExpertMap
from vimoe.data.masks import IGNORE
from vimoe.tasks.palette import class_colours, expert_colours

# Inches: width of a panel, space between panels, height of a line of the legend, width of one of its letters.
PANEL, GAP, LINE, LETTER = 1.9, 0.06, 0.2, 0.065
# How much of a panel's colour is the expert's; the rest is the image in grey, from this grey to white, so that
# experts look alike in dark images and in light ones.
STRENGTH, DARKEST = 0.66, 60
UNLABELLED = (240, 240, 240)
# More classes than these are not named in the legend, the rarest left out.
NAMED_CLASSES = 24


def expert_maps(maps: Sequence[ExpertMap], counts: RoutingCounts, columns: int = 6) -> Figure:
    """Each image beside its classes and, for every MoE layer, the experts that its patches chose, the last first.

    The same colour in two layers means the same number, not the same expert. The legend says which classes the last
    layer's experts serve.

    Args:
        maps: One or more images; all with the same layers.
        counts: The model's routing counts.
        columns: Panels in a row; more layers go on in further rows.
    """
    class_names, num_experts = counts.class_names, dict(zip(counts.layers, counts.num_experts, strict=True))
    numbers = sorted(maps[0].experts, reverse=True)
    columns = min(columns, 2 + len(numbers))
    rows_each = math.ceil((2 + len(numbers)) / columns)
    heights = [PANEL * one.image.shape[0] / one.image.shape[1] for one in maps for _ in range(rows_each)]
    experts, classes = _expert_handles(counts), _class_handles(maps, class_names)
    per_line = [_fitting(handles, columns * (PANEL + GAP)) for handles in (experts, classes)]
    legends = [LINE * (math.ceil(len(h) / n) + 1.2) for h, n in zip((experts, classes), per_line, strict=True)]
    figure = Figure(figsize=(columns * (PANEL + GAP), sum(heights) + GAP * len(heights) + sum(legends) + 0.3))
    grid = figure.add_gridspec(
        len(heights) + 2,
        columns,
        height_ratios=[*heights, *legends],
        left=0.005,
        right=0.995,
        bottom=0.0,
        top=1 - 0.26 / figure.get_figheight(),
        wspace=GAP / PANEL,
        hspace=GAP / PANEL,
    )
    for i, one in enumerate(maps):
        panels = [("image", one.image), ("classes", class_panel(one, len(class_names)))]
        panels += [(f"block {number}", expert_panel(one, number, num_experts[number])) for number in numbers]
        for j, (title, panel) in enumerate(panels):
            ax = figure.add_subplot(grid[i * rows_each + j // columns, j % columns])
            ax.imshow(panel, interpolation="nearest")
            ax.set_axis_off()
            if i == 0 or rows_each > 1:
                ax.set_title(title, fontsize=9, pad=4)
            if j >= 2:
                ax.add_collection(_borders(one, numbers[j - 2]))
    served = f"expert, and the classes it serves in block {numbers[0]} (share of its patches)"
    for row, title, handles in ((-2, served, experts), (-1, "class", classes)):
        ax = figure.add_subplot(grid[row, :])
        ax.set_axis_off()
        ax.legend(
            handles=handles,
            title=title,
            ncols=per_line[row],
            loc="upper left",
            frameon=False,
            fontsize=8,
            title_fontsize=8,
            alignment="left",
            handlelength=1.1,
            handleheight=1.1,
            columnspacing=1.2,
            borderpad=0.2,
        )
    return figure


def expert_panel(one: ExpertMap, number: int, num_experts: int) -> NDArray[np.uint8]:
    """The image in grey under its patches' experts in colour: `[H, W, 3]`."""
    height, width = one.image.shape[:2]
    chosen = one.experts[number].repeat(one.patch_size[0], 0).repeat(one.patch_size[1], 1)[:height, :width]
    luma = one.image @ np.array([0.299, 0.587, 0.114])  # ITU-R BT.601
    dark, light = np.quantile(luma, (0.01, 0.99))
    grey = DARKEST + (255 - DARKEST) * np.clip((luma - dark) / max(1.0, light - dark), 0, 1)
    return _over(grey[..., None], expert_colours(num_experts)[chosen])


def class_panel(one: ExpertMap, num_classes: int) -> NDArray[np.uint8]:
    """The colours of the pixels' classes, light grey where unlabelled: `[H, W, 3]`."""
    colours = np.full((IGNORE + 1, 3), UNLABELLED, dtype=np.uint8)
    colours[:num_classes] = class_colours(num_classes)
    return colours[one.classes]


def _borders(one: ExpertMap, number: int) -> LineCollection:
    """White lines between neighbouring patches of different experts, in pixels of the image."""
    experts, (height, width) = one.experts[number], one.image.shape[:2]
    rows, columns = one.patch_size
    lines = []
    for y, x in np.argwhere(experts[:, 1:] != experts[:, :-1]).tolist():
        lines.append([((x + 1) * columns, y * rows), ((x + 1) * columns, min((y + 1) * rows, height))])
    for y, x in np.argwhere(experts[1:] != experts[:-1]).tolist():
        lines.append([(x * columns, (y + 1) * rows), (min((x + 1) * columns, width), (y + 1) * rows)])
    width_of_a_patch = 72 * PANEL * columns / width  # in points
    corners = np.array(lines).reshape(-1, 2, 2) - 0.5  # a pixel's middle is at whole numbers
    return LineCollection(list(corners), colors="white", linewidths=min(0.9, 0.09 * width_of_a_patch))


def _over(grey: NDArray[np.float64], colours: NDArray[np.uint8]) -> NDArray[np.uint8]:
    return (STRENGTH * colours + (1 - STRENGTH) * grey).round().astype(np.uint8)


def served_classes(table: NDArray[np.int64], class_names: Sequence[str], most: int = 3) -> list[str]:
    """For each expert the classes that make up most of its patches, with their share from 10 % on.

    Args:
        table: Counts `[class, expert]`.
        class_names: By class.
        most: How many classes are named.
    """
    shares = table / np.maximum(table.sum(0), 1)
    best = np.argsort(-shares, axis=0, kind="stable")[:most]
    return [
        ", ".join(f"{class_names[c]} {shares[c, e]:.0%}" for c in best[:, e] if shares[c, e] >= 0.1) or "no patch"
        for e in range(table.shape[1])
    ]


def shown_classes(maps: Sequence[ExpertMap], num_classes: int, most: int = NAMED_CLASSES) -> list[int]:
    """The classes in the images, in their own order; the rarest are left out if there are more than `most`."""
    pixels = np.zeros(num_classes, np.int64)
    for one in maps:
        pixels += np.bincount(one.classes.ravel(), minlength=num_classes)[:num_classes]
    order = np.argsort(-pixels, kind="stable").tolist()
    return sorted([label for label in order if pixels[label]][:most])


def _expert_handles(counts: RoutingCounts) -> list[Patch]:
    """As the experts look over a middle grey."""
    colours = _over(np.array((DARKEST + 255) / 2), expert_colours(max(counts.num_experts)))
    last = served_classes(counts.layer(max(counts.layers)), counts.class_names)
    names = [f"{e}: {last[e]}" if e < len(last) else str(e) for e in range(len(colours))]
    return [_swatch(colour, name) for colour, name in zip(colours, names, strict=True)]


def _fitting(handles: Sequence[Patch], width: float) -> int:
    """How many entries of a legend fit in a line of `width` inches."""
    longest = max(len(str(handle.get_label())) for handle in handles)
    return max(1, int(width / (0.42 + LETTER * longest)))


def _class_handles(maps: Sequence[ExpertMap], class_names: Sequence[str]) -> list[Patch]:
    """The classes in the images, in their own order."""
    colours = class_colours(len(class_names))
    handles = [_swatch(colours[i], class_names[i]) for i in shown_classes(maps, len(class_names))]
    some_unlabelled = any((one.classes == IGNORE).any() for one in maps)
    return handles + ([_swatch(np.array(UNLABELLED), "unlabelled")] if some_unlabelled else [])


def _swatch(colour: NDArray[Any], name: str) -> Patch:
    return Patch(facecolor=tuple((colour / 255).tolist()), edgecolor="none", label=name)
