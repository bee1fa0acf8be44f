import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from vimoe.data.decode import BrokenImageError
from vimoe.data.masks import IGNORE, labels_of, read_mask

VALUES = np.array([[0, 1, 2], [3, 4, 255]], dtype=np.uint8)


def saved(path: Path, image: Image.Image, **how: object) -> Path:
    image.save(path, **how)
    return path


def test_with_reduce_zero_label_0_is_unlabelled_and_classes_start_at_1(tmp_path: Path) -> None:
    mask = read_mask(saved(tmp_path / "m.png", Image.fromarray(VALUES)), 4, reduce_zero_label=True)
    assert mask.dtype == torch.int64
    assert mask.tolist() == [[IGNORE, 0, 1], [2, 3, IGNORE]]


def test_without_it_the_classes_start_at_0_and_255_is_unlabelled(tmp_path: Path) -> None:
    mask = read_mask(saved(tmp_path / "m.png", Image.fromarray(VALUES)), 5, reduce_zero_label=False)
    assert mask.tolist() == VALUES.tolist()


@given(st.integers(1, 255), st.booleans(), st.lists(st.integers(-3, 70000), min_size=1, max_size=20))
def test_every_value_is_a_class_or_unlabelled_or_wrong(num_classes: int, reduce: bool, values: list[int]) -> None:
    def expected(value: int) -> int | None:
        if value == 255 or (reduce and value == 0):
            return IGNORE
        label = value - 1 if reduce else value
        return label if 0 <= label < num_classes else None

    labels, wrong = labels_of(np.array(values), num_classes, reduce)
    right = [expected(value) for value in values]
    assert wrong == next((value for value, label in zip(values, right, strict=True) if label is None), None)
    assert all(label is None or label == found for label, found in zip(right, labels.tolist(), strict=True))


def test_palettes_bits_and_16_bits_give_their_numbers(tmp_path: Path) -> None:
    small = np.array([[0, 1, 2], [3, 4, 3]], dtype=np.uint8)
    palette = Image.fromarray(small).convert("P")
    palette.putpalette([200, 10, 10, 0, 0, 0, 9, 9, 9, 50, 60, 70, 1, 2, 3])
    for name, image in {
        "palette.png": palette,
        "16 bits.png": Image.fromarray(small.astype(np.uint16)),
        "32 bits.tif": Image.fromarray(small.astype(np.int32)),
    }.items():
        assert read_mask(saved(tmp_path / name, image), 5, False).tolist() == small.tolist(), name
    bits = Image.fromarray(np.array([[True, False, True]]))
    assert bits.mode == "1"
    assert read_mask(saved(tmp_path / "bits.png", bits), 2, False).tolist() == [[1, 0, 1]]


@pytest.mark.parametrize("depth", [2, 4])
def test_grey_of_2_and_4_bits_gives_the_numbers_that_were_stored(tmp_path: Path, depth: int) -> None:
    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    row = [0, 1, 2, 3]
    packed = sum(value << (depth * (3 - i)) for i, value in enumerate(row)).to_bytes(depth // 2, "big")
    file = tmp_path / "m.png"
    file.write_bytes(
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", struct.pack(">IIBBBBB", 4, 1, depth, 0, 0, 0, 0))
        + chunk(b"IDAT", zlib.compress(b"\0" + packed))
        + chunk(b"IEND", b"")
    )
    assert read_mask(file, 4, False).tolist() == [row]


def test_a_mask_is_turned_upright_as_its_image_is(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6  # to be shown turned a quarter clockwise
    file = saved(tmp_path / "m.png", Image.fromarray(VALUES), exif=exif)
    assert read_mask(file, 5, False).tolist() == np.rot90(VALUES, -1).tolist()


@pytest.mark.parametrize(
    ("image", "line"),
    [
        (Image.new("RGB", (3, 2)), "cannot be read as a mask: it is RGB, and a mask holds one whole number a pixel"),
        (Image.new("LA", (3, 2)), "it is LA, and"),
        (Image.fromarray(VALUES), "holds the value 4, which is no class: 1 to 3, 0 for unlabelled pixels"),
        (Image.fromarray(VALUES.astype(np.uint16) * 300), "holds the value 300, which is no class"),
    ],
)
def test_what_is_no_mask_is_one_line_that_names_file_and_value(tmp_path: Path, image: Image.Image, line: str) -> None:
    file = saved(tmp_path / "a mask.png", image)
    with pytest.raises(BrokenImageError, match=line) as caught:
        read_mask(file, 3, True)
    assert str(caught.value).startswith(str(file))
    assert "\n" not in str(caught.value)


def test_without_reduce_zero_label_the_line_says_what_is_legal(tmp_path: Path) -> None:
    file = saved(tmp_path / "m.png", Image.fromarray(VALUES))
    with pytest.raises(BrokenImageError, match="holds the value 3, which is no class: 0 to 2, 255 for unlabelled"):
        read_mask(file, 3, False)


def test_unreadable_and_cut_off_and_decimal_files_are_one_line(tmp_path: Path) -> None:
    text = tmp_path / "text.png"
    text.write_text("no mask")
    noise = np.random.default_rng(0).integers(0, 3, (64, 64), dtype=np.uint8)
    whole = saved(tmp_path / "whole.png", Image.fromarray(noise)).read_bytes()
    cut = tmp_path / "cut.png"
    cut.write_bytes(whole[: len(whole) // 2])
    decimal = saved(tmp_path / "m.tif", Image.fromarray(np.zeros((2, 2), dtype=np.float32)))
    for file in (text, cut, decimal, tmp_path / "nowhere.png"):
        with pytest.raises(BrokenImageError, match=r"cannot be read as a mask|is no image that can be read"):
            read_mask(file, 3, True)
