import timm
import torch

from vimoe.analysis.held_out import held_out
from vimoe.data.digits import digits
from vimoe.data.scenes import digit_scenes
from vimoe.tasks.segmenter import build_segmenter

ARGS = {"img_size": 32, "patch_size": 8, "embed_dim": 16, "depth": 2, "num_heads": 2}


def test_a_classifier_is_measured_by_its_labels() -> None:
    seen = held_out(torch.nn.Linear(1, 1), digits().val, 10, batch_size=100)
    images, labels = next(iter(seen.batches()))
    assert images.shape == (100, 1, 8, 8)
    assert seen.metric == "top1"
    assert torch.equal(seen.classes(labels), labels)
    assert seen.score(torch.nn.functional.one_hot(labels, 10).float(), labels).tolist() == [1.0] * 100


def test_a_segmentation_model_is_measured_by_its_pixels_and_its_patches_have_classes() -> None:
    vit = timm.create_model("vit_tiny_patch16_224", num_classes=0, dynamic_img_size=True, **ARGS)
    seen = held_out(build_segmenter(vit, "linear", 11), digit_scenes().val, 11, batch_size=8)
    images, masks = next(iter(seen.batches()))
    assert seen.metric == "pixels"
    assert images.shape == (8, 3, 32, 32)
    assert seen.classes(masks).shape == (8, 16)
    right = torch.nn.functional.one_hot(masks, 11).permute(0, 3, 1, 2).float()
    assert seen.score(right, masks).tolist() == [1.0] * 8
    assert seen.score(right.roll(1, 1), masks).tolist() == [0.0] * 8


def test_images_and_masks_are_brought_to_the_same_size_and_every_pass_gives_the_same() -> None:
    vit = timm.create_model("vit_tiny_patch16_224", num_classes=0, dynamic_img_size=True, **ARGS)
    seen = held_out(build_segmenter(vit, "linear", 11), digit_scenes().val, 11, batch_size=8, short_side=48)
    images, masks = next(iter(seen.batches()))
    assert images.shape[-2:] == masks.shape[-2:] == (48, 48)
    again, _ = next(iter(seen.batches()))
    assert torch.equal(images, again)
