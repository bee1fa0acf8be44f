"""The embedded data of segmentation: scenes composed from scikit-learn's digits, with a label for every pixel."""

import math

import torch
from torch import Tensor
from torch.nn import functional as F

from vimoe.data.digits import digits
from vimoe.data.epoch_order import generator
from vimoe.data.images import Images, InMemory
from vimoe.data.splits import Splits
from vimoe.data.transforms import ImageForm

SIDE = 32
_SIZES = {"train": 1500, "val": 200, "test": 200}
# A small ViT has minutes to learn where to look. Digits stray little from the middle of their corner for that reason:
# two pixels and ten degrees instead of one and five make the first epochs several times slower.
_CORNERS, _LEAST = 4, 2
_SMALLEST, _LARGEST = 13.0, 16.0  # pixels of a scan's side
_STRAY, _TILT = 1.0, math.radians(5)  # pixels and angle, to either side at most
# Where a digit's body and its stroke begin, in ink between 0 and 1.
_BODY, _STROKE = 0.22, 0.5


def digit_scenes() -> Splits:
    """1,500 scenes to learn from, 200 to decide on, 200 to report on: 32x32 pixels in colour, 11 classes.

    A scene has two to four bright digits, each of its own size, tilt, place and colour, on dark textured ground with a
    bright disc that is ground too. A pixel is `ground` or belongs to a digit: to its stroke, or the dark rim around
    it. The scans of a split are those of the same split of `digits`: no digit of a test scene was seen in training.
    Pixel values have mean 0 and standard deviation 1 in each channel of the training scenes.
    """
    source = digits()
    scans = {split: _scans(getattr(source, split), source.form.mean[0], source.form.std[0]) for split in _SIZES}
    drawn = {split: compose(*scans[split], size, generator("scenes", split)) for split, size in _SIZES.items()}
    std, mean = torch.std_mean(drawn["train"][0], dim=(0, 2, 3), keepdim=True)
    parts = {split: InMemory((images - mean) / std, masks) for split, (images, masks) in drawn.items()}
    return Splits(
        train=parts["train"],
        val=parts["val"],
        test=parts["test"],
        class_names=("ground", *source.class_names),
        form=ImageForm((3, SIDE, SIDE), tuple(mean.flatten().tolist()), tuple(std.flatten().tolist())),
        augment=change_colours,
    )


def compose(scans: Tensor, labels: Tensor, size: int, drawn: torch.Generator) -> tuple[Tensor, Tensor]:
    """Draw scenes from scans `[N, 1, 8, 8]`, ink between 0 and 1, and their digits `[N]`.

    They are images `[size, 3, SIDE, SIDE]` between 0 and 1, and masks `[size, SIDE, SIDE]` int64, 0 on the ground and
    the digit plus 1 on a digit.
    """
    images = _ground(size, drawn)
    masks = torch.zeros(size, SIDE, SIDE, dtype=torch.int64)
    counts = torch.randint(_LEAST, _CORNERS + 1, (size,), generator=drawn)
    corners = torch.rand(size, _CORNERS, generator=drawn).argsort(1)
    for turn in range(_CORNERS):
        chosen = torch.randint(len(scans), (size,), generator=drawn)
        ink = _placed(scans[chosen], corners[:, turn], drawn) * (turn < counts)[:, None, None, None]
        images = images * (1 - 0.75 * _above(ink, _BODY))
        images = torch.lerp(images, _bright(size, drawn), _above(ink, _STROKE))
        masks = torch.where(ink[:, 0] > _BODY, labels[chosen][:, None, None] + 1, masks)
    return images.clamp(0, 1), masks


def change_colours(images: Tensor, generator: torch.Generator) -> Tensor:
    """Exchange the channels of each image, and change its contrast and brightness a little; nothing moves.

    Images are `[B, C, H, W]`, normalised; the generator is the CPU's, whatever their device.
    """
    batch, channels = images.shape[:2]
    order = torch.rand(batch, channels, generator=generator).argsort(1).to(images.device)
    contrast, brightness = (torch.rand(2, batch, 1, 1, 1, generator=generator) * 0.6 - 0.3).to(images.device)
    exchanged = images.gather(1, order[..., None, None].expand_as(images))
    return exchanged * (1 + contrast) + brightness


