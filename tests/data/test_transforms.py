import pickle
import random
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from timm.data import create_transform, resolve_data_config

from tests.data.image_files import write_folder
from vimoe.data.decode import BrokenImageError
from vimoe.data.memory import hold_in_memory
from vimoe.data.registry import open_dataset
from vimoe.data.transforms import Augmentation, ImageForm, evaluation_transform, image_form, training_transform
from vimoe.errors import UserError

FORM = ImageForm((3, 8, 8), (0.5,) * 3, (0.5,) * 3)
POLICIES = (
    *("rand-m9-mstd0.5-inc1", "rand-m9-mstd0.5", "rand-m0", "rand-m20-n3-mmax30-mstd9-inc1", "rand-mstd101-inc1"),
    *("rand-m7-mstd1-tweights", "rand-m9-n3-t3aw-mstd1", "3a", "v0-mstd1", "v0r-mstd1", "original-mstd1"),
    *("originalr-mstd9", "augmix-m5-w4-d2-mstd1", "augmix-m9-b1"),
)


@pytest.mark.parametrize("channels", [3, 1])
def test_ten_thousand_draws_of_every_kind_of_policy_keep_their_magnitudes_in_range(channels: int) -> None:
    random.seed(0)
    np.random.seed(0)
    form = ImageForm((channels, 8, 8), (0.5,) * channels, (0.5,) * channels)
    image = Image.fromarray(np.random.randint(0, 256, (8, 8, 3), dtype=np.uint8))
    for policy in POLICIES:
        transform = training_transform(form, Augmentation(aa=policy))
        for _ in range(5000 // len(POLICIES) + 1):
            seen, label = transform(image, 7)
        assert seen.shape == (channels, 8, 8)
        assert seen.isfinite().all()
        assert label == 7


@pytest.mark.parametrize("policy", ["rand-m9-n100000", "rand-m9-n11-tweights", "augmix-w999999", "augmix-d500"])
def test_a_policy_without_end_is_refused(policy: str) -> None:
    with pytest.raises(UserError, match=f"the policy '{policy}' has more than 10 operations an image"):
        training_transform(FORM, Augmentation(aa=policy))


def test_an_image_whose_longer_side_would_have_no_end_is_broken_wherever_it_is_evaluated(tmp_path: Path) -> None:
    root = write_folder(tmp_path, {"train": 2, "val": 1})
    for split in ("train", "val"):
        Image.new("L", (1, 89000)).save(root / split / "grass" / "thin.png")
    form = ImageForm((3, 224, 224), (0.5,) * 3, (0.5,) * 3, crop_pct=0.875)
    splits = open_dataset("folder", str(root), form)
    line = r"thin.png is 1 x 89000 pixels: with its shorter side at 2\d\d pixels it has more than is safe"
    for whole in (splits, hold_in_memory(splits, None)):
        for part in (whole.train, whole.val):
            with pytest.raises(BrokenImageError, match=line):
                [part[i] for i in range(len(part))]


def test_an_image_is_resized_cropped_and_normalised_for_evaluation_and_bytes_are_what_is_normalised() -> None:
    image = Image.fromarray(np.random.default_rng(0).integers(0, 255, (9, 12, 3), dtype=np.uint8))
    form = ImageForm((3, 8, 8), (0.4, 0.5, 0.6), (0.2, 0.3, 0.4), "bicubic", 0.9)
    seen, label = evaluation_transform(form)(image, 3)
    pixels, _ = evaluation_transform(form, as_bytes=True)(image, 3)
    mean, std = (torch.tensor(values)[:, None, None] for values in (form.mean, form.std))
    torch.testing.assert_close(seen, (pixels / 255 - mean) / std)
    assert (pixels.dtype, label) == (torch.uint8, 3)
    assert pickle.loads(pickle.dumps(evaluation_transform(form)))(image, 3)[0].equal(seen)  # workers may be spawned


def test_a_form_is_read_from_a_models_settings_and_its_names_are_timms() -> None:
    settings = {"input_size": (3, 32, 48), "mean": (0.1, 0.2, 0.3), "std": (0.4, 0.5, 0.6)}
    settings |= {"interpolation": "bilinear", "crop_pct": 0.8, "crop_mode": "squash"}
    form = image_form(settings)
    assert form._asdict() == settings
    assert image_form(settings, 24) == form._replace(input_size=(3, 24, 24))


@pytest.mark.parametrize("mode", ["center", "squash", "border"])
def test_evaluation_makes_an_images_shape_the_models_as_timm_does(mode: str) -> None:
    image = Image.fromarray(np.random.default_rng(0).integers(0, 255, (40, 90, 3), dtype=np.uint8))
    cfg = {"input_size": (3, 32, 32), "mean": (0.5,) * 3, "std": (0.5,) * 3, "crop_pct": 0.9, "crop_mode": mode}
    timms = create_transform(**resolve_data_config(pretrained_cfg=cfg))(image)
    assert evaluation_transform(image_form(cfg))(image, 0)[0].equal(timms)
