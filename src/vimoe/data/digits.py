"""The embedded data: scikit-learn's digits, 1,797 real scans of 8x8 pixels, present wherever ViMoE is."""

import torch
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split
from torch import Tensor
from torch.nn import functional as F

from vimoe.data.images import InMemory
from vimoe.data.splits import Splits
from vimoe.data.transforms import ImageForm

# The order in which the scans are dealt to the splits is part of the data set, not of a run's seed.
_SPLIT_SEED = 0


def digits() -> Splits:
    """1,077 scans to learn from, 360 to decide on, 360 to report on, each class in the same share.

    Pixel values have mean 0 and standard deviation 1 over the training scans.
    """
    source = load_digits()
    images = torch.tensor(source.images / 16, dtype=torch.float32)[:, None]
    labels = torch.tensor(source.target)
    train, rest = train_test_split(
        torch.arange(len(labels)), test_size=720, random_state=_SPLIT_SEED, stratify=source.target
    )
    val, test = train_test_split(rest, test_size=360, random_state=_SPLIT_SEED, stratify=source.target[rest])
    mean, std = images[train].mean(), images[train].std()
    images = (images - mean) / std
    return Splits(
        train=InMemory(images[train], labels[train]),
        val=InMemory(images[val], labels[val]),
        test=InMemory(images[test], labels[test]),
        class_names=tuple(str(name) for name in source.target_names),
        form=ImageForm((1, 8, 8), (mean.item(),), (std.item(),)),
        augment=shift_by_a_pixel,
    )


def shift_by_a_pixel(images: Tensor, generator: torch.Generator) -> Tensor:
    """Move each of `[B, C, H, W]` images by -1, 0 or 1 pixel along each axis, the background filling in."""
    batch, _, height, width = images.shape
    padded = F.pad(images, (1, 1, 1, 1), value=float(images.min()))
    top, left = torch.randint(0, 3, (2, batch, 1), generator=generator)
    rows = (top + torch.arange(height))[:, None, :, None].to(images.device)
    columns = (left + torch.arange(width))[:, None, None, :].to(images.device)
    index = torch.arange(batch, device=images.device)[:, None, None, None]
    channels = torch.arange(images.shape[1], device=images.device)[:, None, None]
    return padded[index, channels, rows, columns]
