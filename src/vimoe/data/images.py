"""Labelled images that can be counted: read from files when they are asked for, or held in memory."""

import hashlib
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import Dataset

from vimoe.data.decode import BrokenImageError
from vimoe.data.transforms import ImageForm

# Images of the largest class for one of the smallest, from which on classes are called uneven.
UNEVEN = 3

# Where each image is, with its label or with where its mask is.
Samples = Sequence[tuple[Any, Any]]
# From a sample to the image in RGB and its target.
Read = Callable[[Any, Any], tuple[Image.Image, Any]]


def labelled(read: Callable[[Any], Image.Image], where: Any, label: int) -> tuple[Image.Image, int]:
    """A `Read` of images whose labels need no reading, from what reads the images."""
    return read(where), label


class Images(Dataset[tuple[Tensor, Any]]):
    """Images with their targets; an item is (image `[C, H, W]` fp32, label or mask `[H, W]` int64)."""

    from_files = False  # whether an item has to be read and decoded, which is work for other processes
    label_sets = False  # whether an image has any number of labels: its target is `[classes]` of 0 and 1

    def __len__(self) -> int:
        raise NotImplementedError

    def at_epoch(self, epoch: int) -> "Images":
        """What an epoch of training shows: these images, unless their views were drawn beforehand."""
        return self


class ImageFiles(Images):
    """Images from files; `transform` makes of image and target what the model sees."""

    from_files = True

    def __init__(self, samples: Samples, read: Read, transform: Callable[[Image.Image, Any], Any]) -> None:
        self.samples = samples
        self.read = read
        self.transform = transform
        self.label_sets = len(samples) > 0 and isinstance(samples[0][1], tuple)

    def __len__(self) -> int:
        return len(self.samples)

    def __getitem__(self, index: int) -> tuple[Tensor, Any]:
        sample = self.samples[index]
        seen = self.read(*sample)
        try:
            return self.transform(*seen)
        except BrokenImageError as error:  # it does not know which file
            raise BrokenImageError(f"{sample[0]} {error}") from error


class InMemory(Images):
    """Images and targets that fit in memory.

    Args:
        images: `[N, C, H, W]`, fp32, or uint8 that is normalised when it is asked for.
        targets: Labels `[N]` or masks `[N, H, W]`, int64.
        form: How images of bytes are normalised.
        broken: By index, what is wrong with the images that could not be read.
    """

    def __init__(
        self, images: Tensor, targets: Tensor, form: ImageForm | None = None, broken: Mapping[int, str] | None = None
    ) -> None:
        self.images = images
        self.targets = targets
        self.normalise = form and (torch.tensor(form.mean)[:, None, None], torch.tensor(form.std)[:, None, None])
        self.broken = broken or {}

    def __len__(self) -> int:
        return len(self.targets)

    def __getitem__(self, index: int) -> tuple[Tensor, Any]:
        if index in self.broken:
            raise BrokenImageError(self.broken[index])
        image, target = self.images[index], self.targets[index]
        if self.normalise:
            mean, std = self.normalise
            image = (image / 255 - mean) / std
        return image, target if target.ndim else int(target)


def class_counts(images: Images, num_classes: int) -> Tensor | None:
    """`[classes]` images of each class; None for masks."""
    if isinstance(images, ImageFiles) and images.label_sets:
        return torch.bincount(torch.tensor([n for _, labels in images.samples for n in labels]), minlength=num_classes)
    labels = image_labels(images)
    return None if labels is None else torch.bincount(labels, minlength=num_classes)


def class_weights(counts: Tensor) -> Tensor:
    """`[classes]` weights under which all classes weigh the same and images 1 on average; 0 for one without images."""
    weights = torch.where(counts > 0, counts.sum() / counts.clamp(min=1), 0.0)
    return weights / (counts > 0).sum()


def is_uneven(counts: Tensor, ratio: float = UNEVEN) -> bool:
    """Whether the largest class has so many times the images of the smallest one."""
    return bool(counts.max() >= ratio * counts.min().clamp(min=1))


def image_labels(images: Images) -> Tensor | None:
    """`[N]` class of every image, none of which is opened; None where images have masks."""
    if isinstance(images, ImageFiles) and all(isinstance(target, int) for _, target in images.samples):
        return torch.tensor([label for _, label in images.samples])
    labels = images.targets if isinstance(images, InMemory) else None
    return labels if labels is not None and labels.shape == (len(images),) else None


def fingerprint(images: Images, places: Sequence[int] | None = None) -> str:
    """What tells which images these are, all or those at some places, wherever they lie and in whatever form.

    It is of the names of files and their folders, and of the labels; without files of the number and the labels.
    """
    places = range(len(images)) if places is None else places
    if isinstance(images, ImageFiles):
        found = [images.samples[place] for place in places]
        told: Any = [
            ("/".join(Path(str(where)).parts[-2:]), target)
            for where, target in found
            if isinstance(target, int | tuple)
        ]
        told = told or [Path(str(where)).name for where, _ in found]
    else:
        told = [images[place][1] for place in places]
        told = [target if isinstance(target, int) else int(target.sum()) for target in told]
    return hashlib.sha256(repr(told).encode(errors="backslashreplace")).hexdigest()
