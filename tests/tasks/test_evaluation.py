from pathlib import Path

import pytest
import timm
import torch

import vimoe
from tests.tasks.scenery import NAMES, small_segmenter
from tests.tasks.test_segmentation import Sizes
from vimoe import UserError
from vimoe.data.images import InMemory
from vimoe.tasks.classification import Classification
from vimoe.tasks.evaluation import evaluate_folder
from vimoe.tasks.mask_inference import default_view
from vimoe.tasks.model import load_model, model_classes, model_folder
from vimoe.tasks.segmentation import Segmentation
from vimoe.tasks.segmenter_folder import save_segmenter
from vimoe.tasks.windows import View


def test_a_segmentation_models_folder_is_evaluated_as_the_model_in_memory_is(tmp_path: Path) -> None:
    model, images = small_segmenter(), Sizes([(20, 30), (33, 8)])
    save_segmenter(model, tmp_path / "model", NAMES, reduce_zero_label=True, short_side=24)
    folder = model_folder(tmp_path)
    assert model_classes(folder) == NAMES
    view = default_view(folder)
    assert view == View(short_side=24)
    found = evaluate_folder(folder, images, NAMES, "cpu", view=view)
    expected = Segmentation(3, view=view).measure(model, images, "cpu")
    assert found.summary == expected.summary()
    assert found.columns == ("pixels", "IoU %", "accuracy %")
    assert [row[:2] for row in found.per_class] == list(zip(NAMES, expected.counts.sum(1).tolist(), strict=True))
    assert found.broken == []


def test_a_classifiers_folder_is_evaluated_as_the_model_in_memory_is(tmp_path: Path) -> None:
    args = {"img_size": 16, "patch_size": 8, "embed_dim": 16, "depth": 2, "num_heads": 2, "num_classes": 3}
    model = timm.create_model("vit_tiny_patch16_224", **args)
    vimoe.save(model, tmp_path, model_args=args)
    images = InMemory(torch.randn(7, 3, 16, 16), torch.arange(7) % 3)
    found = evaluate_folder(tmp_path, images, ("a", "b", "c"), "cpu", batch_size=2)
    assert found.summary == pytest.approx(Classification(3).evaluate(model, images, "cpu"))
    assert [(name, count) for name, count, _ in found.per_class] == [("a", 3), ("b", 2), ("c", 2)]
    assert model_classes(tmp_path) is None


def test_weights_that_are_no_numbers_end_in_one_line_and_not_in_metrics(tmp_path: Path) -> None:
    segmenter = small_segmenter()
    segmenter.decoder.get_submodule("classify").weight.data[0, 0] = float("nan")
    save_segmenter(segmenter, tmp_path / "masks", NAMES)
    with pytest.raises(UserError, match="outputs are not finite numbers: its weights are damaged"):
        Segmentation(3).measure(load_model(tmp_path / "masks"), Sizes([(16, 16)]), "cpu")
    classifier = torch.nn.Linear(4, 3)
    classifier.weight.data[0, 0] = float("inf")
    with pytest.raises(UserError, match="outputs are not finite numbers"):
        Classification(3).measure(classifier, InMemory(torch.ones(2, 4), torch.tensor([0, 1])), "cpu")
