"""`vimoe predict`: what a finished model says about images."""

from __future__ import annotations

import argparse
import csv
import json
import sys
from collections.abc import Sequence
from pathlib import Path

from vimoe.cli.arguments import Parser, add_view, at_least, chosen_view
from vimoe.errors import UserError


def run(arguments: Sequence[str]) -> None:
    """Print one JSON or CSV line an image, write masks for a segmentation model; broken images are told."""
    parser = Parser("predict", "Needs the model folder alone. Broken images are named on stderr and left out.")
    parser.value("model", "a run folder or a model folder", type=Path)
    parser.value("images", "image files, folders, or globs in quotes", nargs="+")
    parser.group("output")
    parser.flag("--top-k", "labels for each image", 5, type=at_least(1))
    parser.flag("--format", "JSON lines or CSV", "jsonl", choices=("jsonl", "csv"))
    parser.flag("--output", "the folder for masks and overlays", Path("masks"), type=Path)
    parser.group("run")
    parser.flag("--batch-size", "images at once (classification)", 32, type=at_least(1))
    parser.shared("--device")
    add_view(parser)
    args = parser.parse(arguments)
    from vimoe.tasks.inference import find_images, model_folder
    from vimoe.tasks.segmenter_folder import holds_segmenter

    paths = find_images(args.images)
    of_pixels = holds_segmenter(model_folder(args.model))
    if not (_masks if of_pixels else _labels)(args, paths, parser):
        raise UserError("none of the images can be read")


def _labels(args: argparse.Namespace, paths: list[Path], parser: Parser) -> int:
    """Print what a classifier says; gives the number of images."""
    from vimoe.tasks.inference import predict
    from vimoe.training.parallel import pick_device

    writer = csv.writer(sys.stdout, lineterminator="\n")
    told = 0
    for answer in predict(args.model, paths, args.top_k, args.batch_size, pick_device(args.device), parser.note):
        if args.format == "jsonl":
            record = {
                "path": str(answer.path),
                "labels": [{"label": label, "probability": round(p, 6)} for label, p in answer.labels],
                "experts": {str(block): ids for block, ids in answer.experts.items()},
            }
            print(json.dumps(record, ensure_ascii=False), flush=True)
        else:
            if not told:
                writer.writerow(["path", "rank", "label", "probability", "experts"])
            experts = " ".join(f"{block}:{'+'.join(map(str, ids))}" for block, ids in answer.experts.items())
            for rank, (label, p) in enumerate(answer.labels, 1):
                writer.writerow([answer.path, rank, label, f"{p:.6f}", experts])
        told += 1
    return told


def _masks(args: argparse.Namespace, paths: list[Path], parser: Parser) -> int:
    """Write masks and overlays and print the shares of the classes; gives the number of images."""
    from vimoe.files import write_bytes
    from vimoe.tasks.mask_inference import default_view, predict_masks
    from vimoe.training.parallel import pick_device

    view = chosen_view(args, default_view(args.model))
    writer = csv.writer(sys.stdout, lineterminator="\n")
    names = _distinct(paths)
    told = 0
    for answer in predict_masks(args.model, paths, view, pick_device(args.device), parser.note):
        mask, overlay = (args.output / f"{names[answer.path]}{end}.png" for end in ("", ".overlay"))
        write_bytes(mask, answer.mask)
        write_bytes(overlay, answer.overlay)
        if args.format == "jsonl":
            shares = {name: round(share, 6) for name, share in answer.shares.items()}
            record = {"path": str(answer.path), "mask": str(mask), "overlay": str(overlay), "shares": shares}
            print(json.dumps(record, ensure_ascii=False), flush=True)
        else:
            if not told:
                writer.writerow(["path", "mask", "class", "share"])
            for name, share in answer.shares.items():
                writer.writerow([answer.path, mask, name, f"{share:.6f}"])
        told += 1
    return told


def _distinct(paths: list[Path]) -> dict[Path, str]:
    """A file name for each image's mask: its own, numbered where several images share it."""
    names, taken = dict[Path, str](), set[str]()
    for path in paths:
        name, number = path.stem, 1
        while name in taken:
            number += 1
            name = f"{path.stem}-{number}"
        taken.add(name)
        names[path] = name
    return names
