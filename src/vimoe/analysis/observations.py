"""Which image's choices fell where: what chance levels and intervals are made from, the image being the unit.

The patches of one image are not independent of each other, and neither are its k choices. So labels are shuffled
between images and never inside one, and images are drawn again whole.

What is kept is a few bytes for each image, layer and expert that the image uses; and, where patches have classes
of their own, one byte for each choice and two for each patch.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

Counts = NDArray[np.int64]


class Observations(Protocol):
    """The choices of one layer, image by image. Every table is `[class, expert]` int64."""

    def table(self) -> Counts:
        """The counts as they are."""
        ...

    def shuffled(self, rng: np.random.Generator) -> Counts:
        """The counts after the images have exchanged their choices at random."""
        ...

    def resampled(self, rng: np.random.Generator) -> Counts:
        """The counts of as many images, drawn with replacement (the bootstrap, Efron 1979)."""
        ...


class ImageObservations:
    """Choices of images that have one class each.

    Args:
        labels: `[N]` class of each image.
        used: For each batch, `[images, E]` how many of an image's choices fell on each expert.
        num_classes: Number of classes.
    """

    def __init__(self, labels: NDArray[np.integer], used: Sequence[NDArray[np.integer]], num_classes: int) -> None:
        self.labels = np.asarray(labels, dtype=np.int64)
        self.shape = (num_classes, used[0].shape[1])
        places, starts = [np.nonzero(part) for part in used], np.cumsum([0, *(len(part) for part in used)])
        self.images = np.concatenate([rows + start for (rows, _), start in zip(places, starts, strict=False)])
        self.experts = np.concatenate([columns for _, columns in places]).astype(np.uint8)
        self.counts = np.concatenate([part[place] for part, place in zip(used, places, strict=True)])

    @classmethod
    def from_counts(cls, counts: Counts) -> ImageObservations:
        """Every count taken for an image of its own: right for one choice an image."""
        rows, columns = (index.ravel() for index in np.indices(counts.shape))
        used = np.eye(counts.shape[1], dtype=np.uint8)[np.repeat(columns, counts.ravel())]
        return cls(np.repeat(rows, counts.ravel()), [used], counts.shape[0])

    def table(self) -> Counts:
        """The counts as they are."""
        return self._count(self.labels, self.counts)

    def shuffled(self, rng: np.random.Generator) -> Counts:
        """The counts after the images have exchanged their choices at random."""
        return self._count(rng.permutation(self.labels), self.counts)

    def resampled(self, rng: np.random.Generator) -> Counts:
        """The counts of as many images, drawn with replacement."""
        size = len(self.labels)
        times = np.bincount(rng.integers(0, max(1, size), size), minlength=size)
        return self._count(self.labels, self.counts * times[self.images])

    def _count(self, labels: NDArray[np.int64], counts: NDArray[np.integer]) -> Counts:
        cells = labels[self.images] * self.shape[1] + self.experts
        flat = np.bincount(cells, counts, minlength=self.shape[0] * self.shape[1])
        return flat.reshape(self.shape).astype(np.int64)


class PatchObservations:
    """Choices of patches that have classes of their own.

    Args:
        classes: For each batch, `[images, P]` class of each patch, -1 for none.
        experts: For each batch, `[images, P, k]` the patch's experts. P may differ from batch to batch; choices
            are exchanged between images with the same P.
        num_classes: Number of classes.
        num_experts: Number of experts E.
    """

    def __init__(
        self,
        classes: Sequence[NDArray[np.integer]],
        experts: Sequence[NDArray[np.integer]],
        num_classes: int,
        num_experts: int,
    ) -> None:
        self.shape = (num_classes, num_experts)
        sizes = sorted({part.shape[1] for part in classes})
        self.blocks = [
            (
                np.concatenate([c for c in classes if c.shape[1] == size]).astype(np.int16),
                np.concatenate([e for c, e in zip(classes, experts, strict=True) if c.shape[1] == size]),
            )
            for size in sizes
        ]

    def table(self) -> Counts:
        """The counts as they are."""
        return self._sum([_cells(c, e, self.shape[1]) for c, e in self.blocks])

    def shuffled(self, rng: np.random.Generator) -> Counts:
        """The counts after the images have exchanged their expert maps at random."""
        return self._sum([_cells(c, e[rng.permutation(len(e))], self.shape[1]) for c, e in self.blocks])

    def resampled(self, rng: np.random.Generator) -> Counts:
        """The counts of as many images, drawn with replacement among those of the same size."""
        drawn = [rng.integers(0, len(c), len(c)) for c, _ in self.blocks]
        return self._sum([_cells(c[i], e[i], self.shape[1]) for (c, e), i in zip(self.blocks, drawn, strict=True)])

    def _sum(self, cells: Sequence[NDArray[np.int64]]) -> Counts:
        size = self.shape[0] * self.shape[1]
        total: Counts = np.sum([np.bincount(part, minlength=size) for part in cells], axis=0)
        return total.reshape(self.shape)


def _cells(classes: NDArray[np.integer], experts: NDArray[np.integer], num_experts: int) -> NDArray[np.int64]:
    """Place in the flat table of every choice of a patch that has a class."""
    cells = classes[..., None].astype(np.int64) * num_experts + experts
    return cells[classes >= 0].ravel()
