"""Where a model's blocks, FFNs and MoE layers are: found by structure, not by a list of names."""

from typing import NamedTuple

from torch import nn

from vimoe.errors import UserError
from vimoe.moe.layer import MoELayer, moe_modules

SUPPORTED = "plain timm ViTs: vit_*, DINOv2, DINOv3, DeiT, CLIP and SigLIP image towers, BEiT, EVA"


class Backbone(NamedTuple):
    """The ViT inside a model (or the model itself), which turns images into tokens, and its transformer blocks.

    Each of these, from the first to the last, has `attn` and `mlp`.
    """

    vit: nn.Module
    blocks: list[nn.Module]


def find_backbone(model: nn.Module) -> Backbone:
    """Find the one sequence of transformer blocks that have an FFN of their own, in a timm ViT or what holds one.

    Raises UserError if there is none, or more than one, or it does not start from patches.
    """
    found = [
        Backbone(owner, list(child.children()))
        for _, owner in model.named_modules()
        for name, child in owner.named_children()
        if name == "blocks" and isinstance(child, nn.ModuleList | nn.Sequential) and _are_blocks(list(child.children()))
    ]
    kind = type(model).__name__
    if not found:
        raise UserError(
            f"{kind} has no blocks with an FFN of their own to replace{_why(model)}; supported are {SUPPORTED}"
        )
    if len(found) > 1:
        raise UserError(f"{kind} has {len(found)} separate stages of blocks; supported are {SUPPORTED}")
    if not hasattr(found[0].vit, "patch_embed"):
        raise UserError(f"{kind} does not cut its images into patches itself; supported are {SUPPORTED}")
    return found[0]


def _are_blocks(children: list[nn.Module]) -> bool:
    return bool(children) and all(
        isinstance(getattr(block, "attn", None), nn.Module) and isinstance(getattr(block, "mlp", None), nn.Module)
        for block in children
    )


def _why(model: nn.Module) -> str:
    blocks = getattr(model, "blocks", None)
    if not isinstance(blocks, nn.ModuleList | nn.Sequential) or not len(blocks):
        return ""
    return f" (its blocks are {type(next(iter(blocks.children()))).__name__}s)"


def moe_layers(model: nn.Module) -> dict[int, MoELayer]:
    """The MoE layers of a model by block number, in order; also inside wrappers such as DDP.

    A layer that does not stand in a numbered block counts by its position among the MoE layers.
    """
    layers: dict[int, MoELayer] = {}
    for name, layer in moe_modules(model).items():
        numbers = [int(part) for part in name.split(".") if part.isdigit()]
        layers[numbers[-1] if numbers else len(layers)] = layer
    return layers
