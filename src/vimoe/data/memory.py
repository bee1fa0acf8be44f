"""Sets of small pictures, decoded once and held as bytes; their training batches are varied whole, on any device."""

from __future__ import annotations

import math
from dataclasses import replace
from functools import partial

import numpy as np
import torch
from timm.data import create_transform
from torch import Tensor
from torch.nn import functional as F

from vimoe.data.decode import BrokenPictureError
from vimoe.data.folder import PictureFiles, Variation
from vimoe.data.splits import Pictures, Splits
from vimoe.errors import UserError


class DecodedPictures(Pictures):
    """Pictures `[N, C, H, W]` as bytes, normalised when asked for.

    Args:
        pixels: `[N, C, H, W]` uint8.
        labels: `[N]` int64.
        mean: By channel, of pixel values between 0 and 1.
        std: By channel.
        broken: By index, what is wrong with the pictures that could not be read.
    """

    def __init__(
        self, pixels: Tensor, labels: Tensor, mean: Tensor, std: Tensor, broken: dict[int, str] | None = None
    ) -> None:
        self.pixels, self.labels = pixels, labels
        self.mean, self.std = mean[:, None, None], std[:, None, None]
        self.broken = broken or {}

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        if index in self.broken:
            raise BrokenPictureError(self.broken[index])
        return (self.pixels[index] / 255 - self.mean) / self.std, int(self.labels[index])


def decode(files: PictureFiles, splits: Splits) -> DecodedPictures:
    """Read all pictures of one split in the form that `splits` tells, as evaluation sees them."""
    transform = create_transform(
        splits.image_shape,
        interpolation=splits.interpolation,
        crop_pct=splits.crop_pct,
        is_training=False,
        use_prefetcher=True,  # leaves them as bytes
    )
    pixels = torch.zeros(len(files), *splits.image_shape, dtype=torch.uint8)
    broken = {}
    for i, (path, _) in enumerate(files.samples):
        try:
            picture = files.read(path)
        except BrokenPictureError as error:
            broken[i] = str(error)
            continue
        picture = picture if splits.image_shape[0] == 3 else picture.convert("L")
        pixels[i] = torch.from_numpy(np.atleast_3d(transform(picture))).reshape(splits.image_shape)
    labels = torch.tensor([label for _, label in files.samples])
    return DecodedPictures(pixels, labels, torch.tensor(splits.mean), torch.tensor(splits.std), broken)


def hold_in_memory(splits: Splits, variation: Variation | None) -> Splits:
    """The same splits, decoded whole (without a margin cut off); training batches are varied by `vary_batch`.

    Raises:
        UserError: The pictures are no files, or the variation has a policy that only works picture by picture.
    """
    files = [part for part in (splits.train, splits.val, splits.test) if isinstance(part, PictureFiles)]
    if len(files) != 3:
        raise UserError("in_memory is for picture files that are decoded one by one: use it with dataset 'folder'")
    if variation is not None and variation.aa:
        raise UserError(f"in_memory varies whole batches and has no policy {variation.aa!r}: leave aa empty")
    splits = replace(splits, crop_pct=1.0)
    train, val = decode(files[0], splits), decode(files[1], splits)
    test = val if files[2] is files[1] else decode(files[2], splits)
    augment = None
    if variation is not None:
        mean, std = torch.tensor(splits.mean), torch.tensor(splits.std)
        augment = partial(vary_batch, variation=variation, mean=mean, std=std)
    return replace(splits, train=train, val=val, test=test, augment=augment)


def vary_batch(
    pictures: Tensor, generator: torch.Generator, *, variation: Variation, mean: Tensor, std: Tensor
) -> Tensor:
    """Random resized crops, mirrored pictures, brightness and contrast, erased rectangles: each picture its own.

    Args:
        pictures: `[B, C, H, W]` normalised, on any device.
        generator: A CPU generator, so that every device draws the same.
        variation: How strongly.
        mean: `[C]` that was taken off pixel values between 0 and 1.
        std: `[C]` that they were divided by.
    """
    batch, device = len(pictures), pictures.device
    uniform = torch.rand(9, batch, generator=generator)
    pictures = _crop(pictures, uniform[:5], variation)
    if variation.color_jitter:
        factors = (1 + variation.color_jitter * (2 * uniform[5:7] - 1)).to(device)[..., None, None, None]
        mean, std = mean.to(device)[:, None, None], std.to(device)[:, None, None]
        light = (pictures * std + mean) * factors[0]
        grey = light.mean((1, 2, 3), keepdim=True)
        pictures = (((light - grey) * factors[1] + grey).clamp(0, 1) - mean) / std
    if variation.reprob:
        chosen = uniform[7] < variation.reprob
        noise = torch.randn(pictures.shape, generator=generator).to(device)
        hole = _rectangles(pictures.shape, torch.rand(4, batch, generator=generator)) & chosen[:, None, None, None]
        pictures = torch.where(hole.to(device), noise, pictures)
    return pictures


def _crop(pictures: Tensor, uniform: Tensor, variation: Variation) -> Tensor:
    """A window of `scale` to 1 of the area and 3:4 to 4:3 in shape, mirrored or not, at the picture's own size."""
    if variation.scale >= 1 and not variation.hflip:
        return pictures
    area = variation.scale + (1 - variation.scale) * uniform[0]
    ratio = ((2 * uniform[1] - 1) * math.log(4 / 3)).exp()
    width, height = (area * ratio).sqrt().clamp(max=1), (area / ratio).sqrt().clamp(max=1)
    if variation.scale >= 1:
        width, height = torch.ones_like(width), torch.ones_like(height)
    mirror = torch.where(uniform[4] < variation.hflip, -1.0, 1.0)
    zero = torch.zeros_like(width)
    shift_x, shift_y = (1 - width) * (2 * uniform[2] - 1), (1 - height) * (2 * uniform[3] - 1)
    rows = torch.stack([torch.stack([width * mirror, zero, shift_x], -1), torch.stack([zero, height, shift_y], -1)], -2)
    grid = F.affine_grid(rows, list(pictures.shape), align_corners=False).to(pictures.device)
    return F.grid_sample(pictures, grid, padding_mode="border", align_corners=False)


def _rectangles(shape: torch.Size, uniform: Tensor) -> Tensor:
    """`[B, 1, H, W]` bool: a rectangle of 2 to 33 % of the area in each picture (Zhong et al. 2017)."""
    height, width = shape[-2:]
    area, ratio = 0.02 + 0.31 * uniform[0], ((2 * uniform[1] - 1) * math.log(3.3)).exp()
    tall, wide = (area / ratio).sqrt().clamp(max=1), (area * ratio).sqrt().clamp(max=1)
    top, left = (1 - tall) * uniform[2], (1 - wide) * uniform[3]
    y, x = (torch.arange(height) + 0.5) / height, (torch.arange(width) + 0.5) / width
    rows = (y >= top[:, None]) & (y < (top + tall)[:, None])
    columns = (x >= left[:, None]) & (x < (left + wide)[:, None])
    return (rows[:, :, None] & columns[:, None, :])[:, None]
