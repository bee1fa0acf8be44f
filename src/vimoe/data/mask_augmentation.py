"""Images and their masks augmented together, for segmentation.

The protocol of MMSegmentation's ADE20K recipes: a random size between half and twice, a crop of which no class has 75 %
or more, mirroring, and a change of colours. Everything random is drawn from torch's global generator.
"""

from typing import NamedTuple

import torch
from PIL import Image
from torch import Tensor
from torchvision.transforms import InterpolationMode, v2
from torchvision.transforms.v2 import functional as F
from torchvision.tv_tensors import Mask

from vimoe.data.masks import IGNORE
from vimoe.data.transforms import ImageForm

_SMALLEST, _LARGEST = 0.5, 2.0
_CLASS_SHARE, _TRIES = 0.75, 10
# Bringing the shorter side to a size makes the longer one at most so many times that (MMSegmentation: 2048 to 512).
LONGEST = 4


class JointAugmentation(NamedTuple):
    """How training images are augmented with their masks: chance of mirroring, and strength of `colour_change`."""

    hflip: float = 0.5
    color_jitter: float = 0.5


class Window(NamedTuple):
    """A part of an image, in its own pixels, and the height and width it is brought to."""

    top: int
    left: int
    height: int
    width: int
    size: tuple[int, int]


def evaluation_pair(image: Image.Image, mask: Tensor, *, form: ImageForm) -> tuple[Tensor, Tensor]:
    """The normalised image `[C, H, W]` and its mask `[H, W]`, both at their own size."""
    return normalised(image, form), mask


def training_pair(
    image: Image.Image,
    mask: Tensor,
    *,
    form: ImageForm,
    augmentation: JointAugmentation | None,
    short_side: int | None = None,
) -> tuple[Tensor, Tensor]:
    """A random part of the image at a random size, augmented, with the same part of its mask.

    Without an augmentation it is the middle of the image at size 1. What the part does not fill is the mean colour,
    labelled `IGNORE`.

    Args:
        mask: `[H, W]` int64.
        form: How the model wants its images; the crop has its height and width.
        short_side: Pixels of the shorter side at size 1, as evaluation brings it to; None for the image's own, which
            is what evaluation looks at then.

    Returns:
        The normalised image `[C, h, w]` and its mask `[h, w]` int64.
    """
    crop = form.input_size[1:]
    scale = size_factor(*image.size, short_side)
    if augmentation is None:
        window = _window(mask, scale, crop, 0.5, 0.5)
    else:
        window = random_window(mask, scale * float(torch.empty(()).uniform_(_SMALLEST, _LARGEST)), crop)
    image = F.resized_crop(image, *window, interpolation=InterpolationMode(form.interpolation))
    # torchvision's own nearest for a Mask takes the corner of what a pixel covers, not the middle as the image does.
    labels = Mask(F.resized_crop(mask[None], *window, interpolation=InterpolationMode.NEAREST_EXACT)[0])
    if augmentation is not None:
        augment = v2.Compose([v2.RandomHorizontalFlip(augmentation.hflip), colour_change(augmentation.color_jitter)])
        image, labels = augment(image, labels)
    border = [0, 0, crop[1] - window.size[1], crop[0] - window.size[0]]
    return F.pad(normalised(image, form), border), F.pad(labels, border, fill=IGNORE).as_subclass(Tensor)


def normalised(image: Image.Image, form: ImageForm) -> Tensor:
    """An image in RGB as the model wants it, at its own size: `[C, H, W]` fp32."""
    image = image if form.input_size[0] == 3 else image.convert("L")
    values = F.to_dtype(F.pil_to_tensor(image), torch.float32, scale=True)
    return F.normalize(values, list(form.mean), list(form.std))


def random_window(mask: Tensor, scale: float, crop: tuple[int, int]) -> Window:
    """A random part of the mask that is a crop at this scale, of whose labelled pixels no class has 75 % or more.

    After ten tries it is what it is. The part is chosen before anything is resized, so that a large image costs no
    more than its crop.
    """
    for _ in range(_TRIES):
        window = _window(mask, scale, crop, *torch.rand(2).tolist())
        part = mask[window.top : window.top + window.height, window.left : window.left + window.width]
        pixels = torch.bincount(part.flatten(), minlength=IGNORE)[:IGNORE]
        if pixels.max() < _CLASS_SHARE * pixels.sum():
            break
    return window


def colour_change(strength: float) -> v2.Transform:
    """Brightness, contrast, saturation and hue, each changed in half of the images.

    With strength 0.5 the ranges are those of MMSegmentation's PhotoMetricDistortion: an eighth, a half, a half, and a
    tenth of the circle; brightness multiplies here, and contrast always comes before saturation.
    """
    changes = (
        v2.ColorJitter(brightness=strength / 4),
        v2.ColorJitter(contrast=strength),
        v2.ColorJitter(saturation=strength),
        v2.ColorJitter(hue=min(0.5, strength / 5)),
    )
    return v2.Compose([v2.RandomApply([change], p=0.5) for change in changes])


def size_factor(width: int, height: int, short_side: int | None) -> float:
    """What brings the shorter side to `short_side`, the longer one to at most `LONGEST` times that; 1 without one."""
    if short_side is None:
        return 1.0
    return min(short_side / min(width, height), LONGEST * short_side / max(width, height))


def _window(mask: Tensor, scale: float, crop: tuple[int, int], down: float, right: float) -> Window:
    """The part that is a crop at this scale, between the first row (0) and the last (1), or all there is."""
    height, width = (min(side, max(1, round(c / scale))) for side, c in zip(mask.shape, crop, strict=True))
    size = min(crop[0], max(1, round(height * scale))), min(crop[1], max(1, round(width * scale)))
    top, left = round(down * (mask.shape[0] - height)), round(right * (mask.shape[1] - width))
    return Window(top, left, height, width, size)
