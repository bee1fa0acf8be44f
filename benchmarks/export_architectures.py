"""What an export of each family of ViTs does, as a table in Markdown: how far the files are from the model.

Each is made small (4 blocks), its last two blocks become MoE layers of 4 experts with image routing, and then every
parameter is drawn at random, so that no LayerScale and no norm is left that hides a fault. What cannot be upcycled or
exported is answered with its one line.

    python -m benchmarks.export_architectures
    python -m benchmarks.export_architectures --routing token --only vit_tiny_patch16_224
"""

import argparse
import tempfile
from pathlib import Path
from typing import Any

import timm
import torch
from tests.vit.families import randomise, spread_routing

import vimoe
from vimoe.export.probe_images import noise_images
from vimoe.export.verify import verify
from vimoe.export.write_graph import FORMATS, export_model
from vimoe.vit.blocks import find_backbone
from vimoe.vit.meta import input_shape

VIT: dict[str, Any] = {"embed_dim": 64, "depth": 4, "num_heads": 2}
FAMILIES: dict[str, tuple[str, dict[str, Any]]] = {
    "vit_tiny_patch16_224": ("ViT", VIT),
    "deit_tiny_distilled_patch16_224": ("DeiT, two class tokens", VIT),
    "deit3_small_patch16_224": ("DeiT III, LayerScale", VIT),
    "vit_small_patch14_reg4_dinov2": ("DINOv2 with registers", VIT),
    "vit_giant_patch14_dinov2": ("DINOv2, packed SwiGLU", {**VIT, "embed_dim": 96}),
    "vit_small_patch16_dinov3": ("DINOv3, rotary positions", VIT),
    "vit_base_patch16_clip_224": ("CLIP, QuickGELU", VIT),
    "vit_base_patch16_siglip_224": ("SigLIP, no class token, attention pooling", VIT),
    "beitv2_base_patch16_224": ("BEiT v2, relative positions", VIT),
    "eva02_tiny_patch14_224": ("EVA-02, SwiGLU, rotary positions", VIT),
    "samvit_base_patch16": ("SAM, windows", {**VIT, "window_size": 2, "global_attn_indexes": (1,)}),
    "cait_xxs24_224": ("CaiT", VIT),
    "xcit_nano_12_p16_224": ("XCiT", VIT),
    "swin_tiny_patch4_window7_224": ("Swin", {}),
    "mobilevit_xxs": ("MobileViT", {}),
}


def write_model(name: str, folder: Path, args: dict[str, Any], routing: str) -> None:
    torch.manual_seed(0)
    size = 56 if "patch14" in name else 64
    if args:
        args = {**args, "img_size": size}
    model = vimoe.upcycle(timm.create_model(name, num_classes=10, **args), last=2, num_experts=4, routing=routing)
    randomise(model.eval())
    spread_routing(model, noise_images(input_shape(find_backbone(model).vit), 16))
    vimoe.save(model, folder, model_args=args)


def outcome(folder: Path, kind: str) -> str:
    """The largest difference of a logit over the largest logit, and whether the same experts were chosen."""
    try:
        found = verify(export_model(folder, folder / f"model{FORMATS[kind]}", kind))
    except vimoe.UserError as error:
        return str(error).replace(str(folder), "the folder")
    reached = found.experts - sum(map(len, found.unreached.values()))
    same = "same experts" if not found.other_choices else f"{found.other_choices} other choices"
    faults = f", does not hold {len(found.missing)} weights" if found.missing else ""
    return f"{found.difference:.1e}, {same}, {reached} of {found.experts} reached{faults}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--routing", default="image", choices=("image", "token"))
    parser.add_argument("--only", nargs="+", default=list(FAMILIES), choices=list(FAMILIES), metavar="NAME")
    given = parser.parse_args()
    print("| architecture | timm's name | ONNX | `torch.export` |\n| --- | --- | --- | --- |")
    for name in given.only:
        title, args = FAMILIES[name]
        with tempfile.TemporaryDirectory() as scratch:
            try:
                write_model(name, Path(scratch), args, given.routing)
                cells = [outcome(Path(scratch), kind) for kind in FORMATS]
            except vimoe.UserError as error:
                cells = [f"not upcycled: {str(error).replace(str(scratch), 'the folder')}", "-"]
        print(f"| {title} | `{name}` | {' | '.join(cells)} |", flush=True)


if __name__ == "__main__":
    main()
