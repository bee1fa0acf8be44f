"""The embedded data on which a small model is short of capacity: 1,616 letters and digits of many scripts.

Training images are drawn fresh at every step, so none can be learned by heart. The images of `val` and `test` are
drawn once and are the same in every run.
"""

import inspect
import math
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from vimoe.data.epoch_order import generator
from vimoe.data.glyph_bank import FAMILIES, characters, draw, glyph_bank, script
from vimoe.data.images import InMemory
from vimoe.data.splits import Splits
from vimoe.data.transforms import ImageForm
from vimoe.errors import UserError

# Pixel values between 0 and 1: the ground's, and what full ink adds at full contrast. Noise seldom leaves the range.
_GROUND, _INK = 0.25, 0.5
# About those of the training images; the same whatever the arguments, so that models can be compared and exchanged.
_MEAN, _STD = 0.31, 0.14
# To either side at strength 1: radians, logarithms of scale and aspect ratio, shear, and a share of the half side.
_TURN, _SCALE, _ASPECT, _SHEAR, _SHIFT = math.radians(20), 0.25, 0.15, 0.25, 0.15
_FADED, _NOISE = 0.5, 0.075  # of the contrast at most, and the standard deviation of a pixel


class Views(NamedTuple):
    """What is random in a batch of glyph images."""

    affine: Tensor  # `[B, 2, 3]`, as `affine_grid` takes it
    contrast: Tensor  # `[B]`, at most 1
    noise: Tensor  # `[B, 1, side, side]`, added to pixel values


def glyphs(
    side: int = 24,
    scripts: Sequence[str] = (),
    classes: int | None = None,
    strength: float = 1.0,
    test_family: str = "sans",
    train_images: int = 64_000,
    val_images: int = 4_000,
    test_images: int = 12_000,
) -> Splits:
    """Images `[1, side, side]` of single glyphs in the four DejaVu Sans faces; super-classes are their scripts.

    Every class and face has the same share of a split, to within one image. With another `test_family`, `test` shows
    faces that were never trained on; classes that they lack have no image there.

    Args:
        side: Pixels of an image's side.
        scripts: Only these, such as `[Latin, Greek]`; all if empty.
        classes: So many of the classes, always the same ones; all if None.
        strength: Of the random affine map, contrast and noise, from 0 (glyphs as they are drawn) to 2.
        test_family: `sans`, or `serif` or `mono` for a test of generalisation.
        train_images: Images an epoch; the next epoch draws others.
        val_images: Images to decide on.
        test_images: Images to report on.

    Raises UserError if an argument has a value that cannot be used.
    """
    sizes = {"train_images": train_images, "val_images": val_images, "test_images": test_images}
    for name, value in {"side": side, **sizes}.items():
        least = 8 if name == "side" else 1
        if type(value) is not int or value < least:
            raise UserError(f"{name} of dataset 'glyphs' must be a whole number from {least} on, got {value!r}")
    if type(strength) not in (int, float) or not 0 <= strength <= 2:
        raise UserError(f"strength of dataset 'glyphs' must be between 0 and 2, got {strength!r}")
    if test_family not in FAMILIES:
        raise UserError(f"test_family of dataset 'glyphs' must be one of {', '.join(FAMILIES)}, got {test_family!r}")
    bank = glyph_bank(side)
    chosen = _choose(bank.code_points, scripts, classes)
    points = [bank.code_points[i] for i in chosen]
    pixels, labels = _on_ground(bank.ink[chosen].swapaxes(0, 1)), torch.arange(len(points)).repeat(4)
    augment = partial(augment_glyphs, strength=float(strength))
    held_out = (pixels, labels) if test_family == "sans" else _drawn_in(test_family, points, side)
    return Splits(
        train=_Drawings(pixels, labels, train_images),
        val=_seen(pixels, labels, val_images, augment, "val"),
        test=_seen(*held_out, test_images, augment, "test"),
        class_names=tuple(f"U+{point:04X} {chr(point)}" for point in points),
        form=_form(side),
        augment=augment,
        super_classes=tuple(script(point) for point in points),
    )


def open_glyphs(arguments: Mapping[str, Any]) -> Splits:
    """`glyphs` with a user's arguments. Raises UserError if there is no such one, or its value cannot be used."""
    known = inspect.signature(glyphs).parameters
    for name in arguments:
        if name not in known:
            raise UserError(f"dataset 'glyphs' has no argument {name!r}; there is {', '.join(known)}")
    return glyphs(**arguments)


