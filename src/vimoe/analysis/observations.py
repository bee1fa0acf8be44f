"""The choices of one layer, image by image: the image is the unit of every chance level and interval.

The patches of one image depend on each other, and so do its k choices. So images exchange their choices whole, and
whole images are left out.

What is kept is a few bytes for each image and expert that it uses; and, where patches have classes of their own, one
byte for each choice and two for each patch.
"""

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from typing import Self

import numpy as np
from numpy.typing import NDArray

Counts = NDArray[np.int64]
Order = NDArray[np.integer]  # by image, whose choices it gets
# Of every choice: its image, its place in the flat `[class, expert]` table, and how often it was made.
_Placed = Iterator[tuple[NDArray[np.integer], NDArray[np.integer], NDArray[np.integer] | None]]


class Observations(ABC):
    """The choices of one layer on so many images; `shape` is classes, experts."""

    images: int
    shape: tuple[int, int]

    @abstractmethod
    def shuffle(self, rng: np.random.Generator) -> Order:
        """A random exchange of choices between images that can exchange them."""

    @abstractmethod
    def _placed(self, order: Order | None) -> _Placed: ...

    @abstractmethod
    def load(self) -> Counts:
        """`[experts]` counts of all choices, each once, whatever the classes."""

    def parts(self, groups: Order, order: Order | None = None) -> Counts:
        """`[groups, classes, experts]` counts of each group of images, after an exchange of choices if there is one.

        `groups` are `[images]`, the group of each image from 0.
        """
        number, size = int(groups.max(initial=0)) + 1, self.shape[0] * self.shape[1]
        total = np.zeros(number * size)
        for images, cells, times in self._placed(order):
            total += np.bincount(groups[images] * size + cells, times, minlength=len(total))
        return total.astype(np.int64).reshape(number, *self.shape)

    def table(self, order: Order | None = None) -> Counts:
        """`[classes, experts]` counts of all images."""
        return self.parts(np.zeros(self.images, dtype=np.int64), order)[0]


class ImageObservations(Observations):
    """Choices of images that have one class each, their `labels` `[N]`.

    `used` says for each batch, `[images, E]`, how many of an image's choices fell on each expert.
    """

    def __init__(self, labels: NDArray[np.integer], used: Sequence[NDArray[np.integer]], num_classes: int) -> None:
        self.labels, self.images = np.asarray(labels, dtype=np.int64), len(labels)
        self.shape = (num_classes, used[0].shape[1])
        places, starts = [np.nonzero(part) for part in used], np.cumsum([0, *(len(part) for part in used)])
        self.users = np.concatenate([rows + start for (rows, _), start in zip(places, starts, strict=False)])
        self.experts = np.concatenate([columns for _, columns in places]).astype(np.uint8)
        self.times = np.concatenate([part[place] for part, place in zip(used, places, strict=True)])

    @classmethod
    def from_counts(cls, counts: Counts) -> Self:
        """Every count taken for an image of its own: right for one choice an image."""
        rows, columns = (index.ravel() for index in np.indices(counts.shape))
        used = np.eye(counts.shape[1], dtype=np.uint8)[np.repeat(columns, counts.ravel())]
        return cls(np.repeat(rows, counts.ravel()), [used], counts.shape[0])

    def shuffle(self, rng: np.random.Generator) -> Order:
        """Any image may exchange with any other."""
        return rng.permutation(self.images)

    def load(self) -> Counts:
        return np.bincount(self.experts, self.times, minlength=self.shape[1]).astype(np.int64)

    def _placed(self, order: Order | None) -> _Placed:
        labels = self.labels if order is None else self.labels[order]
        yield self.users, labels[self.users] * self.shape[1] + self.experts, self.times


class LabelSetObservations(ImageObservations):
    """Choices of images with any number of labels, `labels` `[N, classes]` bool: each counts once for each label."""

    def _placed(self, order: Order | None) -> _Placed:
        sets = self.labels if order is None else self.labels[order]
        rows, labels = np.nonzero(sets[self.users])
        yield self.users[rows], labels * self.shape[1] + self.experts[rows], self.times[rows]


class PatchObservations(Observations):
    """Choices of patches that have classes of their own.

    Args:
        classes: For each batch, `[images, P]` class of each patch, -1 for none.
        experts: For each batch, `[images, P, k]` the patch's experts, E for none. P may differ from batch to batch.
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
        self.shape, self.images = (num_classes, num_experts), sum(map(len, classes))
        sizes = sorted({part.shape[1] for part in classes})
        self.blocks = [
            (
                np.concatenate([c for c in classes if c.shape[1] == size]).astype(np.int16),
                np.concatenate([e for c, e in zip(classes, experts, strict=True) if c.shape[1] == size]),
            )
            for size in sizes
        ]

    def shuffle(self, rng: np.random.Generator) -> Order:
        """Images of the same number of patches exchange their expert maps."""
        starts = np.cumsum([0, *(len(c) for c, _ in self.blocks)])
        return np.concatenate([start + rng.permutation(len(c)) for (c, _), start in zip(self.blocks, starts)])

    def load(self) -> Counts:
        chosen = np.concatenate([experts.ravel() for _, experts in self.blocks])
        return np.bincount(chosen, minlength=self.shape[1])[: self.shape[1]]

    def _placed(self, order: Order | None) -> _Placed:
        start = 0
        for classes, experts in self.blocks:
            images = np.arange(start, start + len(classes))
            chosen = experts if order is None else experts[order[images] - start]
            seen = classes >= 0
            cells = (classes[..., None].astype(np.int64) * self.shape[1] + chosen)[seen]
            served = (chosen[seen] < self.shape[1]).ravel()
            yield np.repeat(np.nonzero(seen)[0] + start, cells.shape[-1])[served], cells.ravel()[served], None
            start += len(classes)
