import timm
import torch

from vimoe.analysis.held_out import draw, held_out
from vimoe.data.digits import digits
from vimoe.data.images import ImageFiles, InMemory
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


def test_a_sample_has_each_class_in_its_share_and_depends_on_the_seed_alone() -> None:
    labels = torch.tensor([0] * 60 + [1] * 30 + [2] * 10)
    images = InMemory(torch.arange(100.0)[:, None, None, None], labels)
    drawn = draw(images, 20, seed=1)
    assert torch.bincount(torch.tensor([label for _, label in drawn])).tolist() == [12, 6, 2]
    assert [int(image) for image, _ in drawn] == drawn.places == sorted(set(drawn.places))
    assert draw(images, 20, seed=1).places == drawn.places != draw(images, 20, seed=2).places
    assert draw(images, 1000).places == list(range(100))
    assert not drawn.from_files


def test_files_are_sampled_by_their_labels_and_none_is_opened() -> None:
    files = ImageFiles([(f"{i}.png", i % 4) for i in range(80)], read=None, transform=None)  # type: ignore[arg-type]
    drawn = draw(files, 8)
    assert sorted(place % 4 for place in drawn.places) == [0, 0, 1, 1, 2, 2, 3, 3]
    assert drawn.from_files


def test_images_with_masks_are_sampled_at_random() -> None:
    drawn = draw(digit_scenes().val, 10)
    assert len(set(drawn.places)) == len(drawn) == 10
    assert drawn[3][1].shape == (32, 32)


def test_all_images_are_drawn_where_all_are_wanted_however_many() -> None:
    files = ImageFiles([(f"{i}.png", 0) for i in range(50_286)], read=None, transform=None)  # type: ignore[arg-type]
    assert draw(files, 50_286).places == list(range(50_286))
