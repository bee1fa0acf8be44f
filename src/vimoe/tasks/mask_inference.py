"""A finished segmentation model at work on any images, from its folder alone."""

import io
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from vimoe.data.decode import read_image
from vimoe.data.images import ImageFiles, labelled
from vimoe.data.loaders import batches
from vimoe.data.mask_augmentation import normalised
from vimoe.tasks.classification import evaluating
from vimoe.tasks.model import model_form
from vimoe.tasks.palette import class_colours
from vimoe.tasks.segmenter_folder import load_segmenter, read_segmentation
from vimoe.tasks.windows import View, probabilities

Mask = NDArray[np.int64]


class MaskPrediction(NamedTuple):
    """What a model sees in an image."""

    path: Path
    mask: bytes  # an indexed PNG of the image's size, its values those of the masks the model learned from
    overlay: bytes  # a PNG of the image under the colours of its classes
    # By class name, the share of the pixels, largest first; classes that were not seen are left out.
    shares: dict[str, float]


def default_view(folder: Path) -> View:
    """How the model of a folder saw images in training: whole, at this size. Raises UserError if it is no segmenter."""
    return View(short_side=read_segmentation(folder).short_side)


def predict_masks(
    folder: Path, images: Sequence[Path], view: View, device: str, on_broken: Callable[[str], None], workers: int = 0
) -> Iterator[MaskPrediction]:
    """What the model of a folder sees in image files, in their order; broken ones are noted and left out.

    `workers` processes decode the next images meanwhile.

    Raises UserError if the model cannot be used.
    """
    entry, form = read_segmentation(folder), model_form(folder)
    model = load_segmenter(folder, device)
    files = ImageFiles([(file, place) for place, file in enumerate(images)], partial(labelled, read_image), _pixels)
    for pixels, places in batches(files, 1, workers, on_broken):
        image = Image.fromarray(pixels[0].numpy())
        with evaluating(model):
            found = probabilities(model, normalised(image, form)[None].to(device), view)
        classes = found.argmax(1)[0].cpu().numpy()
        yield MaskPrediction(
            images[int(places)],
            mask_png(classes, len(entry.class_names), entry.reduce_zero_label),
            overlay_png(image, classes, len(entry.class_names)),
            class_shares(classes, entry.class_names),
        )


def _pixels(image: Image.Image, place: int) -> tuple[Tensor, int]:
    return torch.from_numpy(np.array(image)), place


def mask_png(classes: Mask, num_classes: int, reduce_zero_label: bool) -> bytes:
    """An indexed PNG in the classes' colours; its values are those that a mask on disk has for these classes."""
    first = 1 if reduce_zero_label else 0
    palette = np.zeros((256, 3), dtype=np.uint8)
    palette[first : first + num_classes] = class_colours(num_classes)
    mask = Image.fromarray((classes + first).astype(np.uint8)).convert("P")
    mask.putpalette(palette.tobytes())
    return _png(mask)


def overlay_png(image: Image.Image, classes: Mask, num_classes: int) -> bytes:
    """The image, half covered by the classes' colours."""
    colours = Image.fromarray(class_colours(num_classes)[classes])
    return _png(Image.blend(image, colours, 0.5))


def class_shares(classes: Mask, class_names: Sequence[str]) -> dict[str, float]:
    """Share of the pixels of each class that was seen, largest first."""
    pixels = np.bincount(classes.ravel(), minlength=len(class_names))
    seen = [i for i in np.argsort(-pixels, kind="stable").tolist() if pixels[i]]
    return {class_names[i]: float(pixels[i] / classes.size) for i in seen}


def _png(image: Image.Image) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    return buffer.getvalue()
