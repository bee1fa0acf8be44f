"""What each expert sees: small images for the page, each embedded once however many experts show it."""

import base64
import io
from collections.abc import Iterable, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from vimoe.analysis.analysis_result import Analysis
from vimoe.data.contact_sheet import to_pixels
from vimoe.data.transforms import ImageForm

# Pixels of a thumbnail's longer side.
THUMBNAIL = 64
# Images in a page: some 2 kB each, so that a page of 100 classes stays well under 5 MB.
MOST_IMAGES = 900
# Up to so many pixels a side an image is kept as it is: JPEG would save nothing and blur it.
TINY = 32


class Thumbnail(NamedTuple):
    """A small image as a data URI; its label is -1 where it has none."""

    uri: str
    width: int
    height: int
    label: int


def gallery_places(analysis: Analysis, most: int = MOST_IMAGES) -> list[int]:
    """Places of the images to show: every expert's first image, then every second one, as far as `most` goes.

    The last layer comes first, so that where there is not room for all the earlier layers go short.
    """
    queues = [
        queue
        for layer in reversed(analysis.layers)
        for expert in layer.experts
        for queue in (expert.confident, expert.unsure)
    ]
    longest = max((len(queue) for queue in queues), default=0)
    in_turn = (queue[rank] for rank in range(longest) for queue in queues if rank < len(queue))
    return list(dict.fromkeys(in_turn))[:most]


def thumbnails(
    batches: Iterable[tuple[Tensor, Tensor]], places: Sequence[int], form: ImageForm
) -> dict[int, Thumbnail]:
    """The images at these places, as the model sees them.

    Batches are images `[B, C, H, W]`, normalised as `form` says, with labels `[B]` (or masks), in the analysis' order.
    """
    wanted, found, first = set(places), dict[int, Thumbnail](), 0
    for images, labels in batches:
        for i in range(len(images)):
            if first + i in wanted:
                label = int(labels[i]) if labels[i].ndim == 0 else -1
                found[first + i] = thumbnail(to_pixels(images[i], form), label)
        first += len(images)
        if len(found) == len(wanted):
            break
    return found


def thumbnail(pixels: NDArray[np.uint8], label: int = -1) -> Thumbnail:
    """`[H, W, 3]` uint8 as a small JPEG, or as a PNG where it is tiny."""
    image, buffer = Image.fromarray(np.ascontiguousarray(pixels)), io.BytesIO()
    kind = "png" if max(image.size) <= TINY else "jpeg"
    if kind == "jpeg":
        image.thumbnail((THUMBNAIL, THUMBNAIL), Image.Resampling.LANCZOS)
    image.save(buffer, kind, quality=72, optimize=True)
    return Thumbnail(f"data:image/{kind};base64,{base64.b64encode(buffer.getvalue()).decode()}", *image.size, label)
