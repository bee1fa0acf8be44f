from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from tests.data.scenes_on_disk import CLASSES, write_ade20k
from vimoe.data.ade20k import read_class_names
from vimoe.data.decode import BrokenImageError
from vimoe.data.images import ImageFiles, Images
from vimoe.data.loaders import batches, training_batches
from vimoe.data.mask_augmentation import JointAugmentation
from vimoe.data.masks import IGNORE
from vimoe.data.registry import open_masks
from vimoe.data.splits import Splits
from vimoe.data.transforms import ImageForm
from vimoe.errors import UserError

FORM = ImageForm((3, 16, 16), (0.0, 0.0, 0.0), (1.0, 1.0, 1.0), "bicubic", 0.9)


def open_(
    root: Path, augmentation: JointAugmentation | None = None, reduce_zero_label: bool = True, **how: object
) -> Splits:
    return open_masks("ade20k", str(root), FORM, augmentation, reduce_zero_label, **how)  # type: ignore[arg-type]


def names(images: Images) -> list[str]:
    assert isinstance(images, ImageFiles)
    return [f"{image.parent.name}/{image.stem}" for image, _ in images.samples]


def test_splits_are_found_by_their_usual_names_and_masks_stand_by_their_images(tmp_path: Path) -> None:
    splits = open_(write_ade20k(tmp_path, {"training": 3, "validation": 2, "test": 1}))
    assert splits.class_names == CLASSES
    assert [len(part) for part in (splits.train, splits.val, splits.test)] == [3, 2, 1]
    for part in (splits.train, splits.val, splits.test):
        assert isinstance(part, ImageFiles)
        for image, mask in (part.read(*sample) for sample in part.samples):
            red = np.asarray(image)[..., 0]
            assert ((red / 40).round() == np.where(mask == IGNORE, 0, mask + 1)).mean() > 0.95
            assert (mask[0] == IGNORE).all()


def test_evaluation_gives_whole_images_and_training_crops(tmp_path: Path) -> None:
    splits = open_(write_ade20k(tmp_path, {"train": 4, "val": 2}), JointAugmentation())
    for images, masks in batches(splits.val, 1):
        assert images.shape == (1, 3, 20, 28)
        assert masks.shape == (1, 20, 28)
        assert masks.dtype == torch.int64
    for images, masks in training_batches(splits.train, 2, 0, 0):
        assert images.shape == (2, 3, 16, 16)
        assert masks.shape == (2, 16, 16)


def test_training_pairs_depend_on_seed_epoch_and_image_and_not_on_workers(tmp_path: Path) -> None:
    train = open_(write_ade20k(tmp_path, {"train": 4, "val": 1}), JointAugmentation()).train

    def epoch(number: int, workers: int = 0) -> list[torch.Tensor]:
        return [part for batch in training_batches(train, 2, 0, number, 0, workers) for part in batch]

    plain, parallel, following = epoch(0), epoch(0, workers=2), epoch(1)
    assert all(torch.equal(a, b) for a, b in zip(plain, parallel, strict=True))
    assert not torch.equal(plain[0], following[0])


def test_any_names_of_splits_and_what_is_missing_is_taken_from_the_other(tmp_path: Path) -> None:
    root = write_ade20k(tmp_path, {"day": 3, "night": 2, "rain": 1, "training": 1})
    splits = open_(root, splits=("day", "night", "rain"))
    assert [names(part)[0] for part in (splits.train, splits.val, splits.test)] == ["day/000", "night/000", "rain/000"]
    splits = open_(root, splits=("day", "night", ""))
    assert names(splits.test) == names(splits.val) == ["night/000", "night/001"]
    splits = open_(root, splits=("", "", "rain"))
    assert names(splits.train) == ["training/000"]
    assert names(splits.val) == names(splits.test) == ["rain/000"]


