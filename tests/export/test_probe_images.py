from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

import vimoe
from tests.export.models import SIZE, differing, vit
from vimoe.export.probe_images import NOISE_IMAGES, noise_images, probe_images
from vimoe.vit.blocks import moe_layers

SHAPE = (3, SIZE, SIZE)
NARROW = {"embed_dim": 64, "num_heads": 2}


def unreached(model: nn.Module, images: Tensor) -> dict[int, list[int]]:
    with torch.no_grad(), vimoe.record_routing(model) as record:
        model(images)
    experts = {block: set(range(layer.experts.num_experts)) for block, layer in moe_layers(model).items()}
    return {block: sorted(experts[block] - set(ids.flatten().tolist())) for block, ids in record.expert_ids.items()}


def shrink(model: nn.Module) -> None:
    """Logits that hardly differ, as those of a class token that hardly sees the image."""
    for layer in moe_layers(model).values():
        layer.router.weight *= 1e-3


def tilt(model: nn.Module) -> None:
    """A bias against every other expert."""
    for layer in moe_layers(model).values():
        assert layer.router.bias is not None
        layer.router.bias[::2] -= 0.5


def nothing(model: nn.Module) -> None:
    """As it is."""


@pytest.mark.parametrize(
    ("num_experts", "change", "settings"),
    [
        (12, nothing, {}),
        (12, shrink, {}),
        (12, shrink, {"top_k": 2}),
        (64, nothing, {"routing": "token"}),
        (12, tilt, {"balance": "bias"}),
    ],
)
def test_experts_that_no_noise_reaches_get_images_made_for_them(
    num_experts: int, change: Callable[[nn.Module], None], settings: dict[str, object]
) -> None:
    model = differing(vimoe.upcycle(vit(**NARROW), last=2, num_experts=num_experts, **settings))  # type: ignore[arg-type]
    with torch.no_grad():
        change(model)
    missing = unreached(model, noise_images(SHAPE, NOISE_IMAGES))
    assert any(missing.values())
    images = probe_images(model, SHAPE)
    assert unreached(model, images) == {1: [], 2: []}
    assert NOISE_IMAGES < len(images) <= NOISE_IMAGES + sum(map(len, missing.values()))


def test_an_expert_that_nothing_reaches_gets_no_image() -> None:
    model = differing(vimoe.upcycle(vit(), last=1, num_experts=3))
    layer = moe_layers(model)[2]
    layer.router.register_forward_hook(
        lambda _m, _i, chosen: chosen._replace(expert_ids=chosen.expert_ids.clamp(max=1), logits=chosen.logits - 9)
    )
    images = probe_images(model, SHAPE, steps=3)
    assert unreached(model, images) == {2: [2]}
    assert len(images) == NOISE_IMAGES
