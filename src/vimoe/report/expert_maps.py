"""Expert maps: which expert each patch of an image chose, coloured over the image."""

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
from vimoe.report.plots import LETTERS, legend, short
from vimoe.tasks.palette import class_colours, expert_colours

# Inches: width of a row of panels, of a panel at most, and height of a line of the legends.
ROW, PANEL, LINE = 12.0, 1.9, 0.2
# How much of a panel's colour is the expert's; the rest is the image in grey, from this grey to white, so that
# experts look alike in dark images and in light ones.
STRENGTH, DARKEST = 0.66, 60
UNLABELLED = (240, 240, 240)
# More classes than these are not named in the legend, the rarest left out.
NAMED_CLASSES = 24
# The legend names a class where an expert gets so many times its share of it, and so many nats by that: about where a G
# test of one cell says p = 0.05.
CLEARLY, NATS = 1.2, 3.0


def expert_maps(maps: Sequence[ExpertMap], counts: RoutingCounts, columns: int = 8) -> Figure:
    """Each image beside its classes and, for every MoE layer, the experts that its patches chose, the last first.

    The same colour in two layers means the same number, not the same expert. The legend says which classes the last
    layer's experts get most of. All maps have the same layers; more than fill a row of panels go on in further ones.
    """
    num_experts = dict(zip(counts.layers, counts.num_experts, strict=True))
    numbers = sorted(maps[0].experts, reverse=True)
    rows_each = math.ceil((2 + len(numbers)) / columns)
    columns = math.ceil((2 + len(numbers)) / rows_each)
    side = min(PANEL, ROW / columns)
    heights = [side * one.image.shape[0] / one.image.shape[1] for one in maps for _ in range(rows_each)]
    width = columns * side
    keys = [_expert_key(counts), _class_key(maps, counts.class_names)]
    per_line = [max(1, int(width / (0.5 + 0.062 * max(len(short(name, LETTERS)) for name in key)))) for key in keys]
    legends = sum(LINE * (math.ceil(len(key) / n) + 1.5) for key, n in zip(keys, per_line, strict=True))
    figure = Figure(figsize=(width, sum(heights) + 0.28 * len(heights) + legends), layout="constrained")
    figure.get_layout_engine().set(w_pad=0.02, h_pad=0.04, wspace=0, hspace=0)  # type: ignore[union-attr, call-arg]
    axes = figure.subplots(len(heights), columns, height_ratios=heights, squeeze=False)
    for one, mine in zip(maps, axes.reshape(len(maps), -1), strict=True):
        panels = [("image", one.image), ("classes", class_panel(one, len(counts.class_names)))]
        panels += [(f"block {number}", expert_panel(one, number, num_experts[number])) for number in numbers]
        for ax in mine:
            ax.set_axis_off()
        for ax, (title, panel) in zip(mine, panels, strict=False):
            ax.imshow(panel, interpolation="nearest")
            if one is maps[0] or rows_each > 1:
                ax.set_title(title, fontsize=9, pad=3)
        for ax, number in zip(mine[2:], numbers, strict=False):
            ax.add_collection(_borders(one, number))
    served = f"expert, and the classes whose patches it gets more of than of others in block {numbers[0]}"
    for key, columns, title, place in zip(keys, per_line, (served, "class"), ("lower", "upper"), strict=True):
        patches = [Patch(color=tuple((colour / 255).tolist())) for colour in key.values()]
        look = {"title": title, "title_fontsize": 8, "alignment": "left", "ncols": columns}
        legend(figure, patches, list(key), loc=f"outside {place} left", **look)
    return figure


def expert_panel(one: ExpertMap, number: int, num_experts: int) -> NDArray[np.uint8]:
    """The image in grey under its patches' experts in colour: `[H, W, 3]`."""
    height, width = one.image.shape[:2]
    chosen = one.experts[number].repeat(one.patch_size[0], 0).repeat(one.patch_size[1], 1)[:height, :width]
    luma = one.image @ np.array([0.299, 0.587, 0.114])  # ITU-R BT.601
    dark, light = np.quantile(luma, (0.01, 0.99))
    grey = DARKEST + (255 - DARKEST) * np.clip((luma - dark) / max(1.0, light - dark), 0, 1)
    colours = np.vstack(
        [expert_colours(num_experts), np.full((1, 3), UNLABELLED, dtype=np.uint8)]
    )  # where no expert serves
    return _over(grey[..., None], colours[chosen])


