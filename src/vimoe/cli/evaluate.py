"""`vimoe evaluate`: a finished model on labelled pictures, from its folder alone."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

from vimoe.cli.arguments import Parser, at_least
from vimoe.errors import UserError


def run(arguments: Sequence[str]) -> None:
    """Print the figures; with --json and --csv, write them."""
    parser = Parser("evaluate", "Accuracy, mean per class, calibration, and a table by class.")
    parser.add_argument("model", type=Path, help="a run folder or a model folder")
    parser.add_argument("--dataset", default="folder", help="folder (default) or digits")
    parser.add_argument("--data-dir", help="the folder of pictures, in train, val and test, or one folder a class")
    parser.add_argument("--split", choices=("train", "val", "test"), default="test", help="which pictures (test)")
    parser.add_argument("--batch-size", type=at_least(1), default=64, help="pictures at once")
    parser.add_argument("--workers", type=at_least(0), default=2, help="processes that decode")
    parser.add_argument("--device", default="auto", help="auto, or a torch device")
    parser.add_argument("--json", type=Path, help="write all figures there")
    parser.add_argument("--csv", type=Path, help="write the table by class there")
    args = parser.parse_args(list(arguments))
    from vimoe.report.tables import class_table, figures_table
    from vimoe.tasks.inference import evaluate_folder
    from vimoe.training.parallel import pick_device
    from vimoe.training.run import write_text

    result = evaluate_folder(
        args.model, args.dataset, args.data_dir, args.split, args.batch_size, args.workers, pick_device(args.device)
    )
    for line in result.broken:
        parser.note(line)
    if not result.figures.pictures.sum():
        raise UserError("none of the pictures can be read")
    names, by_class = result.class_names, result.figures.per_class()
    print(f"{figures_table(result.figures.summary())}\n\n{class_table(names, by_class)}")
    if args.json:
        table = [{"class": n, "pictures": p, "top1": t} for n, (p, t) in zip(names, by_class, strict=True)]
        figures = {**result.figures.summary(), "broken": len(result.broken), "classes": table}
        write_text(args.json, json.dumps(figures, indent=2, ensure_ascii=False) + "\n")
    if args.csv:
        write_text(args.csv, class_table(names, by_class, as_csv=True))
