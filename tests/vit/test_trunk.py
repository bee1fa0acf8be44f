"""A ViT cut in two gives what the whole one gives."""

import pytest
import timm
import torch
from torch import nn

import vimoe
from vimoe.vit.cost import cost
from vimoe.vit.trunk import tail, trunk_features, trunk_macs

SMALL = {"embed_dim": 32, "depth": 3, "num_heads": 2, "num_classes": 5}
MODELS = {
    "vit_tiny_patch16_224": {"img_size": 32, "patch_size": 8},
    "vit_small_patch14_reg4_dinov2": {"img_size": 28},  # registers
    "vit_small_patch16_dinov3": {"img_size": 32},  # rotary positions
    "beit_base_patch16_224": {"img_size": 32},  # relative positions
    "vit_base_patch16_siglip_224": {"img_size": 32},  # attention pooling
}


@pytest.fixture(params=MODELS)
def model(request: pytest.FixtureRequest) -> nn.Module:
    torch.manual_seed(0)
    return timm.create_model(request.param, **SMALL, **MODELS[request.param]).eval()


def images_for(model: nn.Module) -> torch.Tensor:
    return torch.randn(4, 3, *model.patch_embed.img_size)


@pytest.mark.parametrize("cut", [1, 2, 3])
def test_trunk_and_tail_are_the_whole_model_and_leave_it_as_it_was(model: nn.Module, cut: int) -> None:
    images = images_for(model)
    with torch.no_grad():
        whole = model(images)
        features = trunk_features(model, images, cut)
        assert torch.equal(tail(model, cut)(features), whole)
        assert torch.equal(model(images), whole)
    assert features.ndim == 3
    assert len(model.blocks) == 3


def test_a_tail_with_moe_layers_learns_what_the_whole_model_would(model: nn.Module) -> None:
    vimoe.upcycle(model, layers=[2], shared_expert=False)
    model.train()
    images = images_for(model)
    whole = model(images).square().mean() + 0.01 * vimoe.balance_loss(model)
    learning = [parameter for name, parameter in model.named_parameters() if name.startswith("blocks.2")]
    expected = torch.autograd.grad(whole, learning)
    with torch.no_grad():
        features = trunk_features(model, images, 2)
    (tail(model, 2)(features).square().mean() + 0.01 * vimoe.balance_loss(model)).backward()
    for parameter, gradient in zip(learning, expected, strict=True):
        torch.testing.assert_close(parameter.grad, gradient)
    assert model.patch_embed.proj.weight.grad is None


def test_half_precision_tokens_are_brought_to_the_weights_dtype(model: nn.Module) -> None:
    with torch.no_grad():
        features = trunk_features(model, images_for(model), 1)
        rounded = tail(model, 1)(features.half())
    assert rounded.dtype == torch.float32
    assert torch.equal(rounded, tail(model, 1)(features.half().float()))


def test_the_trunks_multiply_adds_grow_by_a_block_up_to_the_models() -> None:
    model = timm.create_model("vit_tiny_patch16_224", **SMALL, **MODELS["vit_tiny_patch16_224"])
    macs = [trunk_macs(model, cut) for cut in range(4)]
    assert macs[3] - macs[2] == macs[2] - macs[1] == macs[1] - macs[0] > 0
    assert macs[3] == cost(model).macs
