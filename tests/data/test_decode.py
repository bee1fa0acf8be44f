import os
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from vimoe.data.decode import BrokenImageError, read_image

RED = np.zeros((4, 6, 3), dtype=np.uint8)
RED[..., 0] = 255


def pixels(path: Path) -> np.ndarray:
    return np.asarray(read_image(path))


def test_an_rgb_image_is_read_as_it_is(tmp_path: Path) -> None:
    Image.fromarray(RED).save(tmp_path / "a.png")
    assert (pixels(tmp_path / "a.png") == RED).all()


def test_greyscale_palette_and_cmyk_become_rgb(tmp_path: Path) -> None:
    Image.fromarray(RED[..., 0]).save(tmp_path / "grey.png")
    assert (pixels(tmp_path / "grey.png") == 255).all()
    Image.fromarray(RED).convert("P").save(tmp_path / "palette.png")
    assert (pixels(tmp_path / "palette.png") == RED).all()
    Image.fromarray(RED).convert("CMYK").save(tmp_path / "cmyk.jpg", quality=100)
    assert np.abs(pixels(tmp_path / "cmyk.jpg").astype(int) - RED).max() < 8


def test_transparency_is_laid_on_white(tmp_path: Path) -> None:
    rgba = np.dstack([RED, np.full((4, 6), 255, np.uint8)])
    rgba[0, 0, 3] = 0
    Image.fromarray(rgba).save(tmp_path / "a.png")
    assert pixels(tmp_path / "a.png")[0, 0].tolist() == [255, 255, 255]
    assert pixels(tmp_path / "a.png")[1, 1].tolist() == [255, 0, 0]


def test_a_palettes_transparent_colour_is_laid_on_white(tmp_path: Path) -> None:
    palette = Image.fromarray(np.array([[0, 1]], dtype=np.uint8), "P")
    palette.putpalette([10, 20, 30, 40, 50, 60])
    palette.save(tmp_path / "a.png", transparency=0)
    assert pixels(tmp_path / "a.png").tolist() == [[[255, 255, 255], [40, 50, 60]]]


def test_sixteen_bits_become_eight_without_clipping(tmp_path: Path) -> None:
    values = np.array([[0, 256, 32768, 65535]], dtype=np.uint16)
    Image.fromarray(values).save(tmp_path / "deep.png")
    assert pixels(tmp_path / "deep.png")[0, :, 0].tolist() == [0, 1, 128, 255]


def test_exif_rotation_is_applied(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6  # the camera was held on its side
    Image.fromarray(RED).save(tmp_path / "a.jpg", exif=exif)
    assert read_image(tmp_path / "a.jpg").size == (4, 6)


def test_one_pixel_and_odd_names_are_no_problem(tmp_path: Path) -> None:
    path = tmp_path / "a 'b' \"ü\".png"
    Image.fromarray(RED[:1, :1]).save(path)
    assert pixels(path).shape == (1, 1, 3)


def test_a_file_that_may_not_be_read_is_one_line(tmp_path: Path) -> None:
    path = tmp_path / "a.png"
    Image.fromarray(RED).save(path)
    path.chmod(0)
    as_root = os.geteuid() == 0  # who may read everything
    try:
        if as_root:
            os.seteuid(65534)
        with pytest.raises(BrokenImageError, match=r"a\.png cannot be read: Permission denied"):
            read_image(path)
    finally:
        if as_root:
            os.seteuid(0)


@pytest.mark.parametrize("kind", ["jpg", "png", "webp", "gif", "tiff", "bmp"])
def test_a_file_cut_anywhere_is_read_whole_or_broken(tmp_path: Path, kind: str) -> None:
    noise = np.random.default_rng(0).integers(0, 255, (24, 24, 3), dtype=np.uint8)
    Image.fromarray(noise).save(tmp_path / f"whole.{kind}")
    whole, expected = (tmp_path / f"whole.{kind}").read_bytes(), pixels(tmp_path / f"whole.{kind}")
    for end in range(0, len(whole), 41):
        (tmp_path / f"cut.{kind}").write_bytes(whole[:end])
        try:
            assert (pixels(tmp_path / f"cut.{kind}") == expected).all()
        except BrokenImageError:
            continue


def test_what_cannot_be_used_is_one_line_with_the_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = tmp_path / "whole.jpg"
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (64, 64, 3), dtype=np.uint8)).save(whole)
    (tmp_path / "empty.jpg").write_bytes(b"")
    (tmp_path / "text.jpg").write_text("no image")
    (tmp_path / "short.jpg").write_bytes(whole.read_bytes()[:600])
    (tmp_path / "dangling.jpg").symlink_to(tmp_path / "nowhere.jpg")
    for name, reason in (
        ("empty.jpg", "is no image that can be read"),
        ("text.jpg", "is no image that can be read"),
        ("short.jpg", "cannot be read: "),
        ("dangling.jpg", "cannot be read: No such file or directory"),
        ("none.jpg", "cannot be read: No such file or directory"),
    ):
        with pytest.raises(BrokenImageError) as caught:
            read_image(tmp_path / name)
        assert str(caught.value).startswith(f"{tmp_path / name} {reason}")
        assert "\n" not in str(caught.value)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 1000)
    with pytest.raises(BrokenImageError, match="has more pixels than is safe to decode"):
        read_image(whole)
