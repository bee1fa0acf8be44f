"""Images and masks in ADE20K's layout.

    images/SPLIT/*.jpg         images, in folders of their own where one likes
    annotations/SPLIT/*.png    the mask of each, under the same name
    classes.txt                a name a line, or number, TAB, name; ADE20K's own objectInfo150.txt does as well

An image and its mask have one size after the EXIF rotation of each was applied; what has another is broken, as is a
mask of colours, decimals or values beyond the classes. Broken pairs are told and left out when they are read.
"""

from collections.abc import Sequence
from functools import partial
from pathlib import Path

from PIL import Image
from torch import Tensor

from vimoe.data.decode import SUFFIXES, BrokenImageError, read_image
from vimoe.data.listing import files_below, folders, mask_layout
from vimoe.data.masks import IGNORE, read_mask
from vimoe.data.splits import AS_USUAL, Found, Wanted
from vimoe.errors import UserError

CLASS_FILES = ("classes.txt", "objectInfo150.txt")


def find_ade20k(root: Path, wanted: Wanted = AS_USUAL, reduce_zero_label: bool = True) -> Found:
    """Find the splits and classes of a folder in ADE20K's layout; for `reduce_zero_label` see `labels_of`.

    What is only in `images` or only in `annotations`, such as a test split without masks, is no split.

    Raises UserError if the folder, a split or the names of the classes are missing, or an image or a mask stands alone.
    """
    if not root.is_dir():
        raise UserError(f"data_dir {root} is not a folder")
    if mask_layout(root) == "coco":
        raise UserError(f"{root / 'annotations'} holds JSON: --dataset coco reads it")
    there = sorted(_splits(root / "images") & _splits(root / "annotations"))
    class_names = read_class_names(root, reduce_zero_label)
    parts = {role: find_pairs(root, split) for role, split in wanted.choose(there, str(root)).items()}
    return Found(
        parts, class_names, partial(read_pair, num_classes=len(class_names), reduce_zero_label=reduce_zero_label)
    )


def read_pair(
    image_file: Path, mask_file: Path, num_classes: int, reduce_zero_label: bool
) -> tuple[Image.Image, Tensor]:
    """The image in RGB and its mask `[H, W]` int64. Raises BrokenImageError if one is unusable, or sizes differ."""
    image = read_image(image_file)
    mask = read_mask(mask_file, num_classes, reduce_zero_label)
    height, width = mask.shape
    if (width, height) != image.size:
        raise BrokenImageError(
            f"{image_file} is {image.width} x {image.height} pixels, its mask {mask_file} {width} x {height}"
        )
    return image, mask


def find_pairs(root: Path, split: str) -> Sequence[tuple[Path, Path]]:
    """The images of a split with their masks, in the order of their names.

    Raises UserError if there are none, or an image has no mask or a mask no image.
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

    Raises UserError if there is no such file, or it does not name every class once.
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


def _splits(root: Path) -> set[str]:
    if not root.is_dir():
        raise UserError(f"{root} is missing: images are in images/SPLIT, their masks in annotations/SPLIT")
    return set(folders(root))


def _name(file: Path, root: Path) -> Path:
    return file.relative_to(root).with_suffix("")


def _and_more(found: Sequence[object]) -> str:
    return f", and {len(found) - 1} more are alone" if len(found) > 1 else ""