def augment_glyphs(images: Tensor, generator: torch.Generator, strength: float = 1.0) -> Tensor:
    """Turn, scale, shear, shift and fade each drawing `[B, 1, side, side]` and add noise, each image its own.

    They are normalised, on any device; a CPU generator lets every device draw the same. Strength 0 is none.
    """
    return show(images, draw_views(len(images), images.shape[-1], generator, strength))


def draw_views(batch: int, side: int, generator: torch.Generator, strength: float) -> Views:
    """What is random in a batch, on the CPU."""
    turn, scale, aspect, shear, right, down = (2 * torch.rand(6, batch, generator=generator) - 1) * strength
    cos, sin, scale, aspect = (_TURN * turn).cos(), (_TURN * turn).sin(), (_SCALE * scale).exp(), _ASPECT * aspect
    across, along = scale * aspect.exp(), scale / aspect.exp()
    rows = [[cos * across, (_SHEAR * shear - sin) * scale, _SHIFT * right], [sin * scale, cos * along, _SHIFT * down]]
    affine = torch.stack([torch.stack(row, -1) for row in rows], -2)
    contrast = 1 - min(1.0, _FADED * strength) * torch.rand(batch, generator=generator)
    noise = torch.randn(batch, 1, side, side, generator=generator).mul_(_NOISE * strength)
    return Views(affine, contrast, noise)


def show(images: Tensor, views: Views) -> Tensor:
    """Drawings as these views show them; both normalised, `[B, 1, side, side]`."""
    affine, contrast, noise = (drawn.to(images.device) for drawn in views)
    ink = images * _STD + (_MEAN - _GROUND)
    ink = F.grid_sample(ink, F.affine_grid(affine, list(images.shape), align_corners=False), align_corners=False)
    return torch.addcmul(noise, ink, contrast[:, None, None, None]).add_(_GROUND).clamp_(0, 1).sub_(_MEAN).div_(_STD)


class _Drawings(InMemory):
    """So many plain drawings, all in turn as often as it takes."""

    def __init__(self, pixels: Tensor, labels: Tensor, size: int) -> None:
        super().__init__(pixels, labels, _form(pixels.shape[-1]))
        self.size = size

    def __len__(self) -> int:
        return self.size

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        return super().__getitem__(index % len(self.targets))


def _seen(pixels: Tensor, labels: Tensor, size: int, augment: Any, split: str) -> InMemory:
    """So many views of the drawings, drawn once."""
    places = torch.arange(size) % len(labels)
    images = augment((pixels[places] / 255 - _MEAN) / _STD, generator("glyphs", split))
    return InMemory((images * _STD + _MEAN).mul(255).round().byte(), labels[places], _form(images.shape[-1]))


def _form(side: int) -> ImageForm:
    return ImageForm((1, side, side), (_MEAN,), (_STD,))


def _on_ground(ink: np.typing.NDArray[np.uint8]) -> Tensor:
    """Ink `[..., side, side]` to pixels `[N, 1, side, side]` uint8."""
    return torch.from_numpy(ink).flatten(0, -3)[:, None].mul(_INK).add(255 * _GROUND).round().byte()


def _drawn_in(family: str, points: Sequence[int], side: int) -> tuple[Tensor, Tensor]:
    """Pixels and labels of the classes that each face of a family has."""
    pixels, labels = [], []
    for face in FAMILIES[family]:
        there = characters(face)
        places = [i for i, point in enumerate(points) if point in there]
        pixels.append(draw(face, [points[i] for i in places], side))
        labels += places
    if not labels:
        raise UserError(f"the {family} faces have none of these classes of dataset 'glyphs'")
    return _on_ground(np.concatenate(pixels)), torch.tensor(labels)


def _choose(points: Sequence[int], scripts: Sequence[str], classes: int | None) -> list[int]:
    """The places of the code points of some scripts, or of so many of them."""
    by_script = [script(point) for point in points]
    if not isinstance(scripts, list | tuple) or any(name not in by_script for name in scripts):
        there = ", ".join(sorted(set(by_script)))
        raise UserError(f"scripts of dataset 'glyphs' must be a list of {there}, got {scripts!r}")
    places = [i for i, of in enumerate(by_script) if not scripts or of in scripts]
    if classes is None:
        return places
    if type(classes) is not int or not 2 <= classes <= len(places):
        raise UserError(f"classes of dataset 'glyphs' must be 2 to {len(places)} here, got {classes!r}")
    order = torch.randperm(len(places), generator=generator("glyph classes")).tolist()
    return sorted(places[i] for i in order[:classes])
