"""Drawings of letters and digits in the DejaVu fonts, which come with matplotlib."""

import unicodedata
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import NamedTuple

import matplotlib
import numpy as np
from matplotlib.ft2font import FT2Font
from numpy.typing import NDArray
from PIL import Image, ImageFont

# Regular, bold, oblique and bold oblique.
FAMILIES = {
    family: tuple(f"DejaVu{font}{style}" for style in ("", "-Bold", f"-{slant}", f"-Bold{slant}"))
    for family, font, slant in (
        ("sans", "Sans", "Oblique"),
        ("serif", "Serif", "Italic"),
        ("mono", "SansMono", "Oblique"),
    )
}
_SCRIPTS = (
    *("LATIN", "GREEK", "CYRILLIC", "COPTIC", "ARMENIAN", "GEORGIAN", "HEBREW", "LAO", "LISU", "CANADIAN"),
    *("OLD ITALIC", "DIGIT"),
)
# Unicode's: letters, but no modifiers (bars and ticks), and digits of all kinds.
_CATEGORIES = ("Lu", "Ll", "Lt", "Lo", "Nd", "Nl", "No")
_FONT_SIZE = 44  # pixels; every glyph is then brought to the same extent
_EXTENT = 0.75  # of the image's side, for the longer side of a glyph
# Cosine of two glyphs' ink beyond which they count as one shape: a small c and a capital C, Latin A and Greek Alpha.
_ALIKE = 0.97


class GlyphBank(NamedTuple):
    """Drawings of all classes in the four sans faces, `[classes, faces, side, side]`; code points are ascending."""

    ink: NDArray[np.uint8]
    code_points: tuple[int, ...]


@cache
def glyph_bank(side: int) -> GlyphBank:
    """The letters and digits that the four sans faces share; of those that look alike in any face, the first.

    Which classes there are does not depend on `side`.
    """
    points = sorted(set.intersection(*(characters(face) for face in FAMILIES["sans"])))
    points = [point for point in points if unicodedata.category(chr(point)) in _CATEGORIES]
    kept = distinct(np.stack([draw(face, points, 24) for face in FAMILIES["sans"]], axis=1))
    points = [points[i] for i in kept]
    return GlyphBank(np.stack([draw(face, points, side) for face in FAMILIES["sans"]], axis=1), tuple(points))


def characters(face: str) -> set[int]:
    """The code points that a face has a glyph for."""
    return set(FT2Font(str(_font_file(face))).get_charmap())


def draw(face: str, points: Sequence[int], side: int) -> NDArray[np.uint8]:
    """The ink of glyphs, `[points, side, side]` uint8, each in the middle and all of the same extent."""
    font = ImageFont.truetype(str(_font_file(face)), _FONT_SIZE, layout_engine=ImageFont.Layout.BASIC)
    drawn = np.zeros((len(points), side, side), dtype=np.uint8)
    for image, point in zip(drawn, points, strict=True):
        mask = font.getmask(chr(point))
        glyph = Image.frombytes("L", mask.size, bytes(mask)).crop(mask.getbbox())
        scale = _EXTENT * side / max(glyph.size)
        width, height = (max(1, round(length * scale)) for length in glyph.size)
        left, top = (side - width) // 2, (side - height) // 2
        resized = glyph.resize((width, height), Image.Resampling.BILINEAR)
        image[top : top + height, left : left + width] = np.asarray(resized)
    return drawn


def distinct(ink: NDArray[np.uint8]) -> list[int]:
    """The places of the glyphs `[N, faces, 24, 24]` that are like no earlier one in any face.

    They are compared at half the size and in 64 levels: the sums of products are then exact in fp32, and every
    machine keeps the same ones.
    """
    small = ink.reshape(*ink.shape[:2], 12, 2, 12, 2).sum((3, 5), dtype=np.float32) // 16
    likeness = np.zeros((len(ink), len(ink)), dtype=np.float32)
    for face in small.reshape(*small.shape[:2], -1).swapaxes(0, 1):
        products = face @ face.T
        norms = np.sqrt(products.diagonal())
        np.maximum(likeness, products / np.outer(norms, norms), out=likeness)
    kept, free = [], np.ones(len(ink), dtype=bool)
    for i, row in enumerate(likeness):
        if free[i]:
            kept.append(i)
            free &= row <= _ALIKE
    return kept


def script(code_point: int) -> str:
    """The script of a letter or digit, from its name in Unicode: `Latin`, `Canadian`, `Digit`, `Other` and so on."""
    name = unicodedata.name(chr(code_point), "")
    return next((known.title() for known in _SCRIPTS if name.startswith(known)), "Other")


def _font_file(face: str) -> Path:
    return Path(matplotlib.get_data_path()) / "fonts" / "ttf" / f"{face}.ttf"
