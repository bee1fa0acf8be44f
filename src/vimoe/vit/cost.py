"""What a model costs, counted on the model itself: parameters and multiply-adds for one image."""

from typing import Any, NamedTuple

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from vimoe.errors import UserError, first_line
from vimoe.moe.layer import MoELayer
from vimoe.vit.blocks import find_backbone, moe_layers
from vimoe.vit.ensemble import members_of
from vimoe.vit.meta import height_and_width, input_shape, meta_clone


class Cost(NamedTuple):
    """The cost of a model for one image.

    Attributes:
        stored_params: All parameters.
        activated_params: Parameters that take part for one image (or token): k of the N experts of each layer. Where
            experts have a capacity or slots, the mean over an image's tokens, at the most.
        macs: Multiply-adds of the matrix products of one forward, with as many experts.
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

    Raises UserError if the model cannot take images of this size.

    >>> model = timm.create_model("vit_tiny_patch16_224", num_classes=1000)
    >>> dense, moe = vimoe.cost(model), vimoe.cost(vimoe.upcycle(model, last=2, num_experts=8))
    >>> f"{dense.stored_params / 1e6:.1f} M, {moe.stored_params / 1e6:.1f} M, {moe.activated_params / 1e6:.1f} M"
    '5.7 M, 10.5 M, 6.3 M'
    """
    if len(members := members_of(model)) > 1:
        return Cost(*map(sum, zip(*(cost(member, image_size) for member in members), strict=True)))
    layers, idle = moe_layers(model).values(), 0
    stored = sum(parameter.numel() for parameter in model.parameters())
    macs, tokens = _count_macs(model, image_size)
    for layer, number in zip(layers, tokens, strict=True):
        per_expert = sum(parameter.numel() for parameter in layer.experts.parameters()) // layer.experts.num_experts
        used = min(layer.router.assignments(number) / number, layer.experts.num_experts)
        idle += round((layer.experts.num_experts - used) * per_expert)
    return Cost(stored, stored - idle, macs)


def _count_macs(model: nn.Module, image_size: int | tuple[int, int] | None) -> tuple[int, list[int]]:
    """Multiply-adds for one image, and its tokens in each MoE layer."""
    clone = meta_clone(model)
    vit: Any = find_backbone(clone).vit
    channels, *made_for = input_shape(vit)
    size = tuple(made_for) if image_size is None else height_and_width("image_size", image_size)
    rows, tokens = dict[nn.Module, int](), dict[nn.Module, int]()
    layers = [module for module in clone.modules() if isinstance(module, MoELayer)]
    for layer in layers:
        layer.register_forward_pre_hook(lambda layer, given: tokens.__setitem__(layer, given[0].shape[1]))
        layer.experts.register_forward_pre_hook(
            lambda experts, given: rows.__setitem__(experts, given[0].shape[0] * given[0].shape[1])
        )
    try:
        if size != tuple(made_for) and not getattr(vit, "dynamic_img_size", False):
            vit.set_input_size(img_size=size)
        with torch.no_grad(), FlopCounterMode(display=False) as counter:
            clone(torch.empty(1, channels, *size, device="meta"))
    except (RuntimeError, TypeError, ValueError, AssertionError, AttributeError) as error:
        raise UserError(
            f"cannot count an image of {size[0]}x{size[1]} pixels in this model: {first_line(error)}"
        ) from error
    flops, by_module = counter.get_total_flops(), counter.get_flop_counts()
    for name, module in clone.named_modules():
        if isinstance(module, MoELayer):
            # The dense form computes every expert for every row.
            for_all = sum(by_module[f"{type(clone).__name__}.{name}.experts"].values())
            brought = rows[module.experts]
            each = for_all // (module.experts.num_experts * brought)
            flops -= for_all - each * module.router.assignments(brought)
    return flops // 2, [tokens[layer] for layer in layers]


def millions(count: int) -> str:
    """A count in millions, three figures of it."""
    value = count / 1e6
    return f"{value:.{1 if value >= 10 else 2 if value >= 1 else 3}f} M"


def giga_macs(macs: int) -> str:
    """Multiply-adds in units of 10^9, or 10^6 for small models."""
    return f"{macs / 1e9:.2f} GMAC" if macs >= 1e8 else f"{macs / 1e6:.{1 if macs >= 1e7 else 2}f} MMAC"
