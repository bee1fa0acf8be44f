"""Class × expert heatmaps for the page: images of one pixel a cell, and the numbers that hovering tells."""

from __future__ import annotations

import base64
import io
from typing import Any, NamedTuple

import numpy as np
from matplotlib.colors import LinearSegmentedColormap
from numpy.typing import NDArray
from PIL import Image

from vimoe.analysis.counts import RoutingCounts
from vimoe.report.plots import order_by_expert

# From 0 to 1, on a light page and on a dark one: more is always further from the page.
RAMPS = {
    "light": ("#f3f7fb", "#c6dbef", "#6baed6", "#2171b5", "#08306b"),
    "dark": ("#18212b", "#173f63", "#1f6aa5", "#5fb0e8", "#e4f3ff"),
}
# Up to so many classes every row is as high as its name; more are drawn small, to be enlarged.
NAMED_CLASSES = 40


class Heatmap(NamedTuple):
    """One layer's heatmap.

    Attributes:
        light: Its image as a data URI, for a light page; a row a class, a column an expert.
        dark: The same for a dark page.
        names: Of the rows, from the top; empty where they are too many to be shown at once.
        classes: How many rows.
        experts: How many columns.
    """

    light: str
    dark: str
    names: tuple[str, ...]
    classes: int
    experts: int


def class_shares(table: NDArray[np.int64]) -> NDArray[np.float64]:
    """`[class, expert]` share of each class's choices; rows sum to 1, or to 0 for a class that never occurred."""
    shares: NDArray[np.float64] = table / np.maximum(table.sum(1, keepdims=True), 1)
    return shares


def heatmap(counts: RoutingCounts, number: int) -> Heatmap:
    """One block's heatmap, rows ordered by their dominant expert, colours from 0 to 1 in every layer."""
    shares = class_shares(counts.layer(number))
    order = order_by_expert(shares)
    names = tuple(counts.class_names[i] for i in order) if len(order) <= NAMED_CLASSES else ()
    light, dark = (shares_uri(shares[order], ramp) for ramp in ("light", "dark"))
    return Heatmap(light, dark, names, *shares.shape)


def scale() -> Heatmap:
    """The colours from 0 to 1, as a heatmap of one row."""
    light, dark = (shares_uri(np.linspace(0, 1, 128)[None], ramp) for ramp in ("light", "dark"))
    return Heatmap(light, dark, (), 1, 128)


def shares_uri(shares: NDArray[np.float64], ramp: str) -> str:
    """Shares `[rows, columns]` between 0 and 1 as a PNG of as many pixels, in a data URI."""
    colours = LinearSegmentedColormap.from_list(ramp, RAMPS[ramp])(np.linspace(0, 1, 256))[:, :3]
    image = Image.fromarray((255 * shares).round().astype(np.uint8), mode="P")
    image.putpalette((255 * colours).round().astype(np.uint8).tobytes())
    return png_uri(image)


def png_uri(image: Image.Image) -> str:
    """An image as PNG in a data URI."""
    buffer = io.BytesIO()
    image.save(buffer, "PNG", optimize=True)
    return f"data:image/png;base64,{base64.b64encode(buffer.getvalue()).decode()}"


def hover_data(counts: RoutingCounts) -> dict[str, Any]:
    """What the page's script reads: class names, and by block the order of the rows and their counts."""
    layers = {}
    for number in counts.layers:
        table = counts.layer(number)
        layers[str(number)] = {
            "experts": table.shape[1],
            "order": order_by_expert(class_shares(table)).tolist(),
            "counts": table.ravel().tolist(),
        }
    return {"classes": list(counts.class_names), "layers": layers}