def class_panel(one: ExpertMap, num_classes: int) -> NDArray[np.uint8]:
    """The colours of the pixels' classes, light grey where unlabelled: `[H, W, 3]`."""
    colours = np.full((IGNORE + 1, 3), UNLABELLED, dtype=np.uint8)
    colours[:num_classes] = class_colours(num_classes)
    return colours[one.classes]


def _borders(one: ExpertMap, number: int) -> LineCollection:
    """White lines between neighbouring patches of different experts, in pixels of the image."""
    experts, (height, width) = one.experts[number], one.image.shape[:2]
    rows, columns = one.patch_size
    right, below = (np.argwhere(np.diff(experts, axis=axis)).tolist() for axis in (1, 0))
    lines = [[((x + 1) * columns, y * rows), ((x + 1) * columns, min((y + 1) * rows, height))] for y, x in right]
    lines += [[(x * columns, (y + 1) * rows), (min((x + 1) * columns, width), (y + 1) * rows)] for y, x in below]
    width_of_a_patch = 72 * PANEL * columns / width  # in points
    corners = np.array(lines).reshape(-1, 2, 2) - 0.5  # a pixel's middle is at whole numbers
    return LineCollection(list(corners), colors="white", linewidths=min(0.9, 0.09 * width_of_a_patch))


def _over(grey: NDArray[np.float64], colours: NDArray[np.uint8]) -> NDArray[np.uint8]:
    return (STRENGTH * colours + (1 - STRENGTH) * grey).round().astype(np.uint8)


def favoured_classes(table: NDArray[np.int64], class_names: Sequence[str], most: int = 3) -> list[str]:
    """For each expert of a table `[class, expert]`, the classes that it gets more of than of others.

    These are named by what they add to the mutual information of class and expert, so that a background that is most of
    every expert's patches names none, nor does a class of a few patches. The share is of the class's patches.
    """
    shares = table / np.maximum(table.sum(1, keepdims=True), 1)
    expected = table.sum(0) / max(1, table.sum())
    with np.errstate(divide="ignore", invalid="ignore"):
        more = shares / expected
        nats = np.where(more >= CLEARLY, table * np.log(more), 0.0)
    best = np.argsort(-nats, axis=0, kind="stable")[:most]
    named = [
        ", ".join(f"{shares[c, e]:.0%} of {short(class_names[c], 16)}" for c in best[:, e] if nats[c, e] >= NATS)
        for e in range(table.shape[1])
    ]
    return [words or ("all alike" if used else "no patch") for words, used in zip(named, table.sum(0), strict=True)]


def _expert_key(counts: RoutingCounts) -> dict[str, NDArray[Any]]:
    """By name and what they get, the experts' colours over a middle grey."""
    colours = _over(np.array((DARKEST + 255) / 2), expert_colours(max(counts.num_experts)))
    served = favoured_classes(counts.layer(max(counts.layers)), counts.class_names)
    served += [""] * (len(colours) - len(served))
    return {f"{e}: {words}".rstrip(": "): colour for e, (words, colour) in enumerate(zip(served, colours, strict=True))}


def _class_key(maps: Sequence[ExpertMap], class_names: Sequence[str]) -> dict[str, NDArray[Any]]:
    """By name, the colours of the most frequent classes in the images, in their own order."""
    colours = class_colours(len(class_names))
    pixels = np.bincount(np.concatenate([one.classes.ravel() for one in maps]), minlength=IGNORE + 1)
    often = np.argsort(-pixels[: len(class_names)], kind="stable")[:NAMED_CLASSES]
    key: dict[str, NDArray[Any]] = {class_names[i]: colours[i] for i in sorted(often.tolist()) if pixels[i]}
    if pixels[IGNORE]:
        key["unlabelled"] = np.array(UNLABELLED)
    return key
