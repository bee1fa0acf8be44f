"""`vimoe evaluate`: a finished model on labelled images."""

import json
from collections.abc import Sequence
from pathlib import Path

from vimoe.cli.arguments import Parser, add_view, chosen_view, mapping


def run(arguments: Sequence[str]) -> None:
    """Print the metrics; write them, the confusion matrix and the worst mistakes."""
    parser = Parser("evaluate", "A run is evaluated on its own data; other data, or a model folder's, on all of it.")
    parser.value("model", "a run folder or a model folder", type=Path)
    parser.group("data")
    parser.flag("--dataset", "the kind of data (default: as the run's, else by its layout)")
    parser.flag("--dataset-args", "arguments of glyphs, such as '{test_family: serif}'", type=mapping)
    parser.shared("--data-dir")
    parser.flag("--split", "train, val, test, or a split's own name (default: test, or what there is)")
    parser.group("output")
    parser.flag(
        "--output", "where confusion matrix and worst mistakes go (default: RUN/evaluation, for own data)", type=Path
    )
    parser.flag("--json", "write all metrics to this file", type=Path)
    parser.flag("--csv", "write the table by class to this file", type=Path)
    parser.group("run")
    parser.shared("--batch-size", "--workers", "--device")
    add_view(parser)
    args = parser.parse(arguments)
    from vimoe.analysis.evaluate_run import evaluate
    from vimoe.files import write_text
    from vimoe.report.evaluation_report import class_table, evaluation_text, write_evaluation

    evaluation = evaluate(
        args.model,
        dataset=args.dataset,
        dataset_args=args.dataset_args,
        data_dir=args.data_dir,
        split=args.split or "",
        batch_size=args.batch_size,
        workers=args.workers,
        device=args.device,
        look=lambda trained: chosen_view(args, trained),
    )
    for line in evaluation.broken:
        parser.note(line)
    print(evaluation_text(evaluation))
    if args.json:
        write_text(args.json, json.dumps(evaluation.to_dict(), indent=2) + "\n")
    if args.csv:
        write_text(args.csv, class_table(evaluation).csv())
    if folder := args.output or (args.model / "evaluation" if evaluation.own else None):
        write_evaluation(evaluation, folder)
        what = "Worst mistakes" if evaluation.confusion is None else "Confusion matrix and worst mistakes"
        print(f"\n{what} lie in {folder}.")
