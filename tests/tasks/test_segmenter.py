import copy

import pytest
import timm
import torch
from timm.optim import create_optimizer_v2
from torch.nn import functional as F

import vimoe
from tests.tasks.scenery import small_segmenter, small_vit
from vimoe import UserError
from vimoe.tasks.segmenter import build_segmenter, check_token_routing
from vimoe.vit.blocks import find_backbone, moe_layers
from vimoe.vit.recording import record_routing


@pytest.mark.parametrize("decoder", ["linear", "upernet"])
@pytest.mark.parametrize("size", [(32, 32), (1, 1), (33, 50), (7, 64)])
@torch.no_grad()
def test_logits_have_the_size_of_the_image(decoder: str, size: tuple[int, int]) -> None:
    assert small_segmenter(decoder)(torch.randn(2, 3, *size)).shape == (2, 3, *size)


@torch.no_grad()
def test_logits_are_those_of_the_patches_enlarged() -> None:
    model, images = small_segmenter(), torch.randn(2, 3, 32, 40)
    tokens = model.backbone.forward_features(images)[:, 1:]
    patches = tokens.transpose(1, 2).unflatten(2, (4, 5))
    expected = F.interpolate(model.decoder([patches]), size=(32, 40), mode="bilinear", align_corners=False)
    assert torch.allclose(model(images), expected, atol=1e-4)


@torch.no_grad()
def test_a_size_between_patches_is_filled_up_with_zeros_and_cut_back() -> None:
    model, images = small_segmenter(), torch.randn(1, 3, 29, 34)
    assert torch.equal(model(images), model(F.pad(images, (0, 6, 0, 3)))[..., :29, :34])
    assert model.grid(29, 34) == (4, 5)


@torch.no_grad()
def test_the_multi_level_decoder_sees_the_last_block_of_each_quarter() -> None:
    model = build_segmenter(small_vit(depth=8), "upernet", 3, dim=32)
    assert model.blocks == (1, 3, 5, 7)
    assert build_segmenter(small_vit(), "linear", 3).blocks == (3,)
    assert build_segmenter(small_vit(), "linear", 3, blocks=[1]).blocks == (1,)


@torch.no_grad()
def test_upcycling_and_pruning_a_segmenter_work_in_place_and_upcycling_keeps_its_function() -> None:
    model, images = small_segmenter(last=0), torch.randn(2, 3, 32, 32)
    dense = model(images)
    vimoe.upcycle(model, last=2, num_experts=4, routing="token")
    assert list(moe_layers(model)) == [2, 3]
    assert find_backbone(model).vit is model.backbone
    assert torch.allclose(model(images), dense, atol=1e-5)
    with record_routing(model) as record:
        model(images)
    assert record.expert_ids[3].shape == (2 * 17, 1)  # 16 patches and the class token, each routed by itself
    vimoe.prune(model, {2: []})
    assert list(moe_layers(model)) == [3]
    assert model(images).isfinite().all()


@pytest.mark.parametrize(
    ("name", "size"),
    [("vit_small_patch14_reg4_dinov2", 28), ("vit_base_patch16_siglip_224", 32), ("eva02_tiny_patch14_224", 28)],
)
def test_every_parameter_that_is_trained_gets_a_gradient(name: str, size: int) -> None:
    vit = timm.create_model(name, img_size=size, embed_dim=32, depth=2, num_heads=2, dynamic_img_size=True)
    model = build_segmenter(vimoe.upcycle(vit, last=1, num_experts=2, routing="token"), "linear", 3)
    model(torch.randn(2, 3, 30, 44)).square().sum().backward()
    assert [n for n, p in model.named_parameters() if p.requires_grad and p.grad is None] == []


def test_activation_checkpointing_changes_no_gradient() -> None:
    model, images = small_segmenter(), torch.randn(2, 3, 32, 32)
    other = copy.deepcopy(model)
    other.set_grad_checkpointing()
    for each in (model, other):
        each.train()(images).square().sum().backward()
    for (name, one), two in zip(model.named_parameters(), other.parameters(), strict=True):
        assert torch.allclose(one.grad, two.grad, atol=1e-6), name


def test_layer_decay_scales_the_backbone_by_depth_and_leaves_the_decoder_alone() -> None:
    model = small_segmenter()
    groups = create_optimizer_v2(model, opt="adamw", lr=1.0, weight_decay=0.1, layer_decay=0.5).param_groups
    scale = {id(p): group["lr_scale"] for group in groups for p in group["params"]}
    decay = {id(p): group["weight_decay"] for group in groups for p in group["params"]}
    names = dict(model.named_parameters())
    assert scale[id(names["decoder.classify.weight"])] == 1
    assert scale[id(names["backbone.blocks.3.attn.qkv.weight"])] == 0.5
    assert scale[id(names["backbone.norm.weight"])] == 0.5
    assert scale[id(names["backbone.blocks.0.attn.qkv.weight"])] == 0.5**4
    assert scale[id(names["backbone.pos_embed"])] == 0.5**5
    undecayed = ("pos_embed", "blocks.3.mlp.router.weight", "blocks.3.mlp.experts.fc1.bias", "blocks.0.norm1.weight")
    assert all(decay[id(names[f"backbone.{name}"])] == 0 for name in undecayed)
    assert decay[id(names["backbone.blocks.3.mlp.experts.fc1.weight"])] == 0.1


def test_the_cost_of_a_segmenter_counts_its_decoder() -> None:
    model = small_segmenter()
    alone, whole = vimoe.cost(model.backbone, 32), vimoe.cost(model, 32)
    assert whole.macs - alone.macs == 16 * 32 * 3
    assert whole.stored_params - alone.stored_params == 2 * 32 + 32 * 3 + 3


def test_image_routing_makes_no_sense_here_and_the_line_says_why() -> None:
    vit = vimoe.upcycle(small_vit(), last=1, num_experts=4, routing="image")
    with pytest.raises(UserError, match=r"all patches of an image to the same experts.*use routing 'token'"):
        build_segmenter(vit, "linear", 3)
    check_token_routing(small_vit())
    check_token_routing(small_segmenter())


@pytest.mark.parametrize(
    ("args", "line"),
    [
        ({"decoder": "fpn"}, "decoder must be one of linear, upernet, got 'fpn'"),
        ({"num_classes": 0}, "needs at least one class"),
        ({"decoder": "upernet", "blocks": [1, 2]}, "takes 4 of the blocks 0 to 3"),
        ({"blocks": [4]}, "takes 1 of the blocks 0 to 3"),
        ({"decoder": "upernet", "blocks": [0, 2, 1, 3]}, "in ascending order"),
    ],
)
def test_what_does_not_fit_gets_one_line(args: dict[str, object], line: str) -> None:
    with pytest.raises(UserError, match=line):
        build_segmenter(small_vit(), **{"decoder": "linear", "num_classes": 3, **args})


def test_a_backbone_of_one_size_or_too_few_blocks_is_refused() -> None:
    with pytest.raises(UserError, match="takes images of one size only"):
        build_segmenter(small_vit(dynamic_img_size=False), "linear", 3)
    with pytest.raises(UserError, match="needs 4 blocks, this model has 3"):
        build_segmenter(small_vit(depth=3), "upernet", 3)
