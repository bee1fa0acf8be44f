"""What a model costs, counted on the model itself: parameters and multiply-adds for one image."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from vimoe.errors import UserError, first_line
from vimoe.moe.layer import MoELayer
from vimoe.vit.blocks import find_backbone, moe_layers
from vimoe.vit.meta import input_shape, meta_clone


class Cost(NamedTuple):
    """The cost of a model for one image.

    Attributes:
        stored_params: All parameters.
        activated_params: Parameters that take part for one image (or token): k of the N experts of each layer.
        macs: Multiply-adds of the matrix products of one forward, k of the N experts counted.
    """

    stored_params: int
    activated_params: int
    macs: int


def cost(model: nn.Module, image_size: int | tuple[int, int] | None = None) -> Cost:
    """Count parameters and multiply-adds, without running the model for real.

    The papers of the field call multiply-adds "FLOPs"; a FLOP counter gives twice this number.

    Args:
        model: A timm ViT, dense or upcycled, or a module that holds one.
        image_size: Height and width in pixels; by default what the model was made for.

    Raises:
        UserError: The model cannot take images of this size.
    """
    stored = sum(parameter.numel() for parameter in model.parameters())
    idle = 0
    for layer in moe_layers(model).values():
        per_expert = sum(parameter.numel() for parameter in layer.experts.parameters()) // layer.experts.num_experts
        idle += (layer.experts.num_experts - layer.router.top_k) * per_expert
    return Cost(stored, stored - idle, _count_macs(model, image_size))


def _count_macs(model: nn.Module, image_size: int | tuple[int, int] | None) -> int:
    clone = meta_clone(model)
    vit: Any = find_backbone(clone).vit
    channels, *made_for = input_shape(vit)
    size = made_for if image_size is None else _height_and_width(image_size)
    try:
        if size != made_for and not getattr(vit, "dynamic_img_size", False):
            vit.set_input_size(img_size=tuple(size))
        with torch.no_grad(), FlopCounterMode(display=False) as counter:
            clone(torch.empty(1, channels, *size, device="meta"))
    except (RuntimeError, TypeError, ValueError, AssertionError, AttributeError) as error:
        raise UserError(
            f"cannot count an image of {size[0]}x{size[1]} pixels in this model: {first_line(error)}"
        ) from error
    flops, by_module = counter.get_total_flops(), counter.get_flop_counts()
    for name, module in clone.named_modules():
        if isinstance(module, MoELayer):
            # The dense form computes every expert, of which k count.
            experts = module.experts
            for_all = sum(by_module[f"{type(clone).__name__}.{name}.experts"].values())
            flops -= for_all // experts.num_experts * (experts.num_experts - module.router.top_k)
    return flops // 2


def _height_and_width(image_size: Any) -> list[int]:
    size = list(image_size) if isinstance(image_size, list | tuple) else [image_size, image_size]
    if len(size) != 2 or any(type(pixels) is not int or pixels < 1 for pixels in size):
        raise UserError(f"image_size must be one or two positive whole numbers, got {image_size!r}")
    return size
