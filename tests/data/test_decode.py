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


def test_no_decoder_but_the_listed_ones_sees_a_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    Image.init()
    for registry in (Image.ID, Image.OPEN):
        monkeypatch.setattr(Image, "ID" if registry is Image.ID else "OPEN", registry.copy())
    seen: list[str] = []
    Image.register_open("EVIL", lambda *_: seen.append("opened"), lambda prefix: bool(seen.append("asked")) or True)
    (tmp_path / "evil.jpg").write_bytes(b"EVIL" * 40)
    (tmp_path / "eps.jpg").write_bytes(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\n")
    Image.fromarray(RED).save(tmp_path / "icon.png", "ICO")
    for name in ("evil.jpg", "eps.jpg", "icon.png"):
        with pytest.raises(BrokenImageError, match="is no image that can be read"):
            read_image(tmp_path / name)
    assert seen == []


def test_every_kind_that_is_listed_is_read_whatever_it_is_called(tmp_path: Path) -> None:
    for kind in ("JPEG", "PNG", "WEBP", "BMP", "PPM", "TIFF", "GIF", "MPO"):  # cameras write MPO as .jpg
        Image.fromarray(RED).save(tmp_path / "any.bin", kind)
        assert read_image(tmp_path / "any.bin").size == (6, 4)


def test_a_pipe_is_broken_and_does_not_hang(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.jpg")
    with pytest.raises(BrokenImageError, match=r"pipe.jpg cannot be read: it is no regular file"):
        read_image(tmp_path / "pipe.jpg")


def test_a_line_that_patches_would_make_too_large_is_broken(tmp_path: Path) -> None:
    Image.new("1", (30_000_000, 1)).save(tmp_path / "line.png")
    with pytest.raises(BrokenImageError, match=r"line.png has more pixels than is safe to decode"):
        read_image(tmp_path / "line.png")


def test_decimals_without_a_number_are_broken_and_gaps_among_numbers_are_black(tmp_path: Path) -> None:
    values = np.full((2, 3), np.nan, dtype=np.float32)
    Image.fromarray(values).save(tmp_path / "empty.tiff")
    with pytest.raises(BrokenImageError, match=r"empty.tiff cannot be read: it holds no number"):
        read_image(tmp_path / "empty.tiff")
    values[0] = 0, 1, 2
    values[1, 0] = np.inf
    Image.fromarray(values).save(tmp_path / "gaps.tiff")
    assert pixels(tmp_path / "gaps.tiff")[..., 0].tolist() == [[0, 128, 255], [255, 0, 0]]
