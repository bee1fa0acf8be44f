"""What the training command costs: against timm's pieces in a bare loop, and a ViMoE against a dense model.

Three comparisons of speed, each between contenders that take turns in every round; ratios are of the same round.

    python benchmarks/training.py --data-dir IMAGES      # the command against a bare loop on the same images
    python benchmarks/training.py --steps                  # a step of a ViMoE against a dense model of equal MACs
    python benchmarks/training.py --memory                 # peak memory after 100 and after 1,100 steps
    python benchmarks/training.py --loaders                # an epoch of 80 images: workers kept, or spawned anew

IMAGES holds train/CLASS and val/CLASS, on a CPU a few hundred images: all are shown once a round. On a GPU add
`--device cuda --model vit_small_patch14_dinov2 --amp`.
"""

from __future__ import annotations

import argparse
import platform
import shutil
import statistics
import tempfile
import time
from dataclasses import replace
from functools import partial
from pathlib import Path

import timm
import torch
from PIL import Image
from timm.data import create_dataset, create_loader
from timm.optim import create_optimizer_v2
from timm.scheduler import create_scheduler_v2
from torch import nn
from torch.nn import functional as F

import vimoe
from vimoe.data import loaders
from vimoe.data.decode import read_image
from vimoe.data.images import ImageFiles, labelled
from vimoe.data.loaders import training_batches
from vimoe.data.transforms import Augmentation, ImageForm, training_transform
from vimoe.export.latency import quartiles
from vimoe.training.fit import train
from vimoe.training.parallel import pick_device
from vimoe.training.progress import peak_memory_mb
from vimoe.training.recipe import Recipe
from vimoe.vit.cost import cost
from vimoe.vit.widen import widen


def command(recipe: Recipe) -> dict[str, float]:
    """One epoch of `vimoe train`: its own figures, and the seconds of the whole."""
    shutil.rmtree(recipe.output, ignore_errors=True)
    started = time.perf_counter()
    row = train(recipe).read_rows()[-1]
    return {**row, "whole": time.perf_counter() - started}


def bare_loop(recipe: Recipe) -> dict[str, float]:
    """The same epoch of the same model by timm's own pieces, nothing kept, nothing watched."""
    started = time.perf_counter()
    device = pick_device(recipe.device)
    size = (3, recipe.img_size, recipe.img_size)
    sets = [create_dataset("", recipe.data_dir, split=split) for split in ("train", "val")]
    model = timm.create_model(recipe.model, img_size=recipe.img_size, num_classes=len(sets[0].reader.class_to_idx))
    wanted = {key: model.pretrained_cfg[key] for key in ("mean", "std", "interpolation")}
    common = {"use_prefetcher": False, "num_workers": recipe.workers, **wanted}
    loader = create_loader(
        sets[0],
        size,
        recipe.batch_size,
        is_training=True,
        scale=(recipe.scale, 1.0),
        color_jitter=recipe.color_jitter,
        **common,
    )
    held = create_loader(sets[1], size, 256, **common)
    model.to(device).train()
    optimizer = create_optimizer_v2(model, opt=recipe.opt, lr=recipe.lr, weight_decay=recipe.weight_decay)
    schedule, _ = create_scheduler_v2(optimizer, num_epochs=1, step_on_epochs=False, updates_per_epoch=len(loader))
    amp = torch.autocast(device.split(":")[0], torch.bfloat16, enabled=recipe.amp)
    seen, trained = 0, time.perf_counter()
    for step, (images, labels) in enumerate(loader):
        with amp:
            loss = F.cross_entropy(model(images.to(device)).float(), labels.to(device), label_smoothing=0.1)
        if not loss.isfinite():
            raise SystemExit("the loss is not finite")
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), recipe.clip_grad)
        schedule.step_update(step)
        optimizer.step()
        optimizer.zero_grad()
        seen += len(labels)
    speed = seen / (time.perf_counter() - trained)
    model.eval()
    right = 0
    with torch.no_grad():
        for images, labels in held:
            right += int((model(images.to(device)).argmax(-1).cpu() == labels).sum())
    return {"images_per_second": speed, "whole": time.perf_counter() - started}


def against_a_bare_loop(args: argparse.Namespace) -> None:
    """Images a second of the command over those of the bare loop."""
    if args.data_dir is None:
        raise SystemExit("name a folder of images with --data-dir")
    with tempfile.TemporaryDirectory() as scratch:
        recipe = Recipe(
            dataset="folder",
            data_dir=args.data_dir,
            img_size=args.size,
            model=args.model,
            epochs=1,
            warmup_epochs=0.0,
            batch_size=args.batch,
            workers=args.workers,
            amp=args.amp,
            device=args.device,
            output=str(Path(scratch) / "run"),
        )
        ratios, wholes = [], []
        for _ in range(args.rounds):
            loop, ours = bare_loop(recipe), command(recipe)
            ratios.append(ours["images_per_second"] / loop["images_per_second"])
            wholes.append(loop["whole"] / ours["whole"])
            print(
                f"bare loop {loop['images_per_second']:.1f} images/s, vimoe train "
                f"{ours['images_per_second']:.1f}, waiting for data {ours['data_wait']:.1%}, "
                f"peak {ours['memory_mb']:.0f} MB",
                flush=True,
            )
    print(f"training: {_told(ratios)} of the bare loop's speed; with evaluation and writing: {_told(wholes)}")


