import numpy as np
import pytest
from numpy.typing import NDArray

from vimoe.tasks.palette import class_colours, expert_colours

# Machado, Oliveira and Fernandes 2009, table 1, severity 1: what linear light becomes for dichromats.
DEUTERANOPE = [[0.367322, 0.860646, -0.227968], [0.280085, 0.672501, 0.047413], [-0.011820, 0.042940, 0.968881]]
PROTANOPE = [[0.152286, 1.052583, -0.204868], [0.114503, 0.786281, 0.099216], [-0.003882, -0.048116, 1.051998]]


def least_distance(colours: NDArray[np.uint8], eye: NDArray[np.float64]) -> float:
    """The least difference in gamma-encoded light, 0 to 1, of any two of the colours, seen with an eye."""
    encoded = colours / 255
    linear = np.where(encoded <= 0.04045, encoded / 12.92, ((encoded + 0.055) / 1.055) ** 2.4)
    seen = np.clip(linear @ np.array(eye).T, 0, 1) ** (1 / 2.4)
    distances = np.linalg.norm(seen[:, None] - seen, axis=-1)
    return distances[~np.eye(len(colours), dtype=bool)].min()


@pytest.mark.parametrize("eye", [np.eye(3), DEUTERANOPE, PROTANOPE], ids=["usual", "deuteranope", "protanope"])
def test_ten_experts_and_eleven_classes_are_distinct_to_colour_blind_eyes_too(eye: NDArray[np.float64]) -> None:
    assert least_distance(expert_colours(10), eye) > 0.12
    assert least_distance(class_colours(11), eye) > 0.08


def test_a_number_has_the_same_colour_however_many_there_are() -> None:
    assert (class_colours(150)[:11] == class_colours(11)).all()
    assert (expert_colours(64)[:8] == expert_colours(8)).all()
    assert len(expert_colours(64)) == 64


def test_150_classes_have_150_colours() -> None:
    assert len(np.unique(class_colours(150), axis=0)) == 150


def test_the_known_colours_of_okabe_and_ito_come_first() -> None:
    assert expert_colours(2).tolist() == [[0x00, 0x72, 0xB2], [0xE6, 0x9F, 0x00]]
