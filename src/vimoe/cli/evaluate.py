"""`vimoe evaluate`: a finished model on labelled images."""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from vimoe.cli.arguments import Parser, add_view, chosen_view, mapping
from vimoe.errors import UserError

if TYPE_CHECKING:
    from vimoe.data.images import Images
    from vimoe.tasks.task import Task


def run(arguments: Sequence[str]) -> None:
    """Print the metrics; with --json and --csv, write them."""
    parser = Parser("evaluate", "A run is evaluated on its own data; other data, or a model folder's, on all of it.")
    parser.value("model", "a run folder or a model folder", type=Path)
    parser.group("data")
    parser.flag("--dataset", "the kind of data (default: as the run's, else folder or ade20k)")
    parser.flag("--dataset-args", "arguments of glyphs, such as '{test_family: serif}'", type=mapping)
    parser.shared("--data-dir")
    parser.flag("--split", "train, val, test, or a split's own name (default: test, or what there is)")
    parser.group("output")
    parser.flag("--json", "write all metrics to this file", type=Path)
    parser.flag("--csv", "write the table by class to this file", type=Path)
    parser.group("run")
    parser.shared("--batch-size", "--workers", "--device")
    add_view(parser)
    args = parser.parse(arguments)
    from vimoe.data.loaders import batches
    from vimoe.files import write_text
    from vimoe.report.tables import Table, metrics_table
    from vimoe.tasks.classification import Classification
    from vimoe.tasks.mask_inference import default_view
    from vimoe.tasks.model import load_model
    from vimoe.tasks.segmentation import Segmentation
    from vimoe.tasks.segmenter_folder import holds_segmenter
    from vimoe.training.parallel import pick_device
    from vimoe.vit.model_config import model_folder

    folder, device = model_folder(args.model), pick_device(args.device)
    images, class_names, what = _own_images(args) or _other_images(args, folder)
    task: Task = Classification(len(class_names))
    if holds_segmenter(folder):
        task = Segmentation(len(class_names), view=chosen_view(args, default_view(folder)))
    broken: list[str] = []
    labelled = batches(images, task.batch_size(images, args.batch_size), args.workers, broken.append)
    metrics = task.measure(load_model(folder, device), labelled, device)
    for line in broken:
        parser.note(line)
    summary, header = metrics.summary(), ("class", *metrics.columns)
    if not summary["images"]:
        raise UserError("none of the images can be read")
    rows = [(name, *values) for name, values in zip(class_names, metrics.per_class(), strict=True)]
    table = Table(header, [[name, str(count), *(f"{value:.1f}" for value in values)] for name, count, *values in rows])
    print(f"{summary['images']} images of {what}\n\n{metrics_table(summary)}\n\n{table.text()}")
    if args.json:
        by_class = [dict(zip(header, row, strict=True)) for row in rows]
        report = {**summary, "data": what, "broken": len(broken), "classes": by_class}
        write_text(args.json, json.dumps(report, indent=2) + "\n")
    if args.csv:
        write_text(args.csv, table.csv())


Choice = tuple["Images", tuple[str, ...], str]


def _own_images(args: argparse.Namespace) -> Choice | None:
    """A split of the run's own data, its classes, and what it is; None where the flags or the folder say otherwise."""
    if not (args.model / "recipe.yaml").exists() or args.dataset or args.dataset_args:
        return None
    from vimoe.analysis.analyze_run import finished_run, run_images

    run, recipe = finished_run(args.model)
    split = args.split or "test"
    moved = args.data_dir and (not recipe.data_dir or Path(args.data_dir).resolve() != Path(recipe.data_dir).resolve())
    if moved or split not in ("train", "val", "test"):
        return None
    splits = run_images(run, recipe)
    if split == "test" and splits.test is splits.val:
        split = "val (there is no test)"
    return getattr(splits, split.split()[0]), splits.class_names, f"{split} of the run's own data"


def _other_images(args: argparse.Namespace, folder: Path) -> Choice:
    """The same of any data: all of it, or of one split."""
    from vimoe.data.registry import EMBEDDED, open_one_split
    from vimoe.data.splits import check_classes
    from vimoe.tasks.model import model_classes, model_form
    from vimoe.tasks.segmenter_folder import holds_segmenter, read_segmentation
    from vimoe.training.recipe import load_recipe

    of_pixels = holds_segmenter(folder)
    dataset, data_dir = args.dataset or ("ade20k" if of_pixels else "folder"), args.data_dir
    if not args.dataset and (args.model / "recipe.yaml").exists():
        recipe = load_recipe(args.model / "recipe.yaml")
        dataset = dataset if args.data_dir and recipe.dataset in EMBEDDED else recipe.dataset
        data_dir = data_dir or recipe.data_dir
    known = model_classes(folder)
    reduce = read_segmentation(folder).reduce_zero_label if of_pixels else True
    images, names, split = open_one_split(
        dataset, data_dir, model_form(folder), args.split or "", known, reduce, args.dataset_args
    )
    check_classes(names, known or names, "the images have other classes than the model")
    where = data_dir or dataset
    return images, names, f"{split} of {where}" if split else f"{where}, all of it"
