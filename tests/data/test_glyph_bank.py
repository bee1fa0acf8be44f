import unicodedata

import numpy as np
import pytest

from vimoe.data.glyph_bank import FAMILIES, characters, distinct, draw, glyph_bank, script


def test_no_two_classes_are_alike_in_any_face() -> None:
    bank = glyph_bank(24)
    for face in np.moveaxis(bank.ink, 1, 0):
        small = face.reshape(len(face), 12, 2, 12, 2).sum((2, 4)).reshape(len(face), -1).astype(np.float64)
        small /= np.linalg.norm(small, axis=1, keepdims=True)
        likeness = small @ small.T
        np.fill_diagonal(likeness, 0)
        assert likeness.max() < 0.975


def test_of_shapes_that_are_alike_the_first_is_kept() -> None:
    twins = np.stack([np.stack([draw(face, [0x43, 0x63, 0x58], 24) for face in FAMILIES["sans"]], axis=1)])[0]
    assert distinct(twins) == [0, 2]  # C and c are of one shape, X is another
    assert ord("C") in glyph_bank(24).code_points
    assert ord("c") not in glyph_bank(24).code_points


def test_every_class_is_a_letter_or_digit_that_all_sans_faces_have() -> None:
    points = glyph_bank(24).code_points
    assert 1500 < len(points) < 2000
    assert list(points) == sorted(set(points))
    for face in FAMILIES["sans"]:
        assert characters(face) >= set(points)
    assert {unicodedata.category(chr(point)) for point in points} <= {"Lu", "Ll", "Lt", "Lo", "Nd", "Nl", "No"}


def test_the_classes_do_not_depend_on_the_side() -> None:
    assert glyph_bank(16).code_points == glyph_bank(24).code_points
    assert glyph_bank(16).ink.shape == (len(glyph_bank(16).code_points), 4, 16, 16)


@pytest.mark.parametrize("side", [16, 24, 32])
def test_glyphs_are_in_the_middle_and_of_the_same_extent(side: int) -> None:
    for image in draw("DejaVuSans-Bold", [ord(c) for c in "Wil8Ж"], side):
        rows, columns = np.flatnonzero(image.any(1)), np.flatnonzero(image.any(0))
        assert abs(max(np.ptp(rows), np.ptp(columns)) + 1 - 0.75 * side) <= 1
        assert abs(rows[0] + rows[-1] + 1 - side) <= 1
        assert abs(columns[0] + columns[-1] + 1 - side) <= 1


def test_a_letter_has_its_script() -> None:
    letters = {"A": "Latin", "Ж": "Cyrillic", "ω": "Greek", "7": "Digit", "ᐁ": "Canadian", "ℵ": "Other"}
    assert {letter: script(ord(letter)) for letter in letters} == letters
