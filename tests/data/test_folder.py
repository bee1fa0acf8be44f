import os
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from tests.data.image_files import COLOURS, write_folder
from vimoe.data.images import ImageFiles
from vimoe.data.loaders import batches, training_batches
from vimoe.data.registry import open_dataset
from vimoe.data.splits import Splits
from vimoe.data.transforms import Augmentation, ImageForm
from vimoe.errors import UserError

FORM = ImageForm((3, 16, 16), (0.5, 0.5, 0.5), (0.5, 0.5, 0.5), "bicubic", 1.0)
CLASSES = tuple(sorted(COLOURS))


def open_(
    root: Path, augmentation: Augmentation | None = None, seed: int = 0, splits: tuple[str, str, str] = ("", "", "")
) -> Splits:
    return open_dataset("folder", str(root), FORM, augmentation, val_share=0.25, seed=seed, splits=splits)


def paths(images: object) -> set[Path]:
    assert isinstance(images, ImageFiles)
    return {path for path, _ in images.samples}


def test_splits_are_found_by_name_and_labels_are_the_class_folders_in_order(tmp_path: Path) -> None:
    splits = open_(write_folder(tmp_path, {"train": 4, "validation": 2, "test": 1}))
    assert splits.class_names == CLASSES
    assert [len(part) for part in (splits.train, splits.val, splits.test)] == [12, 6, 3]
    image, label = splits.val[5]
    assert image.shape == (3, 16, 16)
    assert label == 2


def test_without_a_test_folder_val_is_reported_and_without_val_some_training_images_decide(tmp_path: Path) -> None:
    splits = open_(write_folder(tmp_path / "a", {"train": 4, "val": 2}))
    assert paths(splits.test) == paths(splits.val)
    splits = open_(write_folder(tmp_path / "b", {"train": 4, "test": 2}))
    assert {path.parent.parent.name for path in paths(splits.test)} == {"test"}
    assert {path.parent.parent.name for path in paths(splits.val)} == {"train"}
    assert not paths(splits.val) & paths(splits.train)


def test_an_unsplit_folder_sets_the_same_share_of_every_class_aside_by_seed(tmp_path: Path) -> None:
    root = write_folder(tmp_path, {"": 8})
    first, again, other = open_(root), open_(root), open_(root, seed=1)
    assert [len(first.train), len(first.val)] == [18, 6]
    assert not paths(first.train) & paths(first.val)
    assert paths(first.val) == paths(again.val) != paths(other.val)
    assert sorted(label for _, label in first.val.samples) == [0, 0, 1, 1, 2, 2]  # type: ignore[attr-defined]


def test_augmentation_depends_on_seed_epoch_and_image_and_not_on_workers_or_where_it_is_taken_up(
    tmp_path: Path,
) -> None:
    splits = open_(write_folder(tmp_path, {"train": 4, "val": 1}), Augmentation(aa="rand-m9-mstd0.5-inc1", reprob=0.5))

    def epoch(number: int, **how: int) -> list[torch.Tensor]:
        return [images for images, _ in training_batches(splits.train, 3, 0, number, **how)]

    plain, parallel, late, next_one = epoch(0), epoch(0, workers=2), epoch(0, first=2), epoch(1)
    assert len(plain) == 4
    assert all(torch.equal(a, b) for a, b in zip(plain, parallel, strict=True))
    assert all(torch.equal(a, b) for a, b in zip(plain[2:], late, strict=True))
    assert not torch.equal(plain[0], next_one[0])


def test_repeated_views_differ_and_depend_neither_on_workers_nor_on_processes_nor_on_a_stop(tmp_path: Path) -> None:
    splits = open_(write_folder(tmp_path, {"train": 4, "val": 1}), Augmentation(aa="rand-m9-mstd0.5-inc1", reprob=0.5))

    def epoch(**how: Any) -> list[tuple[torch.Tensor, torch.Tensor]]:
        return list(training_batches(splits.train, 6, 0, 0, repeats=3, **how))

    whole, parallel, late = epoch(), epoch(workers=2), epoch(first=1)
    assert [labels.tolist() for _, labels in whole] == [labels.tolist() for _, labels in parallel]
    assert torch.equal(whole[1][0], late[0][0])
    for views, labels in whole:
        assert len(labels[:3].unique()) == len(labels[3:].unique()) == 1
        assert len(views.flatten(1).unique(dim=0)) == 6
    shares = [epoch(part=(0, 2)), epoch(part=(1, 2), workers=1)]
    for (views, _), (even, _), (odd, _) in zip(whole, *shares, strict=True):
        assert torch.equal(views[0::2], even)
        assert torch.equal(views[1::2], odd)


def test_a_data_set_that_has_gone_ends_with_a_line(tmp_path: Path) -> None:
    splits = open_(write_folder(tmp_path, {"train": 4, "val": 1}))
    shutil.rmtree(tmp_path / "train")
    told: list[str] = []
    with pytest.raises(UserError, match=r"12 training images in a row cannot be read: are they there\?"):
        next(training_batches(splits.train, 4, 0, 0, 0, 0, told.append))
    assert len(set(told)) == 12


def test_a_name_of_any_bytes_is_told_in_one_line_that_can_be_written(tmp_path: Path) -> None:
    root = write_folder(tmp_path, {"train": 1, "val": 1})
    (root / "val" / "grass" / os.fsdecode(b"a 'b' \"c\"\n\xff \xc3\xbc.jpg")).write_text("no image")
    told: list[str] = []
    assert sum(len(labels) for _, labels in batches(open_(root).val, 4, 0, told.append)) == 3
    assert told == [f"{root / 'val' / 'grass'}/a 'b' \"c\"\\n\\udcff ü.jpg is no image that can be read"]
    told[0].encode()


