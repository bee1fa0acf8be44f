"""`vimoe predict`: what a finished model says about pictures, one line each."""

from __future__ import annotations

import csv
import json
import sys
from collections.abc import Sequence
from pathlib import Path

from vimoe.cli.arguments import Parser, at_least
from vimoe.errors import UserError


def run(arguments: Sequence[str]) -> None:
    """Print one JSON or CSV line a picture; broken pictures are told on stderr."""
    parser = Parser("predict", "Labels, probabilities and chosen experts for pictures, from the model folder alone.")
    parser.add_argument("model", type=Path, help="a run folder or a model folder")
    parser.add_argument("pictures", nargs="+", help="picture files, folders, or globs in quotes")
    parser.add_argument("--top-k", type=at_least(1), default=5, help="how many labels (5)")
    parser.add_argument("--format", choices=("jsonl", "csv"), default="jsonl", help="JSON lines (default) or CSV")
    parser.add_argument("--batch-size", type=at_least(1), default=32, help="pictures at once")
    parser.add_argument("--device", default="auto", help="auto, or a torch device")
    args = parser.parse_args(list(arguments))
    from vimoe.tasks.inference import find_pictures, predict
    from vimoe.training.parallel import pick_device

    paths = find_pictures(args.pictures)
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
    if not told:
        raise UserError("none of the pictures can be read")
