"""Images side by side with a caption each, as one image."""

import math
from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from vimoe.data.transforms import ImageForm

_LINE, _GAP, _TEXT = 15, 6, 12
# Pixels of a character, about: what would be wider is cut.
_LETTER = 6.5


def to_pixels(image: Tensor, form: ImageForm) -> NDArray[np.uint8]:
    """A normalised image `[C, H, W]`, of one or three channels, as `[H, W, 3]` uint8."""
    pixels = image.cpu() * torch.tensor(form.std)[:, None, None] + torch.tensor(form.mean)[:, None, None]
    return (255 * pixels.clamp(0, 1)).round().byte().expand(3, -1, -1).permute(1, 2, 0).numpy()


def contact_sheet(
    images: Sequence[NDArray[np.uint8]], captions: Sequence[str], columns: int = 8, side: int = 144
) -> Image.Image:
    """Lay images `[H, W, 3]` of any size out row by row, each fitted into the same cell, its caption below.

    A cell is `side` pixels high, and as wide as the widest image needs.
    """
    scales = [side / pixels.shape[0] for pixels in images]
    width = max((round(pixels.shape[1] * scale) for pixels, scale in zip(images, scales, strict=True)), default=side)
    width = min(width, 4 * side)
    columns = max(1, min(columns, len(images)))
    lines = max((caption.count("\n") + 1 for caption in captions), default=0)
    cell = (width + _GAP, side + lines * _LINE + 2 * _GAP)
    sheet = Image.new("RGB", (columns * cell[0] + _GAP, math.ceil(len(images) / columns) * cell[1] + _GAP), "white")
    draw, font = ImageDraw.Draw(sheet), ImageFont.load_default(_TEXT)
    for place, (pixels, caption) in enumerate(zip(images, captions, strict=True)):
        left, top = _GAP + place % columns * cell[0], _GAP + place // columns * cell[1]
        image = Image.fromarray(np.ascontiguousarray(pixels))
        scale = min(width / image.width, side / image.height)
        size = max(1, round(image.width * scale)), max(1, round(image.height * scale))
        sheet.paste(
            image.resize(size, Image.Resampling.BICUBIC if scale < 1 else Image.Resampling.NEAREST), (left, top)
        )
        most = int(width / _LETTER)
        for number, line in enumerate(caption.split("\n")):
            cut = line if len(line) <= most else line[: most - 2] + ".."
            draw.text((left, top + side + 2 + number * _LINE), cut, fill="black", font=font)
    return sheet
