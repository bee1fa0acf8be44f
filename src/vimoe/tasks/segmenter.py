"""A segmentation model: a ViT, upcycled or not, and a decoder on its patches."""

import math
from collections.abc import Callable, Sequence
from typing import Any, Literal

from timm.models import group_parameters
from torch import Tensor, nn
from torch.nn import functional as F

from vimoe.errors import UserError
from vimoe.tasks.decoders import LinearDecoder, MultiLevelDecoder
from vimoe.vit.blocks import find_backbone
from vimoe.vit.upcycle import get_config

DecoderName = Literal["linear", "upernet"]
DECODERS = ("linear", "upernet")


class Segmenter(nn.Module):
    """Images of any size to logits of the same size.

    Sizes are rounded up to whole patches with zeros (the mean colour) at the right and the bottom, and the ViT
    interpolates its position embedding to the grid.

    Args:
        backbone: A timm ViT made with `dynamic_img_size=True`.
        decoder: From the features `[B, width, h, w]` of `blocks` to logits `[B, classes, ...]`.
        blocks: Numbers of the blocks whose outputs (normalised as the last one's is) the decoder sees.
    """

    def __init__(self, backbone: Any, decoder: LinearDecoder | MultiLevelDecoder, blocks: Sequence[int]) -> None:
        super().__init__()
        self.backbone = backbone
        self.decoder = decoder
        self.blocks = tuple(blocks)
        self.num_classes = decoder.classify.out_channels
        self.patch_size: tuple[int, int] = tuple(backbone.patch_embed.patch_size)

    def forward(self, images: Tensor) -> Tensor:
        """`[B, C, H, W]` to logits `[B, classes, H, W]`."""
        height, width = images.shape[-2:]
        rows, columns = self.grid(height, width)
        size = rows * self.patch_size[0], columns * self.patch_size[1]
        whole_patches = F.pad(images, (0, size[1] - width, 0, size[0] - height))
        features = self.backbone.forward_intermediates(
            whole_patches, indices=list(self.blocks), norm=True, intermediates_only=True, output_fmt="NCHW"
        )
        logits = F.interpolate(self.decoder(features), size=size, mode="bilinear", align_corners=False)
        return logits[..., :height, :width]

    def grid(self, height: int, width: int) -> tuple[int, int]:
        """Rows and columns of patches of an image."""
        return math.ceil(height / self.patch_size[0]), math.ceil(width / self.patch_size[1])

    def set_grad_checkpointing(self, enable: bool = True) -> None:
        """Let the backbone compute its activations again in the backward; the decoder keeps its own."""
        self.backbone.set_grad_checkpointing(enable)

    def no_weight_decay(self) -> set[str]:
        """Names that timm's optimisers must not decay: the backbone's."""
        return {f"backbone.{name}" for name in self.backbone.no_weight_decay()}

    def group_matcher(self, coarse: bool = False) -> Callable[[str], float]:
        """From a parameter's name to its layer, for timm's layer decay: the backbone's layers, then the decoder."""
        layers = group_parameters(self.backbone, self.backbone.group_matcher(coarse), reverse=True)
        return lambda name: float(layers.get(name.removeprefix("backbone."), math.inf))


def build_segmenter(
    backbone: nn.Module, decoder: DecoderName, num_classes: int, *, blocks: Sequence[int] | None = None, dim: int = 512
) -> Segmenter:
    """Put a decoder on a ViT, which loses its classifier.

    Args:
        backbone: A timm ViT made with `dynamic_img_size=True`, dense or upcycled.
        decoder: `linear` (see `LinearDecoder`) or `upernet` (see `MultiLevelDecoder`).
        blocks: What the decoder sees: one block under `linear`, by default the last; four under `upernet`, by default
            the last of each quarter of the ViT.
        dim: Channels inside the `upernet` decoder.

    Raises UserError if the backbone takes images of one size only, routes whole images, or does not fit the decoder.
    """
    if decoder not in DECODERS:
        raise UserError(f"decoder must be one of {', '.join(DECODERS)}, got {decoder!r}")
    if num_classes < 1:
        raise UserError(f"a segmentation model needs at least one class, got {num_classes}")
    vit: Any = find_backbone(backbone).vit
    check_token_routing(vit)
    if not getattr(vit, "dynamic_img_size", False) or not hasattr(vit, "forward_intermediates"):
        raise UserError(
            f"{type(vit).__name__} takes images of one size only: make it with timm.create_model(..., "
            "dynamic_img_size=True), which vit_*, DeiT, DINOv2, DINOv3, CLIP, SigLIP and EVA know"
        )
    blocks = _checked(blocks, decoder, len(vit.blocks))
    vit.reset_classifier(0, "")
    for name, parameter in vit.named_parameters():
        if name.startswith("fc_norm."):  # the classifier's in some models: it would never get a gradient
            parameter.requires_grad_(False)
    width, linear = vit.embed_dim, decoder == "linear"
    made = LinearDecoder(width, num_classes) if linear else MultiLevelDecoder(width, num_classes, dim)
    return Segmenter(vit, made, blocks)


def check_token_routing(model: nn.Module) -> None:
    """Make sure that MoE layers route patches one by one. Raises UserError if whole images are routed."""
    config = get_config(model)
    if config is not None and config.routing == "image":
        raise UserError(
            "routing 'image' sends all patches of an image to the same experts, whatever they show, so that no "
            "expert can serve a class: use routing 'token' for segmentation"
        )


def _checked(blocks: Sequence[int] | None, decoder: DecoderName, depth: int) -> tuple[int, ...]:
    wanted = 1 if decoder == "linear" else 4
    if depth < wanted:
        raise UserError(f"decoder {decoder!r} needs {wanted} blocks, this model has {depth}")
    if blocks is None:
        return tuple(depth * (i + 1) // wanted - 1 for i in range(wanted))
    if len(set(blocks)) != wanted or sorted(blocks) != list(blocks) or not 0 <= blocks[0] <= blocks[-1] < depth:
        raise UserError(
            f"decoder {decoder!r} takes {wanted} of the blocks 0 to {depth - 1} in ascending order, got {list(blocks)}"
        )
    return tuple(blocks)
