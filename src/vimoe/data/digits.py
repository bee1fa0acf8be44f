"""The embedded data: scikit-learn's digits, 1,797 real scans of 8x8 pixels, present wherever ViMoE is."""

from __future__ import annotations

import torch
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split
from torch import Tensor
from torch.nn import functional as F

from vimoe.data.splits import Pictures, Splits

# The order in which the scans are dealt to the splits is part of the data set, not of a run's seed.
_SPLIT_SEED = 0


def digits() -> Splits:
    """1,077 scans to learn from, 360 to decide on, 360 to report on, each class in the same share.

    Pixel values have mean 0 and standard deviation 1 over the training scans.
    """
    source = load_digits()
    pictures = torch.tensor(source.images / 16, dtype=torch.float32)[:, None]
    labels = torch.tensor(source.target)
    train, rest = train_test_split(
        torch.arange(len(labels)), test_size=720, random_state=_SPLIT_SEED, stratify=source.target
    )
    val, test = train_test_split(rest, test_size=360, random_state=_SPLIT_SEED, stratify=source.target[rest])
    mean, std = pictures[train].mean(), pictures[train].std()
    pictures = (pictures - mean) / std
    return Splits(
        train=InMemory(pictures[train], labels[train]),
        val=InMemory(pictures[val], labels[val]),
        test=InMemory(pictures[test], labels[test]),
        class_names=tuple(str(name) for name in source.target_names),
        image_shape=(1, 8, 8),
        mean=(mean.item(),),
        std=(std.item(),),
        augment=shift_by_a_pixel,
    )


class InMemory(Pictures):
    """Pictures `[N, C, H, W]` and labels `[N]` that fit in memory."""

    def __init__(self, pictures: Tensor, labels: Tensor) -> None:
        self.pictures = pictures
        self.labels = labels

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        return self.pictures[index], int(self.labels[index])


def shift_by_a_pixel(pictures: Tensor, generator: torch.Generator) -> Tensor:
    """Move each picture by -1, 0 or 1 pixel along each axis, the background filling in.

    Args:
        pictures: `[B, C, H, W]`.
        generator: Where the shifts are drawn from.
    """
    batch, _, height, width = pictures.shape
    padded = F.pad(pictures, (1, 1, 1, 1), value=float(pictures.min()))
    top, left = torch.randint(0, 3, (2, batch, 1), generator=generator)
    rows = (top + torch.arange(height))[:, None, :, None].to(pictures.device)
    columns = (left + torch.arange(width))[:, None, None, :].to(pictures.device)
    images = torch.arange(batch, device=pictures.device)[:, None, None, None]
    channels = torch.arange(pictures.shape[1], device=pictures.device)[:, None, None]
    return padded[images, channels, rows, columns]
