"""Small instances of every family of ViTs that can be upcycled, and what else the tests of this room share."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import pytest
import timm
import torch
from timm.models import get_model_input_config
from torch import Tensor, nn

from vimoe import UserError
from vimoe.vit.blocks import moe_layers
from vimoe.vit.upcycle import get_config

DEPTH = 3
SMALL: dict[str, Any] = {"embed_dim": 32, "depth": DEPTH, "num_heads": 2, "num_classes": 5}


@dataclass(frozen=True)
class Family:
    """A timm name, the arguments that make it small, and what its FFNs see."""

    name: str
    prefix: int = 1
    class_token: bool = True
    args: dict[str, Any] = field(default_factory=dict)

    def make(self, **args: Any) -> nn.Module:
        size = 28 if "patch14" in self.name else 32
        model = timm.create_model(self.name, **{**SMALL, "img_size": size, **self.args, **args})
        randomise(model)
        return model.eval()


FAMILIES = [
    Family("vit_tiny_patch16_224"),
    Family("vit_small_patch14_dinov2"),
    Family("vit_small_patch14_reg4_dinov2", prefix=5),
    Family("vit_giant_patch14_dinov2"),
    Family("vit_small_patch16_dinov3", prefix=5),
    Family("vit_small_plus_patch16_dinov3", prefix=5),
    Family("deit3_small_patch16_224"),
    Family("deit_tiny_distilled_patch16_224", prefix=2),
    Family("vit_base_patch16_clip_224"),
    Family("vit_base_patch16_siglip_224", prefix=0, class_token=False),
    Family("beit_base_patch16_224"),
    Family("beitv2_base_patch16_224"),
    Family("eva_giant_patch14_224"),
    Family("eva02_tiny_patch14_224"),
    Family("eva02_base_patch14_224"),
    Family(
        "samvit_base_patch16",
        prefix=0,
        class_token=False,
        args={"img_size": 64, "window_size": 2, "global_attn_indexes": (1,)},
    ),
    Family("vit_base_patch16_rope_reg1_gap_256", class_token=False),
    Family("vit_so150m_patch16_reg4_gap_256", prefix=4, class_token=False),
]
BY_NAME = {family.name: family for family in FAMILIES}

every_family = pytest.mark.parametrize("family", FAMILIES, ids=lambda family: family.name)
every_routing = pytest.mark.parametrize("routing", ["image", "token"])
shared_or_not = pytest.mark.parametrize("shared_expert", [True, False], ids=["shared", "unshared"])


class Holder(nn.Module):
    """What DDP and the tasks are to a ViT: a module that holds it."""

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.module = module

    def forward(self, x: Tensor) -> Tensor:
        return self.module(x)


def make(name: str = "vit_tiny_patch16_224", **args: Any) -> nn.Module:
    """A small model by its timm name."""
    return BY_NAME[name].make(**args)


def randomise(model: nn.Module) -> None:
    """Give every parameter a value that shows: no LayerScale of 1e-5, no norm of 1, no bias of 0."""
    with torch.no_grad():
        for parameter in model.parameters():
            fan_in = parameter[0].numel() if parameter.ndim > 1 else 1
            parameter.normal_(std=fan_in**-0.5)


@torch.no_grad()
def spread_routing(model: nn.Module, images: Tensor) -> None:
    """Turn the routers away from what all inputs have in common, so that their choices differ."""
    for layer in moe_layers(model).values():
        seen: list[Tensor] = []
        handle = layer.router.register_forward_pre_hook(lambda _, inputs, seen=seen: seen.append(inputs[0]))
        model(images)
        handle.remove()
        mean = seen[0].flatten(0, -2).mean(0)
        layer.router.weight -= torch.outer(layer.router.weight @ mean, mean) / mean.dot(mean)


def make_images(model: nn.Module, count: int = 4) -> Tensor:
    """Noise of the shape that the model was made for."""
    return torch.randn(count, *get_model_input_config(model)["input_size"])


@torch.no_grad()
def run(model: nn.Module, images: Tensor) -> Tensor:
    """The model's output, without a graph."""
    return model(images)


def snapshot(model: nn.Module) -> dict[str, Any]:
    """What must not change when a call is refused."""
    return {
        "state": {name: value.detach().clone() for name, value in model.state_dict().items()},
        "modules": [(name, type(module), module.training) for name, module in model.named_modules()],
        "config": get_config(model),
        "attributes": [sorted(module.__dict__) for module in model.modules()],
        "hooks": [
            (len(module._forward_hooks), len(module._forward_pre_hooks), len(module._backward_hooks))
            for module in model.modules()
        ],
    }


def assert_unchanged(model: nn.Module, before: dict[str, Any]) -> None:
    after = snapshot(model)
    assert_same_state(after.pop("state"), before["state"])
    assert after == {key: value for key, value in before.items() if key != "state"}


def assert_same_state(one: dict[str, Tensor], other: dict[str, Tensor]) -> None:
    """The same names in the same order, dtypes, shapes and bits."""
    assert list(one) == list(other)
    for name, value in one.items():
        assert value.dtype == other[name].dtype, name
        assert value.shape == other[name].shape, name
        assert value.is_meta or torch.equal(value, other[name]), name


@contextmanager
def refused(line: str, model: nn.Module | None = None) -> Iterator[None]:
    """Expect a `UserError` of exactly this one line (… stands for any text) that leaves `model` as it was."""
    before = snapshot(model) if model is not None else None
    pattern = re.escape(line).replace("…", ".+")
    with pytest.raises(UserError, match=rf"\A{pattern}\Z"):
        yield
    if model is not None and before is not None:
        assert_unchanged(model, before)