def _scans(part: Images, mean: float, std: float) -> tuple[Tensor, Tensor]:
    """A split's scans `[N, 1, 8, 8]` with ink between 0 and 1, and their labels `[N]`."""
    items = [part[i] for i in range(len(part))]
    scans = torch.stack([scan for scan, _ in items]) * std + mean
    return scans.clamp(0, 1), torch.tensor([label for _, label in items])


def _placed(scans: Tensor, corners: Tensor, drawn: torch.Generator) -> Tensor:
    """Scans `[S, 1, 8, 8]` enlarged, tilted a little and laid near the middle of a corner: ink `[S, 1, SIDE, SIDE]`.

    Corners are 0 to 3 in reading order.
    """
    count = len(scans)
    larger, tilt, right, down = torch.rand(4, count, generator=drawn)
    side = _SMALLEST + (_LARGEST - _SMALLEST) * larger
    tilt = (2 * tilt - 1) * _TILT
    # In affine_grid's units of half a scene, from its middle.
    x = corners % 2 - 0.5 + (2 * right - 1) * 2 * _STRAY / SIDE
    y = corners // 2 - 0.5 + (2 * down - 1) * 2 * _STRAY / SIDE
    cos, sin = SIDE / side * tilt.cos(), SIDE / side * tilt.sin()
    affine = torch.stack([cos, sin, -cos * x - sin * y, -sin, cos, sin * x - cos * y], 1).view(count, 2, 3)
    grid = F.affine_grid(affine, [count, 1, SIDE, SIDE], align_corners=False)
    framed = F.pad(scans, (1, 1, 1, 1))  # so that the bicubic curve comes down to 0 outside
    return F.grid_sample(framed, grid * 0.8, mode="bicubic", align_corners=False)


def _above(ink: Tensor, level: float) -> Tensor:
    """0 below the level, 1 above, with a soft passage."""
    return ((ink - level) * 6 + 0.5).clamp(0, 1)


def _ground(size: int, drawn: torch.Generator) -> Tensor:
    """Waves and clouds of two related dark colours, with a disc and a grain: `[size, 3, SIDE, SIDE]`."""
    y, x = torch.meshgrid(torch.arange(SIDE), torch.arange(SIDE), indexing="ij")
    first = _dark(size, drawn)
    second = torch.lerp(first, _dark(size, drawn), 0.5)
    angle, pitch, phase = torch.rand(3, size, 1, 1, generator=drawn)
    angle, pitch = math.pi * angle, 3 + 9 * pitch
    waves = torch.sin(2 * math.pi * ((x * angle.cos() + y * angle.sin()) / pitch + phase))
    clouds = F.interpolate(torch.rand(size, 1, 5, 5, generator=drawn), SIDE, mode="bicubic")[:, 0]
    ground = torch.lerp(first, second, (0.25 * waves + clouds).clamp(0, 1)[:, None])
    left, top, radius = torch.rand(3, size, 1, 1, generator=drawn)
    distance = ((x - SIDE * left) ** 2 + (y - SIDE * top) ** 2).sqrt()
    ground = torch.lerp(ground, _bright(size, drawn), (2 + 3 * radius - distance).clamp(0, 1)[:, None])
    return ground + 0.04 * torch.randn(ground.shape, generator=drawn)


def _bright(size: int, drawn: torch.Generator) -> Tensor:
    """Pale colours of any hue, `[size, 3, 1, 1]`."""
    return _colours(torch.tensor([0.0, 0.15, 0.8]), torch.tensor([1.0, 0.35, 0.2]), size, drawn)


def _dark(size: int, drawn: torch.Generator) -> Tensor:
    """Deep colours of any hue, `[size, 3, 1, 1]`."""
    return _colours(torch.tensor([0.0, 0.4, 0.2]), torch.tensor([1.0, 0.5, 0.3]), size, drawn)


def _colours(lowest: Tensor, span: Tensor, size: int, drawn: torch.Generator) -> Tensor:
    """Colours with hue, saturation and value between `lowest` and `lowest + span`, as RGB `[size, 3, 1, 1]`."""
    hue, saturation, value = (lowest + span * torch.rand(size, 3, generator=drawn)).T[..., None]
    # Each channel is at its highest around its own third of the circle: red at 0, green at 1/3, blue at 2/3.
    thirds = (hue * 6 + torch.tensor([0.0, 4.0, 2.0])) % 6
    pure = ((thirds - 3).abs() - 1).clamp(0, 1)
    return (value * (1 - saturation * (1 - pure)))[..., None, None]
