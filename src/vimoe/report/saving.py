"""Figures written to files for papers, and embedded in a page; the same bytes for the same figure."""

import base64
import io
import re
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import matplotlib
from markupsafe import Markup
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.backends.backend_pdf import FigureCanvasPdf
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure

from vimoe.files import write_bytes

FORMATS = ("png", "svg", "pdf")
_CANVASES = {"png": FigureCanvasAgg, "svg": FigureCanvasSVG, "pdf": FigureCanvasPdf}
# A page's photographs in figures: pixels an inch, and WebP's quality.
_DPI, _QUALITY = 120, 75


class Drawing(NamedTuple):
    """A figure in a page, with the width in CSS pixels at which its text has the size that it was drawn for.

    `boxes` say by label of its axes, such as `block 11`, where these lie, as CSS for an element over the figure.
    """

    svg: Markup
    width: int
    boxes: dict[str, str]


def save_figure(figure: Figure, path: Path) -> None:
    """Write the figure as PNG, SVG and PDF: `path` with each of their suffixes; text stays text in the SVG."""
    with _laid_out(figure, "vimoe"):
        figure.set_dpi(150)
        for suffix in FORMATS:
            metadata = {"svg": {"Date": None}, "pdf": {"CreationDate": None}, "png": {}}[suffix]
            buffer = io.BytesIO()
            # What `savefig` does, without its first drawing to find a layout.
            getattr(_CANVASES[suffix](figure), f"print_{suffix}")(buffer, metadata=metadata)
            write_bytes(path.with_name(f"{path.name}.{suffix}"), buffer.getvalue())


def png(figure: Figure) -> bytes:
    """The figure as the bytes of a PNG file."""
    buffer = io.BytesIO()
    with _laid_out(figure, "vimoe"):
        figure.savefig(buffer, format="png", dpi=_DPI, metadata={"Software": None})
    return buffer.getvalue()


def embed(figure: Figure, name: str, words: str) -> Drawing:
    """The figure as an SVG element that takes the font and the colour of the text around it.

    Each figure of a page has another name, so that no two ids are the same; `words` are for those who cannot see it.
    """
    with _laid_out(figure, name):
        buffer = io.StringIO()
        figure.savefig(buffer, format="svg", transparent=True, metadata={"Date": None})
    svg = buffer.getvalue()
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r"\s*<metadata>.*?</metadata>|\s*<style.*?</style>", "", svg, flags=re.DOTALL)
    svg = re.sub(r'<g id="[^"]*"', "<g", svg)
    svg = re.sub(r"font-family: [^;\"]*;? ?", "", svg)
    svg = svg.replace("stroke: #000000", "stroke: currentColor")
    head = Markup('<svg role="img" aria-label="{}"').format(words)
    boxes = {}
    for ax in figure.axes:
        if str(ax.get_label()).startswith("block"):
            x, y, width, height = (100 * value for value in ax.get_position().bounds)
            place = f"left:{x:.3f}%;top:{100 - y - height:.3f}%;width:{width:.3f}%;height:{height:.3f}%"
            boxes[str(ax.get_label())] = place
    return Drawing(head + Markup(svg.removeprefix("<svg")), round(96 * figure.get_figwidth()), boxes)


def embed_pixels(figure: Figure) -> str:
    """A figure of photographs as a data URI."""
    buffer = io.BytesIO()
    with _laid_out(figure, "vimoe"):
        figure.savefig(buffer, format="webp", dpi=_DPI, pil_kwargs={"quality": _QUALITY})
    return f"data:image/webp;base64,{base64.b64encode(buffer.getvalue()).decode()}"


@contextmanager
def _laid_out(figure: Figure, salt: str) -> Iterator[None]:
    with matplotlib.rc_context({"svg.fonttype": "none", "svg.hashsalt": salt}), warnings.catch_warnings():
        # Names in scripts that the font lacks: boxes in the PNG, text in the SVG.
        warnings.filterwarnings("ignore", "Glyph .* missing from font")
        if engine := figure.get_layout_engine():
            engine.execute(figure)
        figure.set_layout_engine("none")  # laid out once, not again for each format
        yield
