"""`vimoe predict`: what a finished model says about images."""

import argparse
import csv
import json
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from vimoe.cli.arguments import Parser, add_view, at_least, chosen_view
from vimoe.errors import UserError

# What is said about an image: a JSON record, and rows of a table.
Answers = Iterator[tuple[dict[str, Any], list[dict[str, Any]]]]


def run(arguments: Sequence[str]) -> None:
    """Print one JSON line or some CSV lines an image, and write masks for a segmentation model."""
    parser = Parser("predict", "Needs the model folder alone. Broken images are named on stderr and left out.")
    parser.value("model", "a run folder or a model folder", type=Path)
    parser.value("images", "image files, folders, or globs in quotes", nargs="+")
    parser.group("output")
    parser.flag("--top-k", "labels for each image", 5, type=at_least(1))
    parser.flag("--format", "JSON lines or CSV", "jsonl", choices=("jsonl", "csv"))
    parser.flag("--output", "the folder for masks and overlays", Path("masks"), type=Path)
    parser.group("run")
    parser.flag("--batch-size", "images at once (classification)", 32, type=at_least(1))
    parser.shared("--workers", "--device")
    add_view(parser)
    args = parser.parse(arguments)
    from tqdm import tqdm

    from vimoe.report.tables import no_formula
    from vimoe.tasks.label_inference import find_images
    from vimoe.tasks.segmenter_folder import holds_segmenter
    from vimoe.vit.model_config import model_folder

    paths, folder = find_images(args.images), model_folder(args.model)
    answered, predict = 0, _masks if holds_segmenter(folder) else _labels
    # No bar among answers that go to the terminal themselves.
    with tqdm(total=len(paths), unit="image", leave=False, disable=sys.stdout.isatty() or None) as bar:

        def broken(line: str) -> None:
            bar.update()
            bar.clear()
            parser.note(line)

        for record, rows in predict(args, folder, paths, broken):
            if args.format == "jsonl":
                print(json.dumps(record), flush=True)
            else:
                writer = csv.DictWriter(sys.stdout, list(rows[0]), lineterminator="\n")
                if not answered:
                    writer.writeheader()
                writer.writerows({key: no_formula(str(value)) for key, value in row.items()} for row in rows)
            answered += 1
            bar.update()
    if not answered:
        raise UserError("none of the images can be read")


def _labels(args: argparse.Namespace, folder: Path, paths: list[Path], broken: Callable[[str], None]) -> Answers:
    """What a classifier says."""
    from vimoe.tasks.label_inference import predict_labels
    from vimoe.training.parallel import pick_device

    workers, device = args.workers if len(paths) > args.batch_size else 0, pick_device(args.device)
    for answer in predict_labels(folder, paths, args.top_k, args.batch_size, device, broken, workers):
        path, labels = str(answer.path), [(label, round(p, 6)) for label, p in answer.labels]
        experts = " ".join(f"{block}:{'+'.join(map(str, ids))}" for block, ids in answer.experts.items())
        yield (
            {
                "path": path,
                "labels": [{"label": label, "probability": p} for label, p in labels],
                "experts": {str(block): ids for block, ids in answer.experts.items()},
            },
            [
                {"path": path, "rank": rank, "label": label, "probability": f"{p:.6f}", "experts": experts}
                for rank, (label, p) in enumerate(labels, 1)
            ],
        )


def _masks(args: argparse.Namespace, folder: Path, paths: list[Path], broken: Callable[[str], None]) -> Answers:
    """The shares of the classes; masks and overlays are written."""
    from vimoe.files import write_bytes
    from vimoe.tasks.mask_inference import default_view, predict_masks
    from vimoe.training.parallel import pick_device

    view, names = chosen_view(args, default_view(folder)), _distinct(paths)
    workers, device = args.workers if len(paths) > 1 else 0, pick_device(args.device)
    for answer in predict_masks(folder, paths, view, device, broken, workers):
        mask, overlay = (args.output / f"{names[answer.path]}{end}.png" for end in ("", ".overlay"))
        write_bytes(mask, answer.mask)
        write_bytes(overlay, answer.overlay)
        files = {"path": str(answer.path), "mask": str(mask)}
        shares = {name: round(share, 6) for name, share in answer.shares.items()}
        yield (
            {**files, "overlay": str(overlay), "shares": shares},
            [{**files, "class": name, "share": f"{share:.6f}"} for name, share in shares.items()],
        )


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
