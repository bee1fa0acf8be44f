"""Images and masks in ADE20K's layout.

    images/SPLIT/*.jpg         images, in folders of their own where one likes
    annotations/SPLIT/*.png    the mask of each, under the same name
    classes.txt                a name a line, or number, TAB, name; ADE20K's own objectInfo150.txt does as well

An image and its mask have one size after the EXIF rotation of each was applied; what has another is broken, as is a
mask of colours, decimals or values beyond the classes. Broken pairs are told and left out when they are read.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

from PIL import Image
from torch import Tensor

from vimoe.data.decode import SUFFIXES, BrokenImageError, read_image
from vimoe.data.folder import ImageForm, files_below
from vimoe.data.mask_augmentation import JointAugmentation, evaluation_pair, training_pair
from vimoe.data.masks import IGNORE, read_mask
from vimoe.data.splits import Images, Splits, choose_splits
from vimoe.errors import UserError

CLASS_FILES = ("classes.txt", "objectInfo150.txt")

JointTransform = Callable[[Image.Image, Tensor], tuple[Tensor, Tensor]]
Pairs = Sequence[tuple[Path, Path]]


class ImagesWithMasks(Images):
    """Image files with mask files; an item is (image `[C, H, W]` fp32, mask `[H, W]` int64).

    Args:
        pairs: Each image and its mask.
        num_classes: Number of classes.
        reduce_zero_label: Whether masks say 0 for unlabelled.
        transform: From image and mask at their own size to what the model sees.
    """

    from_files = True

    def __init__(self, pairs: Pairs, num_classes: int, reduce_zero_label: bool, transform: JointTransform) -> None:
        self.pairs = pairs
        self.num_classes = num_classes
        self.reduce_zero_label = reduce_zero_label
        self.transform = transform

    def __len__(self) -> int:
        return len(self.pairs)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:  # type: ignore[override]
        return self.transform(*self.read(index))

    def read(self, index: int) -> tuple[Image.Image, Tensor]:
        """The image in RGB and its mask, at their own size.

        Raises:
            BrokenImageError: One of them cannot be used, or their sizes differ.
        """
        image_file, mask_file = self.pairs[index]
        image = read_image(image_file)
        mask = read_mask(mask_file, self.num_classes, self.reduce_zero_label)
        height, width = mask.shape
        if (width, height) != image.size:
            raise BrokenImageError(
                f"{image_file} is {image.width} x {image.height} pixels, its mask {mask_file} {width} x {height}"
            )
        return image, mask


def open_ade20k(
    root: Path,
    form: ImageForm,
    augmentation: JointAugmentation | None,
    reduce_zero_label: bool = True,
    splits: tuple[str, str, str] = ("", "", ""),
    short_side: int | None = None,
) -> Splits:
    """Find the splits and classes of a folder in ADE20K's layout.

    Without a split to report on (`test`) it is the one that decides (`val`), and the reverse. What is only in
    `images` or only in `annotations`, such as a test split without masks, is no split.

    Args:
        root: The folder.
        form: How the model wants its images; training crops have its height and width.
        augmentation: How training images are augmented; None shows their middle.
        reduce_zero_label: Masks say 0 for unlabelled and 1 to K for the classes; else 0 to K - 1, and 255.
        splits: Names of the splits `train`, `val` and `test`; where one is empty, a usual name is looked for.
        short_side: See `vimoe.data.mask_augmentation.training_pair`.

    Raises:
        UserError: The folder, a split or the names of the classes are missing, or an image or a mask stands alone.
    """
    if not root.is_dir():
        raise UserError(f"data_dir {root} is not a folder")
    class_names = read_class_names(root, reduce_zero_label)
    there = sorted(_folders(root / "images") & _folders(root / "annotations"))
    chosen = choose_splits(there, splits, str(root))
    if "val" not in chosen and "test" not in chosen:
        raise UserError(f"{root} has no split to decide on; name one with val_split: there is {', '.join(there)}")
    pairs = {role: find_pairs(root, split) for role, split in chosen.items()}
    val = pairs.get("val", pairs.get("test", []))
    images = partial(ImagesWithMasks, num_classes=len(class_names), reduce_zero_label=reduce_zero_label)
    evaluation = partial(evaluation_pair, form=form)
    training = partial(training_pair, form=form, augmentation=augmentation, short_side=short_side)
    return Splits(
        train=images(pairs["train"], transform=training),
        val=images(val, transform=evaluation),
        test=images(pairs.get("test", val), transform=evaluation),
        class_names=class_names,
        image_shape=form.shape,
        mean=form.mean,
        std=form.std,
        interpolation=form.interpolation,
    )


def find_pairs(root: Path, split: str) -> Pairs:
    """The images of a split with their masks, in the order of their names.

    Raises:
        UserError: There are none, or an image has no mask or a mask no image.
    """
    image_root, annotations = root / "images" / split, root / "annotations" / split
    images, masks = files_below(image_root, SUFFIXES), files_below(annotations, (".png",))
    if not images:
        raise UserError(f"{image_root} holds no images")
    by_name = {_name(mask, annotations): mask for mask in masks}
    if alone := [file for file in images if _name(file, image_root) not in by_name]:
        raise UserError(f"{alone[0]} has no mask {annotations / _name(alone[0], image_root)}.png{_and_more(alone)}")
    pairs = [(file, by_name[_name(file, image_root)]) for file in images]
    if extra := sorted(set(masks) - {mask for _, mask in pairs}):
        raise UserError(f"{extra[0]} is the mask of no image in {image_root}{_and_more(extra)}")
    return pairs


def read_class_names(root: Path, reduce_zero_label: bool) -> tuple[str, ...]:
    """The names of the classes by label, from one of `CLASS_FILES`.

    Numbers, where the lines have them, are those of the masks; an entry for unlabelled pixels may be among them.

    Raises:
        UserError: There is no such file, or it does not name every class once.
    """
    file = next((root / name for name in CLASS_FILES if (root / name).is_file()), root / CLASS_FILES[0])
    try:
        lines = [line.strip() for line in file.read_text(encoding="utf-8").splitlines() if line.strip()]
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"cannot read {file}: it names the classes, one a line, in the order of the labels") from error
    names = _numbered(file, lines, reduce_zero_label) if any("\t" in line for line in lines) else lines
    most = IGNORE - reduce_zero_label  # no class has the value of unlabelled pixels
    if not 1 <= len(names) <= most:
        raise UserError(f"{file} names {len(names)} classes; there can be 1 to {most}")
    if twice := [name for i, name in enumerate(names) if name in names[:i]]:
        raise UserError(f"{file} names the class {twice[0]!r} twice")
    return tuple(names)


def _numbered(file: Path, lines: list[str], reduce_zero_label: bool) -> list[str]:
    """Names in the order of the numbers before them; a line of headings and the unlabelled pixels' are left out."""
    rows = [line.split("\t") for line in lines]
    if not rows[0][0].strip().isdecimal():
        rows = rows[1:]
    first = 1 if reduce_zero_label else 0
    wrong = next((row for row in rows if not row[0].strip().isdecimal() or len(row) < 2), None)
    if wrong is not None:
        raise UserError(f"{file} has the line {' '.join(wrong)!r} among lines of number, TAB, name")
    unlabelled = (0, IGNORE) if reduce_zero_label else (IGNORE,)
    named = sorted((int(row[0]), row[-1].strip()) for row in rows if int(row[0]) not in unlabelled)
    numbers = [number for number, _ in named]
    if numbers != list(range(first, first + len(named))):
        raise UserError(
            f"{file} numbers {len(named)} classes {numbers[0]} to {numbers[-1]}; with reduce_zero_label "
            f"{str(reduce_zero_label).lower()} they go from {first} to {first + len(named) - 1}"
        )
    return [name for _, name in named]


def _folders(root: Path) -> set[str]:
    if not root.is_dir():
        raise UserError(f"{root} is missing: images are in images/SPLIT, their masks in annotations/SPLIT")
    return {entry.name for entry in root.iterdir() if entry.is_dir() and not entry.name.startswith(".")}


def _name(file: Path, root: Path) -> Path:
    return file.relative_to(root).with_suffix("")


def _and_more(found: Sequence[object]) -> str:
    return f", and {len(found) - 1} more are alone" if len(found) > 1 else ""
