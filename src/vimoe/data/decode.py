"""From an image file to RGB: what is used rightly, and what counts as broken.

Used: JPEG, PNG, WebP, GIF, TIFF, BMP and PPM, whatever the file is called; greyscale, palette and CMYK become RGB,
transparency is laid on white, 16 bits become 8, EXIF rotation is applied. Broken: other formats, what is no regular
file, cannot be opened or read to its end, has no number among its decimals, or has more pixels than Pillow's limit
against decompression bombs.
"""

import os
import stat
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import IO

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from vimoe.errors import UserError

SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".ppm", ".tif", ".tiff", ".gif")
# No other decoder sees a file, whatever it claims to be: some start other programs.
FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "PPM", "TIFF", "GIF")
# Side of a patch: a line of one pixel is at least so wide when a model sees it.
_PATCH = 16


class BrokenImageError(UserError):
    """An image file that cannot be used; the message names it and says why."""


def read_image(where: object, content: IO[bytes] | None = None) -> Image.Image:
    """The image in RGB, upright.

    `where` is the file's path, or what it is called where its `content` is given.

    Raises BrokenImageError if the file cannot be used.
    """
    with opened(where, content) as image:
        return _to_rgb(ImageOps.exif_transpose(image))


@contextmanager
def opened(where: object, content: IO[bytes] | None = None, kind: str = "") -> Iterator[Image.Image]:
    """An image file, open; whatever goes wrong while it is becomes one line.

    `kind` stands behind `cannot be read` in that line, such as ` as a mask`; for the rest see `read_image`.

    Raises BrokenImageError if the file cannot be used.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # odd metadata is no reason to refuse or to talk
            with content or _open_regular(str(where)) as file, Image.open(file, formats=FORMATS) as image:
                if too_large(*image.size):
                    raise Image.DecompressionBombError
                yield image
    except UnidentifiedImageError as error:
        raise BrokenImageError(f"{where} is no image that can be read") from error
    except Image.DecompressionBombError as error:
        raise BrokenImageError(f"{where} has more pixels than is safe to decode") from error
    except Exception as error:  # a damaged file makes decoders raise anything
        reason = getattr(error, "strerror", None) or str(error) or type(error).__name__
        raise BrokenImageError(f"{where} cannot be read{kind}: {' '.join(reason.split())}") from error


def too_large(width: float, height: float) -> bool:
    """Whether an image of this size has more pixels than is safe, once it is cut into patches."""
    return max(_PATCH, width) * max(_PATCH, height) > (Image.MAX_IMAGE_PIXELS or float("inf"))


def _open_regular(path: str) -> IO[bytes]:
    if not stat.S_ISREG(os.stat(path).st_mode):  # a pipe would wait for ever
        raise OSError("it is no regular file")
    return open(path, "rb")


def _to_rgb(image: Image.Image) -> Image.Image:
    if image.mode.startswith(("I", "F")):  # 16 or 32 bits a pixel: Pillow's convert would clip them at 255
        values = np.asarray(image, dtype=np.float64)
        finite = np.isfinite(values)
        if not finite.any():
            raise ValueError("it holds no number")
        highest = 65535 if image.mode.startswith("I") else max(float(values[finite].max()), 1e-12)
        values = np.nan_to_num(values / highest, nan=0, posinf=1, neginf=0)
        image = Image.fromarray((255 * np.clip(values, 0, 1)).round().astype(np.uint8))
    if image.mode in ("RGBA", "LA", "PA") or "transparency" in image.info:
        opaque = Image.new("RGBA", image.size, "white")
        opaque.alpha_composite(image.convert("RGBA"))
        image = opaque
    return image.convert("RGB")
