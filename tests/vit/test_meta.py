import pytest
import timm
import torch
from torch import nn

import vimoe
from tests.vit.families import (
    Family,
    Holder,
    assert_unchanged,
    every_family,
    make,
    make_images,
    randomise,
    refused,
    run,
    snapshot,
)
from vimoe.vit.blocks import find_backbone
from vimoe.vit.meta import TokenLayout, input_shape, meta_clone, read_token_layout


@every_family
def test_every_family_s_tokens_are_read_without_touching_the_model(family: Family) -> None:
    model = family.make().train()
    before = snapshot(model)
    layout = read_token_layout(find_backbone(model), range(3))
    assert layout == TokenLayout(family.prefix, family.class_token, per_image=True, num_tokens=layout.num_tokens)
    assert_unchanged(model, before)


@every_family
def test_a_clone_has_the_model_s_shapes_and_none_of_its_weights(family: Family) -> None:
    model = vimoe.upcycle(family.make(), num_experts=2).train()
    before = snapshot(model)
    clone = meta_clone(model)
    assert all(tensor.is_meta for tensor in [*clone.parameters(), *clone.buffers()])
    assert not any(module.training for module in clone.modules())
    assert {n: p.shape for n, p in clone.named_parameters()} == {n: p.shape for n, p in model.named_parameters()}
    images = make_images(model, 3)
    assert clone(images.to("meta")).shape == run(model, images).shape
    assert_unchanged(model, before)


@pytest.mark.parametrize("name", ["cait_xxs24_224", "xcit_nano_12_p16_224"])
def test_a_class_token_that_joins_after_the_blocks_is_not_looked_for_in_them(name: str) -> None:
    model = timm.create_model(name, embed_dim=32, depth=3, num_heads=2, img_size=32, num_classes=5)
    randomise(model.eval())
    assert read_token_layout(find_backbone(model), [1, 2]) == TokenLayout(0, False, per_image=True, num_tokens=4)
    line = "gate_input 'cls' needs a class token at the FFN, and this model has none: use 'mean'"
    with refused(line, model):
        vimoe.upcycle(model, gate_input="cls")
    images = make_images(model)
    dense = run(model, images)
    torch.testing.assert_close(run(vimoe.upcycle(model), images), dense, rtol=0, atol=1e-5)


def test_a_clone_does_not_run_the_hooks_of_the_model() -> None:
    model = make()
    seen: list[object] = []
    model.blocks[0].register_forward_hook(lambda *_: seen.append(1))
    model.blocks[0].register_forward_pre_hook(lambda *_: seen.append(2))
    vimoe.upcycle(model, num_experts=2)
    vimoe.cost(model)
    assert seen == []
    run(model, make_images(model))
    assert sorted(seen) == [1, 2]


def test_the_input_shape_is_what_the_model_was_made_for() -> None:
    assert input_shape(make(img_size=(48, 32), in_chans=1)) == (1, 48, 32)
    assert input_shape(make("vit_small_patch14_dinov2", img_size=28)) == (3, 28, 28)


def test_a_model_of_any_size_is_asked_for_whole_patches() -> None:
    cfg = {"input_size": (3, 30, 29)}  # as a segmentation recipe notes its crops
    args = {"img_size": 30, "depth": 2, "embed_dim": 32, "num_heads": 2, "dynamic_img_size": True}
    model = timm.create_model("vit_small_patch14_dinov2", pretrained_cfg_overlay=cfg, **args)
    assert input_shape(model) == (3, 42, 42)
    assert vimoe.upcycle(model, routing="token", num_experts=2) is model
    assert vimoe.cost(model).macs > 0


def test_the_input_shape_follows_a_resize() -> None:
    model = make()
    model.set_input_size(img_size=(64, 48))
    assert input_shape(model) == (3, 64, 48)
    assert vimoe.upcycle(model, num_experts=2) is model


def test_a_model_made_from_timm_s_class_without_create_model_is_understood() -> None:
    model = timm.models.VisionTransformer(
        img_size=(16, 8), patch_size=4, in_chans=1, embed_dim=32, depth=2, num_heads=2, num_classes=5
    ).eval()
    images = torch.randn(3, 1, 16, 8)
    dense = run(model, images)
    assert input_shape(model) == (1, 16, 8)
    torch.testing.assert_close(run(vimoe.upcycle(model), images), dense, rtol=0, atol=1e-5)
    assert vimoe.cost(model).macs > 0


class Sparse(nn.Module):
    """An attention and an FFN that stand in a block that turns tokens into an image and back."""

    def __init__(self, block: nn.Module) -> None:
        super().__init__()
        self.attn, self.mlp = block.get_submodule("attn"), block.get_submodule("mlp")

    def forward(self, x: torch.Tensor, **_: object) -> torch.Tensor:
        return x + self.mlp(self.attn(x).unflatten(1, (2, -1))).flatten(1, 2)


def test_ffns_that_see_maps_instead_of_tokens_are_refused() -> None:
    model = make("vit_base_patch16_siglip_224")
    model.blocks[2] = Sparse(model.blocks[2])
    with refused("the FFN of block 2 sees [2, 2, 2, 32], an MoE layer takes [batch, tokens, width]", model):
        vimoe.upcycle(model, last=2)
    assert vimoe.upcycle(model, layers=[0, 1], num_experts=2) is model


class NeedsText(Holder):
    def __init__(self) -> None:
        inner = make()
        super().__init__(nn.Identity())
        self.blocks, self.patch_embed = inner.blocks, inner.patch_embed

    def forward(self, x: torch.Tensor, text: torch.Tensor) -> torch.Tensor:
        return x


def test_a_model_that_does_not_take_a_image_alone_is_refused() -> None:
    model = NeedsText()
    with refused("NeedsText cannot be traced with one image: … missing 1 required positional argument: 'text'", model):
        vimoe.upcycle(model)


class Skips(nn.Module):
    """A block that never calls its FFN."""

    def __init__(self, block: nn.Module) -> None:
        super().__init__()
        self.attn, self.mlp = block.get_submodule("attn"), block.get_submodule("mlp")

    def forward(self, x: torch.Tensor, **_: object) -> torch.Tensor:
        return x


def test_an_ffn_that_sees_nothing_is_refused() -> None:
    model = make()
    model.blocks[2] = Skips(model.blocks[2])
    with refused("the FFN of block 2 sees no input, an MoE layer takes [batch, tokens, width]", model):
        vimoe.upcycle(model)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
def test_the_model_s_dtype_does_not_hinder_reading_its_tokens(dtype: torch.dtype) -> None:
    model = make().to(dtype)
    assert read_token_layout(find_backbone(model), [2]).num_prefix_tokens == 1
    assert vimoe.cost(vimoe.upcycle(model, num_experts=2)).macs > 0