def test_a_split_without_masks_is_no_split_unless_it_is_asked_for(tmp_path: Path) -> None:
    root = write_ade20k(tmp_path, {"training": 2, "validation": 1})
    (root / "images" / "test").mkdir()
    assert names(open_(root).test) == ["validation/000"]
    with pytest.raises(UserError, match="has no split 'test'; there is training, validation"):
        open_(root, splits=("", "", "test"))


def test_folders_inside_a_split_are_searched_and_upper_case_endings_known(tmp_path: Path) -> None:
    root = write_ade20k(tmp_path, {"training": 2, "validation": 1})
    for kind, ending in (("images", ".JPG"), ("annotations", ".PNG")):
        (root / kind / "training" / "town").mkdir()
        (first,) = (root / kind / "training").glob("000.*")
        first.rename(root / kind / "training" / "town" / f"000{ending}")
    assert names(open_(root).train) == ["training/001", "town/000"]


def test_labels_from_0_with_255_for_unlabelled(tmp_path: Path) -> None:
    root = write_ade20k(tmp_path, {"training": 1, "validation": 1})
    (root / "classes.txt").write_text("nothing\n" + "\n".join(CLASSES))
    file = root / "annotations" / "validation" / "000.png"
    mask = np.asarray(Image.open(file)).copy()
    mask[3] = 255
    Image.fromarray(mask).save(file)
    splits = open_(root, reduce_zero_label=False)
    assert len(splits.class_names) == 5
    assert torch.equal(splits.val[0][1], torch.from_numpy(mask).long())  # type: ignore[arg-type]


def test_all_ignored_one_pixel_and_small_images_are_used(tmp_path: Path) -> None:
    root = write_ade20k(tmp_path, {"training": 3, "validation": 1}, size=(5, 7))
    for name, size in (("000", (1, 1)), ("001", (7, 5))):
        Image.new("RGB", size).save(root / "images" / "training" / f"{name}.jpg")
        Image.new("L", size).save(root / "annotations" / "training" / f"{name}.png")
    train = open_(root, JointAugmentation()).train
    images, masks = next(iter(training_batches(train, 3, 0, 0)))
    assert images.shape == (3, 3, 16, 16)
    assert sorted(int((mask != IGNORE).sum() > 0) for mask in masks) == [0, 0, 1]


Spoil = Callable[[Path, Path], None]


def crossed(image: Path, mask: Path) -> None:
    """The image is turned by its EXIF entry, its mask is not."""
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.open(image).save(image, exif=exif)


@pytest.mark.parametrize(
    ("spoil", "line"),
    [
        (lambda image, mask: mask.write_text("no mask"), "000.png is no image that can be read"),
        (lambda image, mask: image.write_bytes(b""), "000.jpg is no image that can be read"),
        (lambda image, mask: Image.new("RGB", (28, 20)).save(mask), "000.png cannot be read as a mask: it is RGB"),
        (lambda image, mask: Image.new("L", (28, 20), 9).save(mask), "000.png holds the value 9, which is no class"),
        (lambda image, mask: Image.new("L", (27, 20)).save(mask), "000.jpg is 28 x 20 pixels, its mask .* 27 x 20"),
        (crossed, "000.jpg is 20 x 28 pixels, its mask .* 28 x 20"),
    ],
)
def test_a_broken_pair_is_left_out_and_told(tmp_path: Path, spoil: Spoil, line: str) -> None:
    root = write_ade20k(tmp_path, {"training": 3, "validation": 2})
    spoil(root / "images" / "validation" / "000.jpg", root / "annotations" / "validation" / "000.png")
    splits, told = open_(root), list[str]()
    with pytest.raises(BrokenImageError, match=line):
        splits.val[0]
    assert sum(len(masks) for _, masks in batches(splits.val, 1, 0, told.append)) == 1
    assert len(told) == 1


def removed(*paths: str) -> Callable[[Path], None]:
    return lambda root: [(root / path).unlink() for path in paths] and None


