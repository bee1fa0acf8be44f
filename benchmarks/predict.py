"""How fast `vimoe predict` answers for a folder of images, against its model alone on images that are decoded already.

    python benchmarks/predict.py IMAGES --workers 1                       # one core for the model, one to decode
    python benchmarks/predict.py IMAGES --device cuda --workers 8 --model vit_small_patch16_224 --images 4096

The model is an upcycled ViT with random weights. In every round the whole of `predict` (loading the model folder,
decoding, answering), the model alone, and decoding alone by as many workers take turns; ratios are of the same round.
"""

import argparse
import tempfile
from functools import partial
from pathlib import Path

import timm
import torch

import vimoe
from vimoe.data.decode import read_image
from vimoe.data.images import ImageFiles, labelled
from vimoe.data.loaders import batches
from vimoe.data.transforms import evaluation_transform
from vimoe.export.latency import quartiles, take_turns
from vimoe.tasks.classification import evaluating
from vimoe.tasks.label_inference import find_images, predict_labels
from vimoe.tasks.model import model_form


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", metavar="IMAGES", help="a folder of images")
    parser.add_argument("--images", type=int, default=512, help="how many of them")
    parser.add_argument("--model", default="vit_tiny_patch16_224")
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--workers", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--device", default="cpu")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    torch.manual_seed(0)
    paths = find_images([args.data])[: args.images]
    with tempfile.TemporaryDirectory() as scratch:
        vimoe.save(vimoe.upcycle(timm.create_model(args.model, num_classes=10), last=2, num_experts=8), scratch)
        folder = Path(scratch)
        model = vimoe.load(folder, args.device)
        files = ImageFiles(
            [(path, 0) for path in paths], partial(labelled, read_image), evaluation_transform(model_form(folder))
        )
        decoded = [images for images, _ in batches(files, args.batch, args.workers, print)]

        def forward() -> None:
            with evaluating(model):
                for images in decoded:
                    model(images.to(args.device)).argmax(-1).cpu()

        taken = take_turns(
            {
                "model alone": forward,
                "decoding alone": lambda: list(batches(files, args.batch, args.workers, print)),
                "predict": lambda: list(
                    predict_labels(folder, paths, 5, args.batch, args.device, print, workers=args.workers)
                ),
            },
            args.rounds,
            args.device,
            warmups=1,
        )
    print(f"{args.model}, {len(paths)} images, {args.threads} threads and {args.workers} workers, {args.device}")
    alone = taken["model alone"].seconds
    for name, latency in taken.items():
        ratios = [a / b for a, b in zip(latency.seconds, alone, strict=True)]
        low, high = quartiles(ratios)
        speed = len(paths) / latency.median
        print(
            f"{name:15} {speed:7.1f} images/s, time {latency.over(taken['model alone']):.2f} ({low:.2f} to {high:.2f})"
        )


if __name__ == "__main__":
    main()
