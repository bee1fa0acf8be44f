"""Sets of small images, decoded once and held as bytes; their training batches are augmented whole, on any device."""

import math
from dataclasses import replace
from functools import partial

import torch
from torch import Tensor
from torch.nn import functional as F

from vimoe.data.decode import BrokenImageError
from vimoe.data.images import ImageFiles, InMemory
from vimoe.data.splits import Splits
from vimoe.data.transforms import Augmentation, ImageForm, evaluation_transform
from vimoe.errors import UserError


def decode(files: ImageFiles, form: ImageForm) -> InMemory:
    """Read all images of one split, as evaluation sees them, and hold them as bytes."""
    seen = ImageFiles(files.samples, files.read, evaluation_transform(form, as_bytes=True))
    pixels = torch.zeros(len(files), *form.input_size, dtype=torch.uint8)
    labels = torch.tensor([label for _, label in files.samples])
    broken = {}
    for i in range(len(files)):
        try:
            pixels[i] = seen[i][0]
        except BrokenImageError as error:
            broken[i] = str(error)
    return InMemory(pixels, labels, form, broken)


def hold_in_memory(splits: Splits, augmentation: Augmentation | None) -> Splits:
    """The same splits, decoded whole (without a margin cut off); training batches are augmented by `augment_batch`.

    Raises UserError if the images are no files, or the augmentation has a policy that only works image by image.
    """
    files = [part for part in (splits.train, splits.val, splits.test) if isinstance(part, ImageFiles)]
    if len(files) != 3:
        raise UserError("in_memory is for image files that are decoded one by one: use it with dataset 'folder'")
    if augmentation is not None and augmentation.aa:
        raise UserError(f"in_memory augments whole batches and has no policy {augmentation.aa!r}: leave aa empty")
    form = splits.form._replace(crop_pct=1.0)
    train, val = decode(files[0], form), decode(files[1], form)
    test = val if files[2] is files[1] else decode(files[2], form)
    augment = None
    if augmentation is not None:
        mean, std = torch.tensor(form.mean), torch.tensor(form.std)
        augment = partial(augment_batch, augmentation=augmentation, mean=mean, std=std)
    return replace(splits, train=train, val=val, test=test, form=form, augment=augment)


def augment_batch(
    images: Tensor, generator: torch.Generator, *, augmentation: Augmentation, mean: Tensor, std: Tensor
) -> Tensor:
    """Random resized crops, mirrored images, brightness and contrast, erased rectangles: each image its own.

    Args:
        images: `[B, C, H, W]` normalised, on any device.
        generator: A CPU generator, so that every device draws the same.
        augmentation: How strongly.
        mean: `[C]` that was taken off pixel values between 0 and 1.
        std: `[C]` that they were divided by.
    """
    batch, device = len(images), images.device
    uniform = torch.rand(9, batch, generator=generator)
    images = _crop(images, uniform[:5], augmentation)
    if augmentation.color_jitter:
        factors = (1 + augmentation.color_jitter * (2 * uniform[5:7] - 1)).to(device)[..., None, None, None]
        mean, std = mean.to(device)[:, None, None], std.to(device)[:, None, None]
        light = (images * std + mean) * factors[0]
        grey = light.mean((1, 2, 3), keepdim=True)
        images = (((light - grey) * factors[1] + grey).clamp(0, 1) - mean) / std
    if augmentation.reprob:
        chosen = uniform[7] < augmentation.reprob
        noise = torch.randn(images.shape, generator=generator).to(device)
        hole = _rectangles(images.shape, torch.rand(4, batch, generator=generator)) & chosen[:, None, None, None]
        images = torch.where(hole.to(device), noise, images)
    return images


def _crop(images: Tensor, uniform: Tensor, augmentation: Augmentation) -> Tensor:
    """A window of `scale` to 1 of the area and 3:4 to 4:3 in shape, mirrored or not, at the image's own size."""
    if augmentation.scale >= 1 and not augmentation.hflip:
        return images
    area = augmentation.scale + (1 - augmentation.scale) * uniform[0]
    ratio = ((2 * uniform[1] - 1) * math.log(4 / 3)).exp()
    width, height = (area * ratio).sqrt().clamp(max=1), (area / ratio).sqrt().clamp(max=1)
    if augmentation.scale >= 1:
        width, height = torch.ones_like(width), torch.ones_like(height)
    mirror = torch.where(uniform[4] < augmentation.hflip, -1.0, 1.0)
    zero = torch.zeros_like(width)
    shift_x, shift_y = (1 - width) * (2 * uniform[2] - 1), (1 - height) * (2 * uniform[3] - 1)
    rows = torch.stack([torch.stack([width * mirror, zero, shift_x], -1), torch.stack([zero, height, shift_y], -1)], -2)
    grid = F.affine_grid(rows, list(images.shape), align_corners=False).to(images.device)
    return F.grid_sample(images, grid, padding_mode="border", align_corners=False)


def _rectangles(shape: torch.Size, uniform: Tensor) -> Tensor:
    """`[B, 1, H, W]` bool: a rectangle of 2 to 33 % of the area in each image (Zhong et al. 2017)."""
    height, width = shape[-2:]
    area, ratio = 0.02 + 0.31 * uniform[0], ((2 * uniform[1] - 1) * math.log(3.3)).exp()
    tall, wide = (area / ratio).sqrt().clamp(max=1), (area * ratio).sqrt().clamp(max=1)
    top, left = (1 - tall) * uniform[2], (1 - wide) * uniform[3]
    y, x = (torch.arange(height) + 0.5) / height, (torch.arange(width) + 0.5) / width
    rows = (y >= top[:, None]) & (y < (top + tall)[:, None])
    columns = (x >= left[:, None]) & (x < (left + wide)[:, None])
    return (rows[:, :, None] & columns[:, None, :])[:, None]
