import base64
import io
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image

from tests.analysis.examples import analysis
from vimoe.data.transforms import ImageForm
from vimoe.report.gallery import gallery_places, thumbnail, thumbnails


def pixels(uri: str) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(uri.split(",", 1)[1]))).convert("RGB"))


def test_every_expert_gets_its_first_image_before_any_gets_its_second() -> None:
    found = analysis()
    last = found.layers[-1]
    experts = (
        replace(last.experts[0], confident=(3, 1, 9), unsure=(0,)),
        replace(last.experts[1], confident=(2, 4), unsure=()),
    )
    found = replace(found, layers=(found.layers[0], replace(last, experts=experts)))
    assert gallery_places(found) == [3, 0, 2, 1, 4, 9]
    assert gallery_places(found, most=2) == [3, 0]


def test_thumbnails_are_the_images_at_their_places_with_their_classes() -> None:
    values = torch.arange(10.0)[:, None, None, None].expand(10, 3, 8, 8)
    batches = [((values[i : i + 4] / 10 - 0.5) / 0.05, torch.arange(i, min(i + 4, 10))) for i in (0, 4, 8)]
    found = thumbnails(batches, [9, 0, 5], ImageForm((3, 8, 8), (0.5,) * 3, (0.05,) * 3))
    assert sorted(found) == [0, 5, 9]
    for place, image in found.items():
        assert image.label == place
        assert (image.width, image.height) == (8, 8)
        assert pixels(image.uri) == pytest.approx(25.5 * place, abs=0.6)


def test_what_follows_the_last_wanted_image_is_not_read() -> None:
    def batches():  # type: ignore[no-untyped-def]
        yield torch.zeros(2, 3, 8, 8), torch.zeros(2, dtype=torch.int64)
        raise AssertionError("read on")

    assert list(thumbnails(batches(), [1], ImageForm((3, 8, 8), (0.0,) * 3, (1.0,) * 3))) == [1]


def test_masks_are_no_class() -> None:
    batches = [(torch.zeros(1, 3, 8, 8), torch.zeros(1, 8, 8, dtype=torch.int64))]
    assert thumbnails(batches, [0], ImageForm((3, 8, 8), (0.0,) * 3, (1.0,) * 3))[0].label == -1


def test_large_images_become_small_jpegs() -> None:
    rng = np.random.default_rng(0)
    coarse = Image.fromarray(rng.integers(0, 256, (12, 18, 3), dtype=np.uint8))
    photo = np.asarray(coarse.resize((600, 400), Image.Resampling.BICUBIC))
    small = thumbnail(photo)
    assert (small.width, small.height) == (64, 43)
    assert small.uri.startswith("data:image/jpeg;base64,")
    assert len(small.uri) < 3500
