import pytest
import timm
import torch
from torch import nn

import vimoe
from tests.vit.families import DEPTH, Family, Holder, every_family, make, refused
from vimoe.vit.blocks import SUPPORTED, find_backbone, moe_layers


@every_family
def test_the_blocks_of_every_family_are_found_in_order(family: Family) -> None:
    model = family.make()
    backbone = find_backbone(model)
    assert backbone.vit is model
    assert len(backbone.blocks) == DEPTH
    for number, block in enumerate(backbone.blocks):
        assert block is model.get_submodule(f"blocks.{number}")


@pytest.mark.parametrize("wrap", [Holder, nn.DataParallel, lambda model: Holder(Holder(model))])
def test_the_backbone_is_found_inside_modules_that_hold_it(wrap) -> None:
    model = make()
    assert find_backbone(wrap(model)).vit is model


def test_blocks_are_found_again_after_their_ffns_were_replaced() -> None:
    model = make()
    blocks = find_backbone(model).blocks
    vimoe.upcycle(model, last=3)
    assert find_backbone(model).blocks == blocks


@pytest.mark.parametrize(
    ("name", "kind", "why"),
    [
        ("resnet18", "ResNet", ""),
        ("convnext_tiny", "ConvNeXt", ""),
        ("mixer_s16_224", "MlpMixer", " (its blocks are MixerBlocks)"),
        ("vit_base_patch16_xp_224", "VisionTransformer", " (its blocks are ParallelScalingBlocks)"),
        ("twins_pcpvt_small", "Twins", " (its blocks are ModuleLists)"),
    ],
)
def test_a_model_without_an_ffn_of_its_own_gets_one_line_that_names_what_is_supported(name, kind, why) -> None:
    with torch.device("meta"):
        model = timm.create_model(name)
    line = f"{kind} has no blocks with an FFN of their own to replace{why}; supported are {SUPPORTED}"
    for call in (find_backbone, vimoe.upcycle, vimoe.cost):
        with refused(line, model):
            call(model)


def test_the_line_of_a_foreign_model_reads_as_written_here() -> None:
    model = timm.create_model("resnet18", num_classes=2)
    with refused(
        "ResNet has no blocks with an FFN of their own to replace; supported are plain timm ViTs: "
        "vit_*, DINOv2, DINOv3, DeiT, CLIP and SigLIP image towers, BEiT, EVA; or transformers'",
        model,
    ):
        vimoe.upcycle(model)


def test_blocks_whose_attention_and_ffn_share_a_projection_are_refused_with_weights_too() -> None:
    model = timm.create_model("vit_base_patch16_xp_224", embed_dim=32, depth=2, num_heads=2, img_size=32, num_classes=5)
    with refused("VisionTransformer has no blocks with an FFN of their own to replace … supported are …", model):
        vimoe.upcycle(model)


def test_several_stages_of_blocks_are_refused() -> None:
    with torch.device("meta"):
        model = timm.create_model("swin_tiny_patch4_window7_224")
    with refused(f"SwinTransformer has 4 separate stages of blocks; supported are {SUPPORTED}", model):
        vimoe.upcycle(model)


def test_two_vits_in_one_module_are_refused() -> None:
    model = nn.ModuleList([make(), make()])
    with refused(f"ModuleList has 2 separate stages of blocks; supported are {SUPPORTED}", model):
        vimoe.upcycle(model)


def test_blocks_without_a_patch_embedding_are_refused() -> None:
    with torch.device("meta"):
        model = timm.create_model("naflexvit_base_patch16_gap")
    with refused(f"NaFlexVit does not cut its images into patches itself; supported are {SUPPORTED}", model):
        vimoe.upcycle(model)


@pytest.mark.parametrize("wrap", [lambda model: model, Holder, nn.DataParallel, lambda model: nn.Sequential(model)])
def test_moe_layers_are_numbered_by_block_whatever_holds_them(wrap) -> None:
    model = vimoe.upcycle(make(), layers=[2, 0], num_experts=2)
    layers = moe_layers(wrap(model))
    assert list(layers) == [0, 2]
    assert layers[0] is model.get_submodule("blocks.0.mlp")
    assert layers[2] is model.get_submodule("blocks.2.mlp")


def test_a_dense_model_has_no_moe_layers() -> None:
    assert moe_layers(make()) == {}
    assert moe_layers(timm.create_model("resnet18", num_classes=2)) == {}


def test_moe_layers_outside_numbered_blocks_count_by_their_position() -> None:
    model = vimoe.upcycle(make(), last=2, num_experts=2)
    loose = nn.ModuleDict({"a": model.get_submodule("blocks.1.mlp"), "b": model.get_submodule("blocks.2.mlp")})
    assert list(moe_layers(loose)) == [0, 1]
