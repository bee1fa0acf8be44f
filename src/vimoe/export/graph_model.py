"""A finished model in the form that a graph can hold: one image size, fixed shapes, the chosen experts as an output."""

from typing import Any, Literal

import torch
from torch import Tensor, nn

from vimoe.errors import UserError, first_line
from vimoe.moe.router import Selection
from vimoe.tasks.segmenter import Segmenter
from vimoe.vit.blocks import find_backbone, moe_layers
from vimoe.vit.upcycle import get_config

Precision = Literal["fp32", "fp16"]
DTYPES = {"fp32": torch.float32, "fp16": torch.float16}


class GraphModel(nn.Module):
    """What `torch.export` sees of a finished model.

    The experts are computed in fixed shapes: `gathered` under image routing (as sparse as in training), `dense` under
    token routing (every expert for every token).

    Args:
        model: A classifier or a `Segmenter`; it is changed, so give a copy that nobody else needs.
        image_size: Height and width of the images that the graph takes.
        precision: `fp32`, or `fp16` for weights and arithmetic; images and logits are fp32 either way, and so is the
            router.

    Raises UserError if the model cannot take images of this size, or its MoE layers choose different numbers of
    experts.
    """

    def __init__(self, model: nn.Module, image_size: tuple[int, int], precision: Precision = "fp32") -> None:
        super().__init__()
        fix_image_size(model, image_size)
        self.dtype = DTYPES[precision]
        self.model = model.to(self.dtype).eval()
        layers = moe_layers(model)
        config = get_config(model)
        if config is not None and config.router != "top_k":
            raise UserError(f"a model with router {config.router!r} cannot be exported: only top_k can")
        if len({layer.router.top_k for layer in layers.values()}) > 1:
            raise UserError(
                "the MoE layers of this model choose different numbers of experts: no one output holds them"
            )
        self.moe_blocks = tuple(layers)
        self._chosen: list[Tensor] = []
        for layer in layers.values():
            layer.experts.backend = "dense" if layer.routing == "token" else "gathered"
            layer.router.register_forward_hook(self._note)

    def _note(self, _router: nn.Module, _inputs: object, selection: Selection) -> None:
        self._chosen.append(selection.expert_ids)

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        """Logits and, where there are MoE layers, the chosen experts, of fp32 images normalised as in training.

        From `[B, C, H, W]` to fp32 logits `[B, classes]` (or `[B, classes, H, W]`), and `expert_ids` int64:
        `[B, L, k]` under image routing, `[B, L, T, k]` under token routing, L the MoE layers from first to last.
        """
        self._chosen = []
        logits = self.model(images.to(self.dtype)).float()
        if not self._chosen:
            return (logits,)
        per_layer = [
            ids if ids.shape[0] == images.shape[0] else ids.unflatten(0, (images.shape[0], -1)) for ids in self._chosen
        ]
        return logits, torch.stack(per_layer, 1)


def fix_image_size(model: nn.Module, image_size: tuple[int, int]) -> None:
    """Resample the position embedding once, in place: a graph would do it in every forward, and ONNX another way.

    Raises UserError if the ViT cannot take images of this size.
    """
    vit: Any = find_backbone(model).vit
    height, width = image_size
    if isinstance(model, Segmenter):
        rows, columns = model.grid(height, width)
        height, width = rows * model.patch_size[0], columns * model.patch_size[1]
    try:
        if tuple(vit.patch_embed.img_size or ()) != (height, width):
            vit.set_input_size(img_size=(height, width))
    except (AttributeError, AssertionError, RuntimeError, TypeError, ValueError) as error:
        raise UserError(f"this model cannot take images of {height}x{width}: {first_line(error)}") from error
    if getattr(vit, "dynamic_img_size", False):
        vit.dynamic_img_size = False
        vit.patch_embed.flatten = True  # tokens, as the fixed form of the ViT expects them
        vit.patch_embed.strict_img_size = True
        if getattr(vit, "rope", None) is not None:
            vit.rope = _FixedRotation(vit.rope.get_embed(shape=vit.patch_embed.grid_size))


class _FixedRotation(nn.Module):
    """timm's rotary position embedding for one grid."""

    def __init__(self, embed: Tensor) -> None:
        super().__init__()
        self.feat_shape = None  # timm looks for the attribute
        self.register_buffer("embed", embed.detach(), persistent=False)

    def get_embed(self, shape: object = None) -> Tensor:
        return self.get_buffer("embed")
