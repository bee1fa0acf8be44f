"""Colours of classes and experts: always the same for the same number, and distinct for colour-blind readers.

Neighbouring numbers differ in lightness as well as in hue, because lightness is what every eye sees.
"""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from vimoe.data.masks import IGNORE

Colours = NDArray[np.uint8]

# Okabe and Ito's seven (2008), then three of Paul Tol's muted scheme (2021): light and dark in turn.
_DISTINCT = (
    *("#0072B2", "#E69F00", "#009E73", "#CC79A7", "#56B4E9", "#D55E00", "#F0E442"),
    *("#332288", "#DDCC77", "#882255"),
)
_GOLDEN_ANGLE = np.pi * (3 - np.sqrt(5))


def expert_colours(count: int) -> Colours:
    """`[count, 3]`: ten strong colours, then those of classes."""
    strong = np.array([[int(text[i : i + 2], 16) for i in (1, 3, 5)] for text in _DISTINCT], dtype=np.uint8)
    return np.concatenate([strong, class_colours(max(0, count - len(strong)))])[:count]


def class_colours(count: int) -> Colours:
    """`[count, 3]`: hues a golden angle apart, lightness in six steps, softer than those of experts."""
    n = np.arange(count)
    # Of some hundred orders the one whose first 11 and 20 colours stay furthest apart, also for red-green-blind eyes.
    lightness = np.array([0.6, 0.8, 0.9, 0.7, 0.5, 0.4])[n % 6]
    hue = 4.1 + n * _GOLDEN_ANGLE
    chroma = np.where(lightness > 0.8, 0.09, 0.12)
    return _oklab_to_srgb(lightness, chroma * np.cos(hue), chroma * np.sin(hue))


def cover(pixels: NDArray[np.uint8], mask: NDArray[Any], num_classes: int) -> NDArray[np.uint8]:
    """An image `[H, W, 3]` half covered by the colours of its mask `[H, W]`; unlabelled pixels stay as they are."""
    unlabelled = mask == IGNORE
    colours = class_colours(num_classes)[np.where(unlabelled, 0, mask)]
    return np.where(unlabelled[..., None], pixels, pixels // 2 + colours // 2).astype(np.uint8)


def _oklab_to_srgb(lightness: NDArray[np.float64], a: NDArray[np.float64], b: NDArray[np.float64]) -> Colours:
    """Ottosson's perceptual colour space ("A perceptual color space for image processing", 2020) to bytes."""
    cone_roots = np.stack(
        [
            lightness + 0.3963377774 * a + 0.2158037573 * b,
            lightness - 0.1055613458 * a - 0.0638541728 * b,
            lightness - 0.0894841775 * a - 1.2914855480 * b,
        ],
        axis=-1,
    )
    to_linear = np.array(
        [
            [4.0767416621, -3.3077115913, 0.2309699292],
            [-1.2684380046, 2.6097574011, -0.3413193965],
            [-0.0041960863, -0.7034186147, 1.7076147010],
        ]
    )
    linear = np.clip(cone_roots**3 @ to_linear.T, 0, 1)
    encoded = np.where(linear <= 0.0031308, 12.92 * linear, 1.055 * linear ** (1 / 2.4) - 0.055)
    return (255 * encoded).round().astype(np.uint8)
