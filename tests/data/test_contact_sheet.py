import numpy as np
import torch

from vimoe.data.contact_sheet import contact_sheet, to_pixels
from vimoe.data.transforms import ImageForm


def test_one_channel_is_grey_and_values_beyond_the_range_are_cut() -> None:
    shown = to_pixels(torch.tensor([[[-9.0, 0.0, 9.0]]]), ImageForm((1, 1, 3), (0.5,), (0.25,)))
    assert shown.tolist() == [[[0] * 3, [128] * 3, [255] * 3]]


def test_images_stand_in_rows_each_over_its_caption() -> None:
    colours = [(200, 0, 0), (0, 200, 0), (0, 0, 200)]
    images = [np.full((10, 10 + 10 * i, 3), colour, dtype=np.uint8) for i, colour in enumerate(colours)]
    sheet = np.asarray(contact_sheet(images, ["red", "green\nis lime", "a very long name " * 9], columns=2, side=20))
    assert sheet.shape == (2 * (20 + 2 * 15 + 12) + 6, 2 * (60 + 6) + 6, 3)
    assert [tuple(sheet[y, x]) for y, x in ((10, 10), (10, 80), (80, 60))] == colours
    below = sheet[27:55, 6:66]
    assert below.min() < 100
    assert (below.max(-1) - below.min(-1)).max() == 0  # black on white


def test_no_images_are_an_empty_sheet() -> None:
    assert contact_sheet([], []).size[0] > 0
