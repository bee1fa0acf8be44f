"""Running a model without its weights: what shapes flow through it, at no cost in memory or arithmetic."""

import copy
from collections.abc import Sequence
from numbers import Integral
from typing import Any, NamedTuple

import torch
from timm.models import get_model_input_config
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from vimoe.errors import UserError, first_line
from vimoe.vit.blocks import Backbone, find_backbone, patch_projection


class TokenLayout(NamedTuple):
    """What the FFNs of a ViT see."""

    num_prefix_tokens: int  # tokens before the patches (class token, registers)
    has_class_token: bool  # whether the first of them is a class token
    per_image: bool  # whether the batch axis holds images (rather than windows of images)
    num_tokens: int  # how many there are in all, for images of the size that the model was made for


def meta_clone(model: nn.Module) -> nn.Module:
    """A copy of `model` on the meta device, in fp32 and eval mode; never copies the weights, never runs its hooks."""
    if isinstance(model, DistributedDataParallel):  # a copy of it would want gradients to reduce
        model = model.module
    memo: dict[int, Any] = {}
    for parameter in model.parameters():
        memo[id(parameter)] = nn.Parameter(parameter.detach().to("meta"), requires_grad=False)
    for buffer in model.buffers():
        memo[id(buffer)] = buffer.detach().to("meta")
    clone = copy.deepcopy(model, memo).to("meta", torch.float32).eval()
    for module in clone.modules():
        module._forward_pre_hooks.clear()
        module._forward_hooks.clear()
    return clone


def input_shape(vit: nn.Module) -> tuple[int, int, int]:
    """Channels, height and width that a ViT was made for, in whole patches where it takes any size."""
    if patch_projection(vit) is not None:
        config: Any = vit.config
        return config.num_channels, *height_and_width("image_size", config.image_size)
    channels, height, width = get_model_input_config(vit)["input_size"]
    if not getattr(vit, "pretrained_cfg", None):  # made from timm's class and not by timm.create_model
        height, width = getattr(vit.patch_embed, "img_size", None) or (height, width)
    if getattr(vit, "dynamic_img_size", False):
        rows, columns = vit.patch_embed.patch_size  # type: ignore[union-attr,misc]
        height, width = height + -height % rows, width + -width % columns
    return channels, height, width


def height_and_width(name: str, size: Any) -> tuple[int, int]:
    """Pixels of an image from one number or two. Raises UserError with `name` if it is neither, or not positive."""
    pair = tuple(size) if isinstance(size, list | tuple) else (size, size)
    if len(pair) != 2 or any(not isinstance(n, Integral) or isinstance(n, bool) or n < 1 for n in pair):
        raise UserError(f"{name} must be one or two positive whole numbers, got {size!r}")
    return int(pair[0]), int(pair[1])


def read_token_layout(backbone: Backbone, layers: Sequence[int]) -> TokenLayout:
    """Send two weightless images through the ViT and look at what reaches the FFNs of `layers`.

    Raises UserError if the FFNs do not see `[batch, tokens, width]`, or the model does not take an image alone.
    """
    vit = backbone.vit
    seen: dict[int, Sequence[int]] = {}
    clone = meta_clone(vit)
    blocks = find_backbone(clone).blocks
    for layer in layers:
        ffn = blocks[layer].get_submodule("mlp")
        ffn.register_forward_pre_hook(lambda _, inputs, layer=layer: seen.__setitem__(layer, inputs[0].shape))
    forward = getattr(clone, "forward_features", clone)
    try:
        with torch.no_grad():
            forward(torch.empty(2, *input_shape(vit), device="meta"))
    except (RuntimeError, TypeError, ValueError, AssertionError, NotImplementedError) as error:
        raise UserError(f"{type(vit).__name__} cannot be traced with one image: {first_line(error)}") from error
    for layer in layers:
        if len(shape := seen.get(layer, ())) != 3:
            what = list(shape) or "no input"
            raise UserError(f"the FFN of block {layer} sees {what}, an MoE layer takes [batch, tokens, width]")
    shape = seen[layers[0]]
    per_image = all(shape[0] == 2 for shape in seen.values())
    if (projection := patch_projection(vit)) is not None:
        _, height, width = input_shape(vit)
        prefix = shape[1] - (height // projection.stride[0]) * (width // projection.stride[1])
        tokens = (getattr(vit.embeddings, name, None) for name in ("cls_token", "class_embedding"))
        return TokenLayout(prefix, any(isinstance(token, Tensor) for token in tokens), per_image, shape[1])
    prefix = int(getattr(vit, "num_prefix_tokens", 0) or 0)
    if shape[1] == getattr(vit.patch_embed, "num_patches", None):
        prefix = 0  # the class token joins after these blocks (CaiT, XCiT)
    has_class_token = prefix > 0 and isinstance(getattr(vit, "cls_token", None), Tensor)
    return TokenLayout(prefix, has_class_token, per_image, shape[1])
