"""Small segmentation models that the tests of this room share."""

from __future__ import annotations

from typing import Any

import timm
import torch
from torch import nn

import vimoe
from vimoe.tasks.segmenter import Segmenter, build_segmenter

NAMES = ("sky", "tree", "road")


def small_vit(**args: Any) -> nn.Module:
    """Four blocks of width 32 on patches of 8 pixels, made for 32 pixels."""
    settings: dict[str, Any] = {"img_size": 32, "patch_size": 8, "embed_dim": 32, "depth": 4, "num_heads": 2}
    return timm.create_model("vit_tiny_patch16_224", **{**settings, "num_classes": 0, "dynamic_img_size": True, **args})


def small_segmenter(decoder: Any = "linear", last: int = 2, **args: Any) -> Segmenter:
    """An upcycled model of three classes in eval mode, its logits of about unit size, its norms not those of birth."""
    vit = small_vit(**args)
    if last:
        vimoe.upcycle(vit, last=last, num_experts=4, routing="token")
    model = build_segmenter(vit, decoder, len(NAMES), dim=16)
    with torch.no_grad():
        model.decoder.get_submodule("classify").weight.normal_()
        for module in model.decoder.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.running_mean.normal_()
                module.running_var.uniform_(0.5, 2)
    return model.eval()
