"""From an image file to RGB: what is used rightly, and what counts as broken.

Used: JPEG, PNG, WebP and whatever else Pillow reads; greyscale, palette and CMYK become RGB, transparency is laid on
white, 16 bits become 8, EXIF rotation is applied. Broken: what cannot be opened or read to its end, and what claims
more pixels than Pillow's limit against decompression bombs.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from vimoe.errors import UserError

SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".ppm", ".tif", ".tiff", ".gif")


class BrokenImageError(UserError):
    """An image file that cannot be used; the message names it and says why."""


def read_image(path: Path) -> Image.Image:
    """The image in RGB, upright.

    Raises:
        BrokenImageError: The file cannot be used.
    """
    with opened(path) as image:
        return _to_rgb(ImageOps.exif_transpose(image))


@contextmanager
def opened(path: Path, kind: str = "") -> Iterator[Image.Image]:
    """An image file, open; whatever goes wrong while it is, is told in one line.

    Args:
        path: The file.
        kind: Behind `cannot be read` in that line, such as ` as a mask`.

    Raises:
        BrokenImageError: The file cannot be used.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # odd metadata is no reason to refuse or to talk
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            with Image.open(path) as image:
                yield image
    except UnidentifiedImageError as error:
        raise BrokenImageError(f"{path} is no image that can be read") from error
    except (Image.DecompressionBombWarning, Image.DecompressionBombError) as error:
        raise BrokenImageError(f"{path} has more pixels than is safe to decode") from error
    except Exception as error:  # a damaged file makes decoders raise anything
        reason = getattr(error, "strerror", None) or str(error) or type(error).__name__
        raise BrokenImageError(f"{path} cannot be read{kind}: {' '.join(reason.split())}") from error


def _to_rgb(image: Image.Image) -> Image.Image:
    if image.mode.startswith(("I", "F")):  # 16 or 32 bits a pixel: Pillow's convert would clip them at 255
        values = np.asarray(image, dtype=np.float64)
        highest = 65535 if image.mode.startswith("I") else max(float(values.max()), 1e-12)
        image = Image.fromarray((255 * np.clip(values / highest, 0, 1)).round().astype(np.uint8))
    if image.mode in ("RGBA", "LA", "PA") or "transparency" in image.info:
        opaque = Image.new("RGBA", image.size, "white")
        opaque.alpha_composite(image.convert("RGBA"))
        image = opaque
    return image.convert("RGB")
