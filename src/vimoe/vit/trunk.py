"""A ViT cut in two: the trunk turns images into tokens, the tail takes those tokens from one of its blocks on."""

import copy
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from vimoe.vit.blocks import find_backbone
from vimoe.vit.meta import input_shape, meta_clone

# B images, T tokens, D width.


def trunk_features(model: nn.Module, images: Tensor, cut: int) -> Tensor:
    """What the blocks from number `cut` on would get: `[B, C, H, W]` images to `[B, T, D]` tokens.

    The model is a ViT in eval mode; `cut` may be the number of its blocks, for what its head gets.
    """
    end = _Keep()
    vit = find_backbone(model).vit
    _with_blocks(vit, [*[*vit.get_submodule("blocks").children()][:cut], end])(images)
    assert end.tokens is not None
    return end.tokens


def trunk_macs(model: nn.Module, cut: int) -> int:
    """Multiply-adds of the trunk for one image, counted as `cost` counts the model's; the few of its head included."""
    clone = meta_clone(model)
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        trunk_features(clone, torch.empty(1, *input_shape(find_backbone(clone).vit), device="meta"), cut)
    return counter.get_total_flops() // 2


def tail(model: nn.Module, cut: int) -> nn.Module:
    """The same ViT from block `cut` on: a module that takes `[B, T, D]` tokens in any float dtype.

    It shares all parameters with the model, so that what the one learns the other knows.
    """
    vit = find_backbone(model).vit
    embed, begin = copy.copy(vit.get_submodule("patch_embed")), _Begin()
    like = next(embed.parameters())
    with torch.no_grad():
        blank = embed(torch.zeros(1, *input_shape(vit), dtype=like.dtype, device=like.device))
    # What comes before the blocks runs on blank patches and is thrown away: a few additions.
    embed.__dict__["forward"] = partial(_blank, begin=begin, patches=torch.zeros_like(blank))
    rest = _with_blocks(vit, [begin, *[*vit.get_submodule("blocks").children()][cut:]])
    rest._modules["patch_embed"] = embed
    return rest


def trunk_state(model: nn.Module, cut: int) -> dict[str, Tensor]:
    """Parameters and buffers of the trunk by name: all that what reaches block `cut` depends on."""
    vit = find_backbone(model).vit
    children = list(vit._modules)
    before = (*children[: children.index("blocks")], *(f"blocks.{number}" for number in range(cut)))
    named = {**dict(vit.named_parameters()), **dict(vit.named_buffers())}
    return {
        name: value
        for name, value in named.items()
        if "." not in name or name.startswith(tuple(f"{b}." for b in before))
    }


def _with_blocks(vit: nn.Module, blocks: list[nn.Module]) -> nn.Module:
    """The same module, parameters and all, with other blocks."""
    kind: Any = type(vit.blocks)
    other = copy.copy(vit)
    other.__dict__["_modules"] = dict(vit._modules)
    other._modules["blocks"] = kind(blocks) if issubclass(kind, nn.ModuleList) else kind(*blocks)
    return other


def _blank(tokens: Tensor, begin: "_Begin", patches: Tensor) -> Tensor:
    begin.tokens = tokens
    return patches.expand(len(tokens), *patches.shape[1:])


class _Begin(nn.Module):
    """Stands before the first block of a tail: hands on the tokens that the tail was given."""

    tokens: Tensor | None = None

    def forward(self, blank: Tensor, *_args: Any, **_keywords: Any) -> Tensor:
        tokens, self.tokens = self.tokens, None
        assert tokens is not None
        return tokens.to(blank.dtype)


class _Keep(nn.Module):
    """Stands behind the last block of a trunk: keeps what comes out of it."""

    tokens: Tensor | None = None

    def forward(self, tokens: Tensor, *_args: Any, **_keywords: Any) -> Tensor:
        self.tokens = tokens
        return tokens