def test_splits_are_taken_by_name_where_they_are_told(tmp_path: Path) -> None:
    root = write_folder(tmp_path, {"fold1": 2, "fold2": 1, "test": 3})
    splits = open_(root, splits=("fold2", "fold1", ""))
    assert [len(part) for part in (splits.train, splits.val, splits.test)] == [3, 6, 9]
    with pytest.raises(UserError, match="has no split 'fold3'; there is fold1, fold2, test"):
        open_(root, splits=("fold1", "fold3", ""))
    with pytest.raises(UserError, match="has no training split; name one with train_split"):
        open_(root)


def test_images_of_any_shape_come_out_in_the_models(tmp_path: Path) -> None:
    root = write_folder(tmp_path, {"train": 1, "val": 1})
    for split in ("train", "val"):
        for name, size in (("dot", (1, 1)), ("line", (300, 1)), ("pole", (1, 300))):
            Image.new("RGB", size, "red").save(root / split / "grass" / f"{name}.png")
    splits = open_(root, Augmentation(aa="rand-m9-mstd0.5-inc1", reprob=0.5))
    for part in (splits.train, splits.val):
        assert all(part[i][0].shape == (3, 16, 16) and part[i][0].isfinite().all() for i in range(len(part)))


@pytest.mark.parametrize("workers", [0, 2])
def test_broken_images_are_told_replaced_in_training_and_left_out_of_evaluation(tmp_path: Path, workers: int) -> None:
    root = write_folder(tmp_path, {"train": 4, "val": 2})
    (root / "train" / "grass" / "001.jpg").write_text("no image")
    (root / "val" / "grass" / "000.jpg").write_bytes(b"")
    splits, told = open_(root), list[str]()
    sizes = [len(labels) for _, labels in training_batches(splits.train, 4, 0, 0, 0, workers, told.append)]
    assert sizes == [4, 4, 4]
    assert told == [f"{root / 'train' / 'grass' / '001.jpg'} is no image that can be read"]
    assert sum(len(labels) for _, labels in batches(splits.val, 4, workers)) == 5


@pytest.mark.parametrize(
    ("spoil", "line"),
    [
        (lambda root: root / "nowhere", "is not a folder"),
        (lambda root: root / "train" / "grass", "no class folders"),
        (lambda root: [p.unlink() for p in (root / "train" / "grass").iterdir()] and root, "holds no images"),
        (lambda root: (root / "train" / "empty").mkdir() or root, "train/empty holds no images"),
        (lambda root: (root / "val" / "grass").rename(root / "val" / "hay") and root, "'hay' is only there"),
        (lambda root: shutil.copytree(root / "val" / "grass", root / "val" / "an") and root, "'an' is only there"),
    ],
)
def test_a_folder_that_cannot_be_used_is_one_line(tmp_path: Path, spoil: object, line: str) -> None:
    root = spoil(write_folder(tmp_path, {"train": 2, "val": 1}))  # type: ignore[operator]
    with pytest.raises(UserError, match=line):
        open_(root)


def test_too_few_images_to_set_some_aside_and_an_unknown_policy_are_one_line(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="has too few images to set some aside"):
        open_(write_folder(tmp_path / "a", {"": 1}))
    with pytest.raises(UserError, match="timm cannot augment images as"):
        open_(write_folder(tmp_path / "b", {"train": 1, "val": 1}), Augmentation(aa="nonsense"))


def test_links_that_go_round_add_no_images_and_end(tmp_path: Path) -> None:
    root = write_folder(tmp_path / "data", {"train": 2, "val": 1})
    (root / "train" / "grass" / "again").symlink_to(root / "train" / "grass")
    (root / "train" / "grass" / "up").symlink_to("..")
    (root / "train" / "grass" / "self").symlink_to("self")
    (root / "train" / "loop").symlink_to(root)
    splits = open_(root)
    assert splits.class_names == CLASSES
    assert [len(splits.train), len(splits.val)] == [6, 3]


def test_links_to_images_elsewhere_are_followed_and_each_folder_is_visited_once(tmp_path: Path) -> None:
    root = write_folder(tmp_path / "data", {"train": 2, "val": 1})
    more = write_folder(tmp_path / "more", {"": 3}) / "grass"
    for name in ("first", "second"):
        (root / "train" / "grass" / name).symlink_to(more)
    (root / "train" / "grass" / "one.jpg").symlink_to(more / "000.jpg")
    assert len(open_(root).train) == 6 + 3 + 1


def test_pipes_and_hidden_files_are_no_images_and_a_link_to_a_lost_file_is_a_broken_one(tmp_path: Path) -> None:
    root = write_folder(tmp_path, {"train": 2, "val": 1})
    os.mkfifo(root / "val" / "grass" / "pipe.jpg")
    shutil.copytree(root / "val" / "grass", root / "val" / "grass" / ".thumbnails", ignore=lambda *_: ["pipe.jpg"])
    (root / "val" / "grass" / ".000.jpg").write_bytes(b"")
    (root / "val" / "grass" / "lost.jpg").symlink_to(tmp_path / "nowhere.jpg")
    lines: list[str] = []
    assert sum(len(labels) for _, labels in batches(open_(root).val, 4, 0, lines.append)) == 3
    assert lines == [f"{root / 'val' / 'grass' / 'lost.jpg'} cannot be read: No such file or directory"]
