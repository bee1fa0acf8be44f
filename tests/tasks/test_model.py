from pathlib import Path

import pytest
import timm
import torch

import vimoe
from tests.tasks.scenery import NAMES, small_segmenter
from tests.tasks.test_segmentation import Sizes
from vimoe import UserError
from vimoe.tasks.classification import Classification
from vimoe.tasks.mask_inference import default_view
from vimoe.tasks.model import load_model, model_classes, model_form
from vimoe.tasks.segmentation import Segmentation
from vimoe.tasks.segmenter_folder import save_segmenter
from vimoe.tasks.windows import View
from vimoe.vit.model_config import model_folder


def test_a_folder_says_how_its_model_sees_images_and_what_it_tells_apart(tmp_path: Path) -> None:
    model = small_segmenter()
    save_segmenter(model, tmp_path / "model", NAMES, reduce_zero_label=True, short_side=24)
    folder = model_folder(tmp_path)
    assert folder == tmp_path / "model" == model_folder(folder)
    assert model_classes(folder) == NAMES
    assert default_view(folder) == View(short_side=24)
    assert model_form(folder).mean == tuple(model.backbone.pretrained_cfg["mean"])
    args = {"img_size": 16, "patch_size": 8, "embed_dim": 16, "depth": 2, "num_heads": 2, "num_classes": 3}
    vimoe.save(timm.create_model("vit_tiny_patch16_224", **args), tmp_path / "plain", model_args=args)
    assert model_classes(tmp_path / "plain") is None
    assert load_model(tmp_path / "plain")(torch.randn(1, 3, 16, 16)).shape == (1, 3)


def test_a_folder_is_evaluated_as_the_model_in_memory_is(tmp_path: Path) -> None:
    model, images, task = small_segmenter(), Sizes([(20, 30), (33, 8)]), Segmentation(3, view=View(short_side=24))
    save_segmenter(model, tmp_path, NAMES)
    assert task.evaluate(load_model(tmp_path), images, "cpu") == task.evaluate(model, images, "cpu")


def test_weights_that_are_no_numbers_end_in_one_line_and_not_in_metrics(tmp_path: Path) -> None:
    segmenter = small_segmenter()
    segmenter.decoder.get_submodule("classify").weight.data[0, 0] = float("nan")
    save_segmenter(segmenter, tmp_path, NAMES)
    with pytest.raises(UserError, match="outputs are not finite numbers: its weights are damaged"):
        Segmentation(3).evaluate(load_model(tmp_path), Sizes([(16, 16)]), "cpu")
    classifier = torch.nn.Linear(4, 3)
    classifier.weight.data[0, 0] = float("inf")
    with pytest.raises(UserError, match="outputs are not finite numbers"):
        Classification(3).measure(classifier, [(torch.ones(2, 4), torch.tensor([0, 1]))], "cpu")
