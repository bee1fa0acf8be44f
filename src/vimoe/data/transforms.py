"""How a model wants its images, and timm's transforms to that form, for training and evaluation."""

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any, NamedTuple

from PIL import Image
from timm.data import create_transform, resolve_data_config
from timm.data.auto_augment import AugmentOp, posterize
from torch import Tensor

from vimoe.data.decode import BrokenImageError, too_large
from vimoe.errors import UserError

Transform = Callable[[Image.Image, Any], tuple[Any, Any]]

# Operations of an auto-augment policy on one image; a hundred thousand would be accepted by timm and never end.
MOST_OPERATIONS = 10


class ImageForm(NamedTuple):
    """How a model wants its images. The names are those of timm's `pretrained_cfg` and `create_transform`."""

    input_size: tuple[int, int, int]  # C, H, W
    mean: tuple[float, ...]  # by channel, taken off pixel values between 0 and 1
    std: tuple[float, ...]  # by channel, what they are then divided by
    interpolation: str = "bicubic"  # timm's name of the resampling filter
    crop_pct: float = 1.0  # share of the image's shorter side that evaluation looks at
    crop_mode: str = "center"  # timm's name of how evaluation makes an image's shape the model's


def image_form(pretrained_cfg: dict[str, Any], img_size: int | None = None) -> ImageForm:
    """What a timm `pretrained_cfg` says about images, with another size where one is given."""
    wanted = resolve_data_config(pretrained_cfg=pretrained_cfg)
    channels, height, width = wanted["input_size"]
    size = (channels, img_size or height, img_size or width)
    view = (wanted[key] for key in ("interpolation", "crop_pct", "crop_mode"))
    return ImageForm(size, tuple(wanted["mean"]), tuple(wanted["std"]), *view)


class Augmentation(NamedTuple):
    """How training images are augmented, in timm's terms."""

    scale: float = 0.08  # share of the image's area that a random crop shows, at least
    hflip: float = 0.5  # chance of a mirrored image
    color_jitter: float = 0.4  # strength of random brightness, contrast and saturation
    aa: str = ""  # timm's auto-augment policy, such as `rand-m9-mstd0.5-inc1`; empty for none
    reprob: float = 0.0  # chance of an erased rectangle


def evaluation_transform(form: ImageForm, as_bytes: bool = False) -> Transform:
    """Resize, crop as `crop_mode` says, normalise: `[C, H, W]` fp32, or uint8 before it is normalised.

    The transform raises a `BrokenImageError` for an image so thin that its longer side would have no end.
    """
    transform = create_transform(**form._asdict(), is_training=False, use_prefetcher=as_bytes)
    return partial(_evaluated, form=form, transform=transform)


def training_transform(form: ImageForm, augmentation: Augmentation | None) -> Transform:
    """Augment and normalise; as evaluation does without an augmentation.

    Raises UserError if timm does not know the auto-augment policy, or it has too many operations.
    """
    if augmentation is None:
        return evaluation_transform(form)
    try:
        transform = create_transform(
            **form._asdict(),
            is_training=True,
            scale=(augmentation.scale, 1.0),
            hflip=augmentation.hflip,
            color_jitter=augmentation.color_jitter,
            auto_augment=augmentation.aa or None,
            re_prob=augmentation.reprob,
            re_mode="pixel",
        )
    except (AssertionError, ValueError, KeyError, NotImplementedError) as error:
        raise UserError(f"timm cannot augment images as {augmentation}: {error}") from error
    for policy in transform.transforms:
        if max(getattr(policy, name, 0) for name in ("num_layers", "width", "depth")) > MOST_OPERATIONS:
            raise UserError(f"the policy {augmentation.aa!r} has more than {MOST_OPERATIONS} operations an image")
        for operation in _operations(policy):
            if operation.aug_fn is posterize:
                operation.aug_fn = _posterize
    return partial(_transformed, form=form, transform=transform)


def _operations(policy: Any) -> Iterator[AugmentOp]:
    """The operations of one of timm's auto-augment policies; of other transforms none."""
    yield from getattr(policy, "ops", ())
    for sub_policy in getattr(policy, "policy", ()):
        yield from sub_policy


def _posterize(image: Image.Image, bits_to_keep: int, **how: Any) -> Image.Image:
    """timm draws 0 bits and fewer, which Pillow refuses from version 13 on."""
    return posterize(image, max(1, bits_to_keep), **how)


def _evaluated(image: Image.Image, target: Any, *, form: ImageForm, transform: Callable[[Image.Image], Tensor]) -> Any:
    short, long = sorted(image.size)
    side = max(form.input_size[1:]) / form.crop_pct
    if too_large(side, side * long / short):
        raise BrokenImageError(
            f"is {image.width} x {image.height} pixels: with its shorter side at {side:.0f} pixels "
            "it has more than is safe"
        )
    return _transformed(image, target, form=form, transform=transform)


def _transformed(
    image: Image.Image, target: Any, *, form: ImageForm, transform: Callable[[Image.Image], Tensor]
) -> tuple[Tensor, Any]:
    """Images come in RGB; a model of one channel gets their brightness."""
    return transform(image if form.input_size[0] == 3 else image.convert("L")), target
