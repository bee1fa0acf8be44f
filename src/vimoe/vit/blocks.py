"""Where a model's blocks, FFNs and MoE layers are: found by structure, not by a list of names."""

from typing import NamedTuple

from torch import nn

from vimoe.errors import UserError
from vimoe.moe.layer import MoELayer, moe_modules

SUPPORTED = "plain timm ViTs: vit_*, DINOv2, DINOv3, DeiT, CLIP and SigLIP image towers, BEiT, EVA; or transformers'"
# What timm calls a ViT's blocks and their attention, and what transformers does.
BLOCKS = ("blocks", "layers", "layer")
ATTENTION = ("attn", "attention", "self_attn")


class Backbone(NamedTuple):
    """The ViT inside a model (or the model itself), which turns images into tokens, and its transformer blocks.

    Each of these, from the first to the last, has an attention and `mlp`.
    """

    vit: nn.Module
    blocks: list[nn.Module]


def find_backbone(model: nn.Module) -> Backbone:
    """Find the one sequence of transformer blocks that have an FFN of their own, in a ViT or what holds one.

    The ViT is timm's or transformers'. Blocks that see no patches, such as a text tower's, are not looked at.

    Raises UserError if there is none, or more than one, or it does not start from patches.
    """
    found = [
        Backbone(vit, list(child.children()))
        for path, owner in model.named_modules()
        for name, child in owner.named_children()
        if name in BLOCKS
        and isinstance(child, nn.ModuleList | nn.Sequential)
        and _are_blocks(list(child.children()))
        and (vit := owner if name == "blocks" else _with_embeddings(model, path)) is not None
    ]
    kind = type(model).__name__
    if not found:
        raise UserError(
            f"{kind} has no blocks with an FFN of their own to replace{_why(model)}; supported are {SUPPORTED}"
        )
    if len(found) > 1:
        raise UserError(f"{kind} has {len(found)} separate stages of blocks; supported are {SUPPORTED}")
    if not hasattr(found[0].vit, "patch_embed") and patch_projection(found[0].vit) is None:
        raise UserError(f"{kind} does not cut its images into patches itself; supported are {SUPPORTED}")
    return found[0]


def patch_projection(vit: nn.Module) -> nn.Conv2d | None:
    """What cuts images into patches in transformers' `embeddings`; None where there is none."""
    embeddings = vit._modules.get("embeddings")
    found = [module for module in embeddings.modules() if isinstance(module, nn.Conv2d)] if embeddings else []
    return found[0] if len(found) == 1 else None


def _with_embeddings(model: nn.Module, path: str) -> nn.Module | None:
    """The nearest module around `path` that turns images into tokens as transformers' ViTs do."""
    parts = path.split(".") if path else []
    around = (model.get_submodule(".".join(parts[:depth])) for depth in range(len(parts), -1, -1))
    return next((module for module in around if patch_projection(module) is not None), None)


def _are_blocks(children: list[nn.Module]) -> bool:
    return bool(children) and all(
        any(isinstance(getattr(block, name, None), nn.Module) for name in ATTENTION)
        and isinstance(getattr(block, "mlp", None), nn.Module)
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
