"""Decoders: from a ViT's patch features to the logits of every patch."""

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class LinearDecoder(nn.Module):
    """BatchNorm and a 1×1 convolution on the last block's patches.

    DINOv2's protocol for linear segmentation (Oquab et al. 2023, section 7.4), and the paper's.
    """

    def __init__(self, width: int, num_classes: int) -> None:
        super().__init__()
        self.norm = nn.BatchNorm2d(width)
        self.classify = _classifier(width, num_classes)

    def forward(self, features: Sequence[Tensor]) -> Tensor:
        """The last of `features`, `[B, width, h, w]`, to logits `[B, num_classes, h, w]`."""
        return self.classify(self.norm(features[-1]))


class MultiLevelDecoder(nn.Module):
    """UPerNet (Xiao et al. 2018, arXiv 1807.10221) on a pyramid made of four blocks of a ViT.

    The pyramid is that of BEiT (Bao et al. 2021): the features of one grid, brought to 4, 2, 1 and 1/2 times its
    size. Pooled context joins the coarsest level (PPM); each finer level adds what comes from above (FPN); all levels
    together decide. Ours: GroupNorm, which needs neither large batches nor other processes, where UPerNet has
    BatchNorm; no dropout, no auxiliary head. Inside there are `dim` channels.
    """

    def __init__(self, width: int, num_classes: int, dim: int = 512) -> None:
        super().__init__()
        self.dim = dim
        self.pyramid = nn.ModuleList(
            [
                nn.Sequential(_enlarge(width), _group_norm(width), nn.GELU(), _enlarge(width)),
                _enlarge(width),
                nn.Identity(),
                nn.MaxPool2d(2, ceil_mode=True),
            ]
        )
        self.context = PooledContext(width, dim)
        self.lateral = nn.ModuleList([_conv(width, dim, 1) for _ in range(3)])
        self.smooth = nn.ModuleList([_conv(dim, dim, 3) for _ in range(3)])
        self.fuse = _conv(4 * dim, dim, 3)
        self.classify = _classifier(dim, num_classes)

    def forward(self, features: Sequence[Tensor]) -> Tensor:
        """Four features `[B, width, h, w]`, shallow to deep, to logits `[B, num_classes, 4h, 4w]`."""
        *fine, coarsest = [resize(feature) for resize, feature in zip(self.pyramid, features, strict=True)]
        levels = [self.context(coarsest)]
        for lateral, level in zip(reversed(self.lateral), reversed(fine), strict=True):
            levels.append(lateral(level) + _resized(levels[-1], level.shape[-2:]))
        coarsest, *rest = levels
        rest = [smooth(level) for smooth, level in zip(self.smooth, rest, strict=True)]
        size = rest[-1].shape[-2:]
        return self.classify(self.fuse(torch.cat([_resized(level, size) for level in (coarsest, *rest)], 1)))


class PooledContext(nn.Module):
    """Pyramid pooling (PSPNet, Zhao et al. 2017): the image's mean over 1, 4, 9 and 36 regions beside each place."""

    def __init__(self, width: int, dim: int, grids: Sequence[int] = (1, 2, 3, 6)) -> None:
        super().__init__()
        self.pools = nn.ModuleList([nn.Sequential(nn.AdaptiveAvgPool2d(n), _conv(width, dim, 1)) for n in grids])
        self.fuse = _conv(width + len(grids) * dim, dim, 3)

    def forward(self, x: Tensor) -> Tensor:
        """`[B, width, h, w]` to `[B, dim, h, w]`."""
        regions = [_resized(pool(x), x.shape[-2:]) for pool in self.pools]
        return self.fuse(torch.cat([x, *regions], 1))


def _conv(width: int, dim: int, size: int) -> nn.Module:
    return nn.Sequential(nn.Conv2d(width, dim, size, padding=size // 2, bias=False), _group_norm(dim), nn.ReLU())


def _group_norm(dim: int) -> nn.Module:
    """At most 32 groups, of four channels or more: a region of one pixel has something to be normalised by."""
    return nn.GroupNorm(math.gcd(32, max(1, dim // 4)), dim)


def _enlarge(width: int) -> nn.Module:
    return nn.ConvTranspose2d(width, width, kernel_size=2, stride=2)


def _classifier(width: int, num_classes: int) -> nn.Conv2d:
    """Starts with nearly equal probabilities for all classes."""
    layer = nn.Conv2d(width, num_classes, kernel_size=1)
    nn.init.normal_(layer.weight, std=0.01)
    assert layer.bias is not None
    nn.init.zeros_(layer.bias)
    return layer


def _resized(x: Tensor, size: Sequence[int]) -> Tensor:
    return F.interpolate(x, size=tuple(size), mode="bilinear", align_corners=False)
