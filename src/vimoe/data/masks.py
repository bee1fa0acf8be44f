"""From a mask file to a label for every pixel: what is used rightly, and what counts as broken.

Used: one whole number a pixel, as 8-bit grey, palette indices, 1, 2 or 4 bits, or 16 bits whose values are classes;
EXIF rotation is applied, as it is to images. Broken: colours (RGB), decimals, values that are no class, and what
cannot be opened or read to its end. A mask without a labelled pixel is used: it adds nothing to loss or figures.
"""

from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image, ImageOps
from torch import Tensor

from vimoe.data.decode import BrokenImageError, opened

# The label of a pixel that counts nowhere, neither in the loss nor in a metric.
IGNORE = 255
# Pillow spreads the values of grey with 2 and 4 bits over 0 to 255.
_SPREAD = {"L;2": 85, "L;4": 17}


def read_mask(path: Path, num_classes: int, reduce_zero_label: bool) -> Tensor:
    """`[H, W]` int64 labels of a mask file, upright, or `IGNORE`. Raises BrokenImageError if it cannot be used."""
    with opened(path, kind=" as a mask") as image:
        values = _values(image)
    labels, wrong = labels_of(values, num_classes, reduce_zero_label)
    if wrong is not None:
        legal = f"1 to {num_classes}, 0" if reduce_zero_label else f"0 to {num_classes - 1}, {IGNORE}"
        raise BrokenImageError(f"{path} holds the value {wrong}, which is no class: {legal} for unlabelled pixels")
    return torch.from_numpy(labels)


def labels_of(
    values: NDArray[np.int64], num_classes: int, reduce_zero_label: bool
) -> tuple[NDArray[np.int64], int | None]:
    """From a mask's values to labels, and the first value that is no class.

    With `reduce_zero_label` 0 says unlabelled and the classes are 1 to `num_classes`, as in ADE20K; else they are 0 to
    `num_classes` - 1. `IGNORE` says unlabelled in both.
    """
    first = 1 if reduce_zero_label else 0
    labels = values - first
    unlabelled = (values == IGNORE) | (values == 0) if reduce_zero_label else values == IGNORE
    labels[unlabelled] = IGNORE
    wrong = values[~unlabelled & ((labels < 0) | (labels >= num_classes))]
    return labels, int(wrong[0]) if len(wrong) else None


def _values(image: Image.Image) -> NDArray[np.int64]:
    """`[H, W]`, upright."""
    if len(image.getbands()) > 1 or image.mode == "F":
        raise ValueError(f"it is {image.mode}, and a mask holds one whole number a pixel")
    stored = [str(tile[3]) for tile in getattr(image, "tile", [])]
    spread = max((_SPREAD.get(mode, 1) for mode in stored), default=1)
    return np.asarray(ImageOps.exif_transpose(image)).astype(np.int64) // spread