def step(model: nn.Module, optimizer: torch.optim.Optimizer, args: argparse.Namespace, balance: bool) -> float:
    """Seconds of one training step on noise."""
    device = torch.device(args.device)
    images = torch.randn(args.batch, 3, args.size, args.size, device=device)
    labels = torch.arange(args.batch, device=device) % 10
    if device.type == "cuda":
        torch.cuda.synchronize()
    started = time.perf_counter()
    with torch.autocast(device.type, torch.bfloat16, enabled=args.amp):
        loss = F.cross_entropy(model(images).float(), labels)
        if balance:
            loss = loss + 0.01 * vimoe.balance_loss(model)
    loss.backward()
    optimizer.step()
    optimizer.zero_grad()
    if device.type == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - started


def vimoe_against_dense(args: argparse.Namespace) -> None:
    """Speed of a ViMoE (N = 8, L = 2, shared expert) over that of a dense model as wide as what it activates."""

    def model() -> nn.Module:
        torch.manual_seed(0)
        return timm.create_model(args.model, img_size=args.size, num_classes=10).to(args.device).train()

    depth = len(model().blocks)
    contenders = [
        (widen(model(), [depth - 2, depth - 1], 2).to(args.device), False),
        (vimoe.upcycle(model(), 2, num_experts=8).to(args.device), True),
    ]
    dense, moe = (cost(m, args.size).macs for m, _ in contenders)
    print(f"multiply-adds an image: dense {dense / 1e9:.3f} G, ViMoE {moe / 1e9:.3f} G")
    runs = [(m, torch.optim.AdamW(m.parameters(), lr=1e-4, fused=True), balance) for m, balance in contenders]
    for run in runs:
        step(run[0], run[1], args, run[2])
    ratios = []
    for _ in range(args.rounds):
        seconds = [step(m, optimizer, args, balance) for m, optimizer, balance in runs]
        ratios.append(seconds[0] / seconds[1])
    print(f"a ViMoE trains at {_told(ratios)} of the dense model's speed")


def memory(args: argparse.Namespace) -> None:
    """Peak memory of a run of the embedded digits after 100 and after 1,100 steps."""
    with tempfile.TemporaryDirectory() as scratch:
        base = Recipe(
            model_args={"patch_size": 2, "embed_dim": 64, "depth": 4, "num_heads": 4},
            last=2,
            batch_size=96,
            epochs=9,
            device=args.device,
            output=f"{scratch}/short",
        )
        train(base)
        before = peak_memory_mb()
        train(replace(base, epochs=100, output=f"{scratch}/long"))
        print(f"peak {before:.0f} MB after 99 steps, {peak_memory_mb():.0f} MB after 1,100 more")


def workers_kept_or_spawned(args: argparse.Namespace) -> None:
    """Seconds of an epoch of 80 images of 32 pixels by workers that are kept, and by some that are spawned for it."""
    kept, spawned = list[float](), list[float]()
    with tempfile.TemporaryDirectory() as scratch:
        files = [Path(scratch) / f"{i}.png" for i in range(80)]
        for file in files:
            Image.new("RGB", (32, 32)).save(file)
        transform = training_transform(ImageForm((3, 32, 32), (0.5,) * 3, (0.5,) * 3), Augmentation())
        images = ImageFiles([(file, 0) for file in files], partial(labelled, read_image), transform)
        forked = loaders._CONTEXT
        for epoch in range(args.rounds + 1):
            others = ImageFiles(images.samples, images.read, images.transform)  # for which no worker waits
            for part, context, seconds in ((images, forked, kept), (others, "spawn", spawned)):
                loaders._CONTEXT = context
                started = time.perf_counter()
                list(training_batches(part, args.batch, 0, epoch, workers=args.workers))
                seconds.append(time.perf_counter() - started)
    print(
        f"the first epoch takes {kept[0]:.2f} s and the next ones {statistics.median(kept[1:]):.2f} s by the same "
        f"workers, {statistics.median(spawned):.2f} s by spawned ones"
    )


def _told(ratios: list[float]) -> str:
    low, high = quartiles(ratios)
    return f"{statistics.median(ratios):.3f} ({low:.3f} to {high:.3f})"


def main() -> None:
    """Run the comparison that the flags ask for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", action="store_true")
    parser.add_argument("--memory", action="store_true")
    parser.add_argument("--loaders", action="store_true")
    parser.add_argument("--data-dir")
    parser.add_argument("--model", default="vit_tiny_patch16_224")
    parser.add_argument("--size", type=int, default=224)
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int)
    parser.add_argument("--amp", action="store_true")
    parser.add_argument("--device", default="cpu")
    args = parser.parse_args()
    if args.threads:
        torch.set_num_threads(args.threads)
    print(f"torch {torch.__version__}, timm {timm.__version__}, {platform.machine()}, {args.model}")
    if args.steps:
        vimoe_against_dense(args)
    elif args.memory:
        memory(args)
    elif args.loaders:
        workers_kept_or_spawned(args)
    else:
        against_a_bare_loop(args)


if __name__ == "__main__":
    main()
