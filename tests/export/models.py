"""Small model folders with experts that differ, for export."""

from pathlib import Path

import timm
import torch
from torch import nn

import vimoe
from vimoe.tasks.segmenter import build_segmenter
from vimoe.tasks.segmenter_folder import save_segmenter
from vimoe.vit.blocks import moe_layers

SIZE = 32


def differing(model: nn.Module, seed: int = 0) -> nn.Module:
    """Experts that answer differently and routers that choose clearly."""
    generator = torch.Generator().manual_seed(seed)
    for layer in moe_layers(model).values():
        with torch.no_grad():
            for parameter in layer.experts.parameters():
                parameter += 0.1 * torch.randn(parameter.shape, generator=generator)
            layer.router.weight.normal_(generator=generator)
    return model


def vit(name: str = "vit_tiny_patch16_224", classes: int = 5, **args: object) -> nn.Module:
    """A small ViT of three blocks from scratch."""
    torch.manual_seed(0)
    model: nn.Module = timm.create_model(name, num_classes=classes, **{"img_size": SIZE, "depth": 3, **args})
    return model.eval()


def write_classifier(folder: Path, name: str = "vit_tiny_patch16_224", **upcycling: object) -> Path:
    """A classifier's folder; `upcycling` are arguments of `vimoe.upcycle`, none for a dense model."""
    model = vit(name)
    if upcycling:
        differing(vimoe.upcycle(model, **{"last": 2, "num_experts": 3, **upcycling}))  # type: ignore[arg-type]
    vimoe.save(model, folder, model_args={"img_size": SIZE, "depth": 3}, extra={"label_names": list("abcde")})
    return folder


def write_segmenter(folder: Path, decoder: str = "linear") -> Path:
    """A segmentation model's folder: images of 40 pixels, which are no whole patches of 16."""
    model = vit(depth=4, dynamic_img_size=True, img_size=48, pretrained_cfg_overlay={"input_size": (3, 40, 40)})
    differing(vimoe.upcycle(model, last=2, num_experts=3, routing="token"))
    save_segmenter(build_segmenter(model, decoder, 4, dim=16).eval(), folder, list("abcd"))  # type: ignore[arg-type]
    return folder
