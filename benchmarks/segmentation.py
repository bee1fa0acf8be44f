"""What a segmentation ViMoE costs: a training step against a dense model, and sliding-window evaluation.

The ViMoE has N experts and a shared one in its last block, token routing and the linear decoder; the dense model's FFN
of that block is as wide as the shared and the chosen expert together, so that both activate the same multiply-adds
(the router's come on top). Every round runs each once, in turn; the ratio is that of the same round.

    python benchmarks/segmentation.py                          # a small ViT on the CPU
    python benchmarks/segmentation.py --device cuda --model vit_small_patch14_dinov2 --size 518 --batch 16 --dtype bf16
    python benchmarks/segmentation.py --windows --side 1024    # images a second and peak memory
"""

from __future__ import annotations

import argparse
import platform
import resource
import statistics
import time
from typing import Any

import timm
import torch
from timm.layers import Mlp
from torch import nn

import vimoe
from vimoe.export.latency import quartiles
from vimoe.tasks.segmentation import Segmentation
from vimoe.tasks.segmenter import build_segmenter
from vimoe.tasks.windows import View, probabilities
from vimoe.vit.blocks import moe_layers
from vimoe.vit.cost import cost

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}
CLASSES = 150


def segmenter(args: Any, kind: str) -> nn.Module:
    """`dense` (widened in the last block) or `vimoe`."""
    torch.manual_seed(0)
    vit = timm.create_model(args.model, num_classes=0, img_size=args.size, dynamic_img_size=True)
    if kind == "vimoe":
        vimoe.upcycle(vit, last=1, num_experts=args.num_experts, routing="token")
    else:
        vit.blocks[-1].mlp = Mlp(vit.embed_dim, 2 * vit.blocks[-1].mlp.fc1.out_features)
    return build_segmenter(vit, args.decoder, CLASSES).to(args.device)


def clock(device: str) -> float:
    if device == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter()


def step(model: nn.Module, optimizer: torch.optim.Optimizer, images: Any, masks: Any, args: Any) -> float:
    """Seconds of forward, loss (with the balance loss where there is one), backward and update."""
    start = clock(args.device)
    with torch.autocast(args.device, DTYPES[args.dtype], enabled=args.dtype != "fp32"):
        loss = Segmentation(CLASSES).loss(model(images), masks)
        if moe_layers(model):
            loss = loss + 0.01 * vimoe.balance_loss(model)
    loss.backward()
    optimizer.step()
    optimizer.zero_grad()
    return clock(args.device) - start


def training_steps(args: Any) -> None:
    models = {kind: segmenter(args, kind).train() for kind in ("dense", "vimoe")}
    optimizers = {kind: torch.optim.AdamW(model.parameters(), 1e-4, fused=True) for kind, model in models.items()}
    images = torch.randn(args.batch, 3, args.size, args.size, device=args.device)
    masks = torch.randint(0, CLASSES, (args.batch, args.size, args.size), device=args.device)
    seconds: dict[str, list[float]] = {kind: [] for kind in models}
    for _ in range(args.rounds + 2):
        for kind, model in models.items():
            seconds[kind].append(step(model, optimizers[kind], images, masks, args))
    seconds = {kind: values[2:] for kind, values in seconds.items()}
    for kind, model in models.items():
        macs = cost(model, args.size).macs / 1e9
        ratio = [a / b for a, b in zip(seconds[kind], seconds["dense"], strict=True)]
        low, high = quartiles(ratio)
        print(
            f"{kind:6} {macs:8.3f} GMAC an image {1000 * statistics.median(seconds[kind]):9.1f} ms a step  "
            f"ratio {statistics.median(ratio):.3f} ({low:.3f} to {high:.3f})"
        )


def windows(args: Any) -> None:
    image = torch.randn(1, 3, args.side, args.side, device=args.device)
    model = segmenter(args, "vimoe").eval()
    for batch in args.window_batches:
        view = View(window=args.size, stride=args.size * 2 // 3, batch=batch)
        if args.device == "cuda":
            torch.cuda.reset_peak_memory_stats()
        seconds = []
        with torch.no_grad(), torch.autocast(args.device, DTYPES[args.dtype], enabled=args.dtype != "fp32"):
            for _ in range(args.rounds + 1):
                start = clock(args.device)
                probabilities(model, image, view).argmax(1)
                seconds.append(clock(args.device) - start)
        peak = torch.cuda.max_memory_allocated() / 2**20 if args.device == "cuda" else whole_process_peak()
        speed = 1 / statistics.median(seconds[1:])
        print(
            f"{args.side} px, windows of {args.size} in batches of {batch}: {speed:.2f} images/s, {peak:.0f} MiB peak"
        )


def whole_process_peak() -> float:
    """MiB; it only grows, so start the benchmark once for each batch to compare them on a CPU."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def parse(arguments: list[str] | None = None) -> Any:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--model", default="vit_tiny_patch16_224")
    parser.add_argument("--decoder", choices=("linear", "upernet"), default="linear")
    parser.add_argument("--dtype", choices=DTYPES, default="fp32")
    parser.add_argument("--size", type=int, default=224, help="pixels of a training crop and of a window")
    parser.add_argument("--batch", type=int, default=4)
    parser.add_argument("--num-experts", type=int, default=8)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--windows", action="store_true", help="sliding-window evaluation instead of training steps")
    parser.add_argument("--side", type=int, default=1024, help="pixels of the evaluated image")
    parser.add_argument("--window-batches", type=int, nargs="+", default=[8])
    return parser.parse_args(arguments)


if __name__ == "__main__":
    arguments = parse()
    device = torch.cuda.get_device_name() if arguments.device == "cuda" else platform.processor() or platform.machine()
    print(
        f"{device}, {torch.get_num_threads()} threads, torch {torch.__version__}, {arguments.model}, {arguments.dtype}"
    )
    (windows if arguments.windows else training_steps)(arguments)
