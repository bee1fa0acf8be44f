"""Vision Transformers whose weights are set by hand, so that what each MoE layer is worth is known.

An image shows three one-hot codes in its channels: four marks (0 to 3), two styles (4, 5) and a coin (6, 7). Blocks
add what their FFN answers and nothing else; the head reads the answer dimensions 8 to 11.
"""

from __future__ import annotations

from collections.abc import Sequence

import timm
import torch
from torch import Tensor, nn

import vimoe
from vimoe.moe.layer import MoELayer
from vimoe.vit.blocks import moe_layers

MARK, STYLE, COIN, ANSWER = 0, 4, 6, 8
WIDTH, NAMES = 16, ("a", "b", "c", "d")


def codes(images: int) -> tuple[Tensor, Tensor, Tensor]:
    """Mark, style and coin of each image, all combinations equally often."""
    numbers = torch.arange(images)
    return numbers % 4, numbers // 4 % 2, numbers // 8 % 2


def show(mark: Tensor, style: Tensor, coin: Tensor) -> Tensor:
    """`[N, 8, 8, 8]` images of these codes."""
    hot = [nn.functional.one_hot(code, size) for code, size in ((mark, 4), (style, 2), (coin, 2))]
    return torch.cat(hot, dim=1).float()[:, :, None, None].expand(-1, -1, 8, 8).contiguous()


@torch.no_grad()
def blank(layers: Sequence[int], depth: int = 3, experts: int = 4, **settings: object) -> nn.Module:
    """A model whose blocks add nothing, with MoE layers in these; its head reads the answer dimensions."""
    model = timm.create_model(
        "vit_tiny_patch16_224",
        img_size=8,
        patch_size=4,
        in_chans=8,
        embed_dim=WIDTH,
        depth=depth,
        num_heads=1,
        mlp_ratio=1,
        num_classes=4,
        class_token=False,
        global_pool="avg",
        fc_norm=False,
        act_layer=nn.ReLU,
    )
    for parameter in model.parameters():
        parameter.zero_()
    for i in range(ANSWER):
        model.patch_embed.proj.weight[i, i] = 1 / 16
    for i in range(4):
        model.head.weight[i, ANSWER + i] = 1
    model.norm = nn.Identity()
    for block in model.blocks:
        block.norm1 = block.norm2 = nn.Identity()
    vimoe.upcycle(model, layers=list(layers), num_experts=experts, **{"shared_expert": False, **settings})
    return model.eval()


@torch.no_grad()
def route_by(layer: MoELayer, first: int, experts: int) -> None:
    """Send the code that starts at this dimension to the expert of its number."""
    layer.router.weight.zero_()
    for e in range(experts):
        layer.router.weight[e, first + e] = 5.0


@torch.no_grad()
def copy_code(layer: MoELayer, expert: int, turn: int, size: float = 1.0) -> None:
    """Let an expert write the mark, turned by this much, into the answer."""
    for mark in range(4):
        layer.experts.fc1.weight[expert, mark, MARK + mark] = 1
        layer.experts.fc2.weight[expert, ANSWER + (mark + turn) % 4, mark] = size


def layer_of(model: nn.Module, number: int) -> MoELayer:
    return moe_layers(model)[number]


@torch.no_grad()
def say(layer: MoELayer, expert: int, answer: int, size: float = 1.0) -> None:
    """Let an expert answer this class whatever it sees."""
    layer.experts.fc2.bias[expert, ANSWER + answer] = size
