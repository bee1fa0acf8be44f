"""Figures written for papers, the same bytes for the same figure."""

from __future__ import annotations

import io
from pathlib import Path

import matplotlib
from matplotlib.figure import Figure

from vimoe.files import write_bytes

FORMATS = ("png", "svg", "pdf")


def save_figure(figure: Figure, path: Path) -> None:
    """Write the figure as PNG, SVG and PDF: `path` with each of their suffixes; text stays text in the SVG."""
    figure.draw_without_rendering()
    figure.set_layout_engine("none")  # laid out once, not again for each format
    with matplotlib.rc_context({"svg.fonttype": "none", "svg.hashsalt": "vimoe"}):
        for suffix in FORMATS:
            buffer = io.BytesIO()
            metadata = {"svg": {"Date": None}, "pdf": {"CreationDate": None}, "png": {}}[suffix]
            figure.savefig(buffer, format=suffix, dpi=150, metadata=metadata)
            write_bytes(path.with_name(f"{path.name}.{suffix}"), buffer.getvalue())