@pytest.mark.parametrize(
    ("spoil", "line"),
    [
        (removed("annotations/training/001.png"), r"001.jpg has no mask .*annotations.training.001.png$"),
        (
            removed("annotations/training/001.png", "annotations/training/002.png"),
            r"001.jpg has no mask .*001.png, and 1 more are alone",
        ),
        (
            removed("images/training/000.jpg", "images/training/002.jpg"),
            r"000.png is the mask of no image in .*training, and 1 more are alone",
        ),
        (removed(*(f"images/validation/00{i}.jpg" for i in range(2))), "validation holds no images"),
        (removed("classes.txt"), "cannot read .*classes.txt: it names the classes, one a line"),
        (lambda root: (root / "images").rename(root / "elsewhere"), "images is missing: images are in images/SPLIT"),
        (lambda root: (root / "images" / "training").rename(root / "images" / "x"), "has no training split"),
        (lambda root: (root / "images" / "validation").rename(root / "images" / "x"), "has no split to decide on"),
    ],
)
def test_a_folder_that_cannot_be_used_is_one_line(tmp_path: Path, spoil: Callable[[Path], object], line: str) -> None:
    root = write_ade20k(tmp_path, {"training": 3, "validation": 2})
    spoil(root)
    with pytest.raises(UserError, match=line) as caught:
        open_(root)
    assert "\n" not in str(caught.value)


def test_a_missing_folder_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="is not a folder"):
        open_(tmp_path / "nowhere")


@pytest.mark.parametrize(
    ("text", "reduce_zero_label", "expected"),
    [
        ("sky\nroad\n\n", True, ("sky", "road")),
        ("2\troad\n1\tsky\n", True, ("sky", "road")),
        ("0\tunlabelled\n1\tsky\n2\troad\n", True, ("sky", "road")),
        ("0\tsky\n1\troad\n255\tunlabelled\n", False, ("sky", "road")),
        ("Idx\tRatio\tTrain\tVal\tName\n1\t0.15\t11\t12\twall \n2 \t0.1\t6\t2\tbuilding, edifice\n", True, None),
    ],
)
def test_class_names_with_and_without_numbers(
    tmp_path: Path, text: str, reduce_zero_label: bool, expected: tuple[str, ...] | None
) -> None:
    (tmp_path / ("classes.txt" if expected else "objectInfo150.txt")).write_text(text)
    assert read_class_names(tmp_path, reduce_zero_label) == (expected or ("wall", "building, edifice"))


@pytest.mark.parametrize(
    ("content", "line"),
    [
        (b"", "names 0 classes; there can be 1 to 254"),
        (b"\n".join(b"c%i" % i for i in range(255)), "names 255 classes"),
        (b"sky\nroad\nsky\n", "names the class 'sky' twice"),
        (b"1\tsky\n3\troad\n", "numbers 2 classes 1 to 3; with reduce_zero_label true they go from 1 to 2"),
        (b"1\tsky\n1\troad\n", "numbers 2 classes 1 to 1; with"),
        (b"1\tsky\nroad\n", "has the line 'road' among lines of number, TAB, name"),
        (b"\xff\xfe\x00", "cannot read"),
    ],
)
def test_class_names_that_cannot_be_used_are_one_line(tmp_path: Path, content: bytes, line: str) -> None:
    (tmp_path / "classes.txt").write_bytes(content)
    with pytest.raises(UserError, match=line):
        read_class_names(tmp_path, reduce_zero_label=True)


def test_numbers_from_1_without_reduce_zero_label_say_what_is_expected(tmp_path: Path) -> None:
    (tmp_path / "classes.txt").write_text("1\tsky\n2\troad\n")
    with pytest.raises(UserError, match="numbers 2 classes 1 to 2; with reduce_zero_label false they go from 0 to 1"):
        read_class_names(tmp_path, reduce_zero_label=False)
