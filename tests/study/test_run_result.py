from pathlib import Path

import timm
import torch
from torch.nn import functional as F

import vimoe
from vimoe.study.run_result import experts_touched, read_result
from vimoe.vit.blocks import moe_layers

ARGS = {"img_size": 8, "patch_size": 4, "embed_dim": 16, "depth": 2, "num_heads": 2, "in_chans": 1, "num_classes": 3}


def test_experts_touched_counts_the_experts_of_each_image() -> None:
    model = timm.create_model("vit_tiny_patch16_224", **ARGS)
    vimoe.upcycle(model, last=2, num_experts=4, routing="token")
    batches = [(torch.randn(n, 1, 8, 8), torch.zeros(n, dtype=torch.long)) for n in (5, 2)]
    touched = experts_touched(model, batches, "cpu")
    expected = dict.fromkeys(moe_layers(model), 0)
    model.eval()
    for image in torch.cat([images for images, _ in batches]):
        with torch.no_grad(), vimoe.record_routing(model) as record:
            model(image[None])
        for layer, ids in record.expert_ids.items():
            expected[layer] += len(ids.unique())
    assert touched == {layer: total / 7 for layer, total in expected.items()}
    assert any(value > 1 for value in touched.values())


def test_experts_touched_are_those_of_the_size_that_images_are_looked_at() -> None:
    model = timm.create_model("vit_tiny_patch16_224", **ARGS | {"dynamic_img_size": True})
    vimoe.upcycle(model, last=1, num_experts=4, routing="token")
    large = [(torch.randn(1, 1, 16, 24), torch.zeros(1, dtype=torch.long))]
    small = [(F.interpolate(large[0][0], (8, 12), mode="bilinear", antialias=True), large[0][1])]
    assert experts_touched(model, large, "cpu", short_side=8) == experts_touched(model, small, "cpu")


def test_a_run_without_a_result_that_can_be_read_has_none(tmp_path: Path) -> None:
    assert read_result(tmp_path) is None
    (tmp_path / "result.json").write_text('{"metric": "to')
    assert read_result(tmp_path) is None
