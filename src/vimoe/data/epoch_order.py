"""In which order an epoch shows the images, and what everything random depends on."""

import zlib

import torch


def generator(*key: int | str) -> torch.Generator:
    """A generator that depends on nothing but `key`: what a step draws does not depend on how it was reached."""
    seed = zlib.crc32(repr(key).encode())
    return torch.Generator().manual_seed(seed)


def epoch_order(
    size: int,
    batch_size: int,
    seed: int,
    epoch: int,
    repeats: int = 1,
    part: tuple[int, int] = (0, 1),
    weights: torch.Tensor | None = None,
) -> list[list[int]]:
    """The batches of one epoch: a permutation that depends on seed and epoch alone, the incomplete batch dropped.

    With repeats (repeated augmentation, Berman et al. 2019, MultiGrain) an epoch has the same number of batches of
    fewer images, the views of an image side by side. Number `i + size * r` stands for view r of image i. Of every
    batch a process gets its `part`, by rank and world size. With `weights` `[size]`, images are drawn as often as these
    say: one that comes again comes in its next views.
    """
    drawn = generator("order", seed, epoch)
    if weights is None:
        order = torch.randperm(size, generator=drawn)
    else:
        order = torch.multinomial(weights, size, replacement=True, generator=drawn)
        order += size * repeats * _times_before(order)
    place = torch.arange(size - size % batch_size)
    numbers = order[place // repeats] + size * (place % repeats)
    rank, world = part
    return numbers.view(size // batch_size, batch_size)[:, rank::world].tolist()


def _times_before(values: torch.Tensor) -> torch.Tensor:
    """For each of `[N]` values, how often it has come before."""
    ordered, places = values.sort(stable=True)
    times = torch.arange(len(values)) - torch.searchsorted(ordered, ordered)
    return torch.empty_like(times).scatter_(0, places, times)
