import io
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from tests.tasks.scenery import NAMES, small_segmenter
from vimoe.data.decode import read_image
from vimoe.data.mask_augmentation import normalised
from vimoe.data.masks import read_mask
from vimoe.data.transforms import ImageForm
from vimoe.tasks.mask_inference import (
    class_shares,
    mask_png,
    overlay_png,
    predict_masks,
)
from vimoe.tasks.palette import class_colours
from vimoe.tasks.segmenter_folder import save_segmenter
from vimoe.tasks.windows import View


@pytest.mark.parametrize("reduce_zero_label", [True, False])
def test_a_predicted_mask_reads_back_as_the_models_own_labels(tmp_path: Path, reduce_zero_label: bool) -> None:
    model = small_segmenter()
    save_segmenter(model, tmp_path / "model", NAMES, reduce_zero_label)
    file = tmp_path / "image.png"
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (21, 34, 3), dtype=np.uint8)).save(file)
    (answer,) = predict_masks(tmp_path / "model", [file], View(), "cpu", lambda line: None)
    (tmp_path / "mask.png").write_bytes(answer.mask)
    config = model.backbone.pretrained_cfg
    form = ImageForm((3, 32, 32), config["mean"], config["std"], "bicubic", 1.0)
    with torch.no_grad():
        expected = model(normalised(read_image(file), form)[None]).argmax(1)[0]
    assert torch.equal(read_mask(tmp_path / "mask.png", 3, reduce_zero_label), expected)
    assert sum(answer.shares.values()) == pytest.approx(1)
    assert Image.open(io.BytesIO(answer.overlay)).size == (34, 21)


def test_broken_images_are_told_and_left_out(tmp_path: Path) -> None:
    save_segmenter(small_segmenter(), tmp_path, NAMES)
    (tmp_path / "broken.jpg").write_bytes(b"no image")
    Image.new("L", (9, 5)).save(tmp_path / "grey.png")
    told: list[str] = []
    files = [tmp_path / "broken.jpg", tmp_path / "grey.png"]
    answers = list(predict_masks(tmp_path, files, View(), "cpu", told.append))
    assert [answer.path.name for answer in answers] == ["grey.png"]
    assert len(told) == 1
    assert "broken.jpg" in told[0]


def test_processes_that_decode_change_no_mask_and_no_order(tmp_path: Path) -> None:
    save_segmenter(small_segmenter(), tmp_path, NAMES)
    files = []
    for n, size in enumerate([(9, 5), (40, 21), (12, 30)]):
        files.append(tmp_path / f"{2 - n}.png")
        Image.effect_noise(size, 50).convert("RGB").save(files[-1])
    files.insert(1, tmp_path / "broken.png")
    files[1].write_bytes(b"no image")
    told: list[str] = []
    alone = list(predict_masks(tmp_path, files, View(), "cpu", told.append))
    assert list(predict_masks(tmp_path, files, View(), "cpu", told.append, workers=2)) == alone
    assert [answer.path.name for answer in alone] == ["2.png", "1.png", "0.png"]
    assert len(told) == 2


def test_masks_have_the_colours_of_their_classes() -> None:
    classes = np.array([[0, 1], [2, 2]])
    colours = class_colours(3)
    for reduce_zero_label, values in ((True, [[1, 2], [3, 3]]), (False, [[0, 1], [2, 2]])):
        mask = Image.open(io.BytesIO(mask_png(classes, 3, reduce_zero_label)))
        assert mask.mode == "P"
        assert np.asarray(mask).tolist() == values
        assert (np.asarray(mask.convert("RGB")) == colours[classes]).all()
    overlay = Image.open(io.BytesIO(overlay_png(Image.new("RGB", (2, 2), "white"), classes, 3)))
    assert np.abs(np.asarray(overlay) - (colours[classes] / 2 + 127.5)).max() <= 1


def test_shares_are_of_all_pixels_and_the_largest_comes_first() -> None:
    shares = class_shares(np.array([[2, 2, 2], [0, 2, 0]]), NAMES)
    assert list(shares) == ["road", "sky"]
    assert shares == pytest.approx({"road": 4 / 6, "sky": 2 / 6})
