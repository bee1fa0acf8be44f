import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import vimoe
from tests.tasks.scenery import NAMES, small_segmenter
from vimoe.analysis.behaviour import count_routing
from vimoe.analysis.held_out import HeldOut
from vimoe.analysis.patches import expert_map, patch_classes, patch_experts, resized_masks
from vimoe.data.masks import IGNORE
from vimoe.data.transforms import ImageForm
from vimoe.vit.recording import record_routing


def slow_classes(mask: list[list[int]], rows: int, columns: int) -> list[list[int]]:
    """The same, patch by patch and pixel by pixel."""
    result = []
    for top in range(0, len(mask), rows):
        line = []
        for left in range(0, len(mask[0]), columns):
            pixels = [v for row in mask[top : top + rows] for v in row[left : left + columns] if v != IGNORE]
            best = max(set(pixels), key=pixels.count, default=-1)
            line.append(best if 2 * pixels.count(best) > len(pixels) else -1)
        result.append(line)
    return result


@given(st.integers(1, 12), st.integers(1, 12), st.integers(1, 5), st.integers(1, 5), st.integers(0, 999))
@settings(deadline=None, max_examples=60)
def test_a_patch_has_the_class_of_more_than_half_of_its_labelled_pixels(
    height: int, width: int, rows: int, columns: int, seed: int
) -> None:
    drawn = torch.Generator().manual_seed(seed)
    masks = torch.randint(0, 3, (2, height, width), generator=drawn)
    masks[torch.rand(masks.shape, generator=drawn) < 0.3] = IGNORE
    classes = patch_classes(masks, (rows, columns), 3)
    assert classes.tolist() == [slow_classes(mask, rows, columns) for mask in masks.tolist()]


def test_ties_and_patches_without_labels_have_no_class() -> None:
    x = IGNORE
    mask = torch.tensor([[0, 1, x, x, x, 2], [1, 0, x, x, x, x]])
    assert patch_classes(mask[None], (2, 2), 3).tolist() == [[[-1, -1, 2]]]


def test_patch_experts_are_the_recorded_choices_without_the_class_token() -> None:
    model, images = small_segmenter(), torch.randn(2, 3, 30, 44)
    experts = patch_experts(model, images)
    with record_routing(model) as record, torch.no_grad():
        model(images)
    assert experts[3].shape == (2, 4, 6, 1)
    for layer in (2, 3):
        assert torch.equal(experts[layer].flatten(1, 2), record.expert_ids[layer].view(2, 25, 1)[:, 1:])


def test_counts_are_those_of_every_patch_that_has_a_class() -> None:
    model = small_segmenter()
    batches = [
        (torch.randn(2, 3, 32, 32), torch.randint(0, 3, (2, 4, 4)).repeat_interleave(8, 1).repeat_interleave(8, 2))
    ]
    batches += [(torch.randn(1, 3, 20, 17), torch.full((1, 20, 17), IGNORE))]
    batches[0][1][1, :8, :8] = IGNORE
    seen = HeldOut(lambda: batches, classes=lambda masks: patch_classes(masks, (8, 8), 3).flatten(1))
    behaviour = count_routing(model.train(), seen)
    counts = behaviour.counts(NAMES)
    assert model.training
    assert sum((labels < 0).sum() for labels in behaviour.labels) == 1 + 3 * 3
    expected = np.zeros((2, 3, 4), dtype=np.int64)
    model.eval()
    for i, layer in enumerate((2, 3)):
        for images, masks in batches:
            classes = patch_classes(masks, (8, 8), 3)
            for c, e in zip(classes.flatten().tolist(), patch_experts(model, images)[layer].flatten().tolist()):
                if c >= 0:
                    expected[i, c, e] += 1
    assert (counts.counts == expected).all()
    assert (counts.layers, counts.num_experts, counts.class_names) == ((2, 3), (4, 4), NAMES)


def test_pruned_layers_count_the_experts_they_kept() -> None:
    model = vimoe.prune(small_segmenter(), {2: [1], 3: [0, 1, 3]})
    batches = [(torch.randn(1, 3, 16, 16), torch.zeros(1, 4).long())]
    counts = count_routing(model, HeldOut(lambda: batches)).counts(NAMES)
    assert counts.num_experts == (1, 3)
    assert counts.layer(2).sum() == counts.layer(3).sum() == 4


def test_masks_are_brought_to_another_size_by_their_nearest_pixel() -> None:
    assert resized_masks(torch.tensor([[[0, IGNORE], [7, 3]]]), 4, 4)[0, :, 0].tolist() == [0, 0, 7, 7]


def test_an_expert_map_shows_the_image_as_it_was() -> None:
    model, mean, std = small_segmenter(), (0.5, 0.4, 0.3), (0.2, 0.3, 0.1)
    pixels = torch.randint(0, 256, (3, 20, 30), dtype=torch.uint8)
    image = (pixels / 255 - torch.tensor(mean)[:, None, None]) / torch.tensor(std)[:, None, None]
    mask = torch.randint(0, 3, (20, 30))
    shown = expert_map(model, image, mask, ImageForm((3, 20, 30), mean, std))
    assert (shown.image == pixels.permute(1, 2, 0).numpy()).all()
    assert (shown.classes == mask.numpy()).all()
    assert {number: experts.shape for number, experts in shown.experts.items()} == {2: (3, 4), 3: (3, 4)}
    assert (shown.experts[3] == patch_experts(model, image[None])[3][0, ..., 0].numpy()).all()


def test_a_dense_model_has_nothing_to_show() -> None:
    with pytest.raises(vimoe.UserError, match="no MoE layer"):
        count_routing(small_segmenter(last=0), HeldOut(list))
    with pytest.raises(vimoe.UserError, match="no MoE layer"):
        patch_experts(small_segmenter(last=0), torch.randn(1, 3, 8, 8))
