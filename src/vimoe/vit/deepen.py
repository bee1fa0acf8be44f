"""A control of equal size: a dense model whose additional parameters are blocks (LLaMA Pro, Wu et al. 2024)."""

import copy
from collections.abc import Sequence
from typing import Any, TypeVar

import torch
from timm.models.vision_transformer import Block
from torch import nn

from vimoe.errors import UserError
from vimoe.vit.blocks import find_backbone
from vimoe.vit.changes import note_change
from vimoe.vit.widen import check_two_maps, resize_hidden

Model = TypeVar("Model", bound=nn.Module)


def deepen(model: Model, after: Sequence[int], hidden: int) -> Model:
    """Insert new blocks, in place, without changing the function.

    A new block is a copy of the one before it, with so many hidden units in its FFN; the last maps of its attention and
    its FFN are 0, so that it adds nothing until it has learned something.

    Args:
        model: A dense timm ViT of plain blocks, or a module that holds one.
        after: Blocks from 0 behind which one is inserted, in ascending order; one that stands there twice gets two.
        hidden: Hidden units of the new blocks' FFNs.

    Raises UserError if the blocks are not plain ones. The model is then unchanged.
    """
    vit = find_backbone(model).vit
    check_plain_blocks(vit, "deepened")
    blocks = list(vit.get_submodule("blocks").children())
    for block in blocks:
        check_two_maps(block.get_submodule("mlp"), "deepened")
    deeper = list[nn.Module]()
    for number, block in enumerate(blocks):
        deeper += [block, *(_idle_copy(block, hidden) for _ in range(list(after).count(number)))]
    vit.blocks = nn.Sequential(*deeper) if isinstance(vit.blocks, nn.Sequential) else nn.ModuleList(deeper)
    note_change(vit, "vimoe_deepened", {"after": list(after), "hidden": hidden})
    return model


def blocks_to_add(model: nn.Module, ffns: float, last: int) -> tuple[list[int], int]:
    """Where among the `last` blocks to insert how wide ones (see `deepen`), so that they are as large as so many FFNs.

    The new blocks are as many as come nearest to the old ones' size, and stand as far apart as they can.

    Raises UserError if a block's attention and norms alone are larger than that, or the blocks are not plain.
    """
    check_plain_blocks(find_backbone(model).vit, "deepened")
    blocks = find_backbone(model).blocks
    check_two_maps(blocks[-1].get_submodule("mlp"), "deepened")
    whole = sum(p.numel() for p in blocks[-1].parameters())
    first: Any = blocks[-1].get_submodule("mlp.fc1")
    unit = 2 * first.in_features + (first.bias is not None)
    params = ffns * first.out_features * unit
    number = max(1, round(params / whole))
    hidden = round((params / number - whole + first.out_features * unit) / unit)
    if hidden < 1:
        raise UserError(
            f"{round(params)} parameters are too few for a block of this model, whose attention and norms alone have "
            f"{whole - first.out_features * unit}: take more MoE layers, or baseline wide"
        )
    return [len(blocks) - 1 - (i * last) // number for i in reversed(range(number))], hidden


def check_plain_blocks(vit: nn.Module, change: str) -> None:
    """Raise a `UserError` where a block is not timm's plain one: norm, attention, norm, FFN."""
    for block in vit.get_submodule("blocks").children() if "blocks" in vit._modules else [vit]:
        if not isinstance(block, Block):
            raise UserError(f"{type(block).__name__}s cannot be {change}: only timm's plain blocks can")


def _idle_copy(block: nn.Module, hidden: int) -> nn.Module:
    new = copy.deepcopy(block)
    resize_hidden(new.get_submodule("mlp"), hidden)
    with torch.no_grad():
        for path in ("attn.proj", "mlp.fc2"):
            for parameter in new.get_submodule(path).parameters():
                parameter.zero_()
    return new
