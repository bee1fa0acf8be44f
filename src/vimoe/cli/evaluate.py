"""`vimoe evaluate`: a finished model on labelled images, from its folder alone."""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from vimoe.cli.arguments import Parser, add_view, chosen_view, mapping
from vimoe.errors import UserError


def run(arguments: Sequence[str]) -> None:
    """Print the metrics; with --json and --csv, write them."""
    parser = Parser("evaluate", "Prints overall metrics and a table by class.")
    parser.value("model", "a run folder or a model folder", type=Path)
    parser.group("data")
    parser.flag(
        "--dataset",
        "folder or ade20k (default: as the model's task), digits, glyphs, digit_scenes, or a name of timm's",
    )
    parser.flag("--dataset-args", "arguments of glyphs, such as '{test_family: serif}'", type=mapping)
    parser.shared("--data-dir")
    parser.flag("--split", "train, val, test, or a split's own name", "test")
    parser.group("output")
    parser.flag("--json", "write all metrics to this file", type=Path)
    parser.flag("--csv", "write the table by class to this file", type=Path)
    parser.group("run")
    parser.shared("--batch-size", "--workers", "--device")
    add_view(parser)
    args = parser.parse(arguments)
    from vimoe.files import write_text
    from vimoe.report.tables import Table, metrics_table
    from vimoe.tasks.inference import model_folder
    from vimoe.tasks.segmenter_folder import holds_segmenter

    of_pixels = holds_segmenter(model_folder(args.model))
    metrics, header, rows, broken = (_pixels if of_pixels else _images)(args)
    for line in broken:
        parser.note(line)
    if not metrics["images"]:
        raise UserError("none of the images can be read")
    cells = [[name, str(count), *(f"{value:.1f}" for value in values)] for name, count, *values in rows]
    table = Table(header, cells)
    print(f"{metrics_table(metrics)}\n\n{table.text()}")
    if args.json:
        by_class = [dict(zip(("class", *header[1:]), row, strict=True)) for row in rows]
        told = {**metrics, "broken": len(broken), "classes": by_class}
        write_text(args.json, json.dumps(told, indent=2, ensure_ascii=False) + "\n")
    if args.csv:
        write_text(args.csv, table.csv())


Told = tuple[dict[str, float], tuple[str, ...], list[tuple[Any, ...]], list[str]]


def _images(args: argparse.Namespace) -> Told:
    """Metrics, header and rows of the table by class, and lines on broken images, of a classifier."""
    from vimoe.tasks.inference import evaluate_folder
    from vimoe.training.parallel import pick_device

    device, dataset = pick_device(args.device), args.dataset or "folder"
    role, names = _role(args.split)
    result = evaluate_folder(
        args.model,
        dataset,
        args.data_dir,
        role,
        args.batch_size,
        args.workers,
        device,
        names,
        args.dataset_args,
    )
    rows = zip(result.class_names, result.metrics.per_class(), strict=True)
    table = [(name, images, top1) for name, (images, top1) in rows]
    return result.metrics.summary(), ("class", "images", "top-1 %"), table, result.broken


def _pixels(args: argparse.Namespace) -> Told:
    """The same of a segmentation model."""
    from vimoe.data.registry import open_masks
    from vimoe.tasks.mask_inference import default_view, evaluate_masks
    from vimoe.training.parallel import pick_device

    if args.dataset_args:
        raise UserError("--dataset-args is for dataset glyphs, which has no masks")
    view, (role, names) = chosen_view(args, default_view(args.model)), _role(args.split)
    result = evaluate_masks(
        args.model,
        lambda form, reduce: open_masks(
            args.dataset or "ade20k", args.data_dir, form, None, reduce, names, view.short_side
        ),
        role,
        view,
        args.workers,
        pick_device(args.device),
    )
    rows = zip(result.class_names, result.confusion.per_class(), strict=True)
    table = [(name, metrics.pixels, metrics.iou, metrics.acc) for name, metrics in rows]
    metrics = {**result.confusion.metrics(), "images": result.images}
    return metrics, ("class", "pixels", "IoU %", "accuracy %"), table, result.broken


def _role(split: str) -> tuple[str, tuple[str, str, str]]:
    """Which split is meant, and the names to look for: one that is none of the three is looked for as `test`."""
    return (split, ("", "", "")) if split in ("train", "val", "test") else ("test", ("", "", split))
