"""`vimoe prune`: carry out a plan on a finished run, recover, and show what it did."""

from __future__ import annotations

import argparse
import math
import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from vimoe.cli.arguments import Parser

if TYPE_CHECKING:
    from vimoe.study.pruning import Evidence


def run(arguments: Sequence[str]) -> None:
    """Write the pruned model into a folder of its own and print the evidence."""
    parser = Parser("prune", "MoE layers become plain FFNs as a plan says; the original run is not touched.")
    parser.add_argument("run", type=Path, help="the folder of a finished run")
    parser.add_argument("--plan", type=Path, help="the plan; by default the run's plan.json")
    parser.add_argument(
        "--recover-epochs",
        type=_epochs,
        default=0.25,
        help="epochs of recovery training; below 1 a share of the run's own (0.25), 0 for none",
    )
    parser.add_argument("--output", type=Path, help="the new folder; by default RUN-pruned")
    parser.add_argument("--data-dir", help="where the pictures lie now, if they were moved")
    parser.add_argument("--device", default="auto", help="auto, or a torch device")
    args = parser.parse_args(list(arguments))
    from vimoe.report.of_run import pruning_report
    from vimoe.report.page import write_page
    from vimoe.study.pruning import prune_run

    evidence = prune_run(args.run, args.plan, args.recover_epochs, args.output, args.data_dir, args.device, parser.note)
    print(evidence_table(evidence))
    told = f"\nThe pruned model lies in {evidence.output / 'model'}"
    if (args.run / "analysis.json").exists():
        command = shlex.join(["vimoe", "prune", *arguments])
        states, metric, pictures = evidence.states, evidence.metric, evidence.pictures
        report = pruning_report(args.run, evidence.output, states, metric, pictures, command, args.data_dir)
        told += f", the report in {write_page(report, evidence.output / 'report.html')}"
    print(f"{told}.")


def evidence_table(evidence: Evidence) -> str:
    """Accuracy, cost and speed, a line a state."""
    from vimoe.report.tables import giga_macs, millions, plain_table

    right = {"top1": "test top-1 %", "pixels": "test pixels right %"}[evidence.metric]
    header = ("model", f"{right} (95 %)", "change (95 %)", "activated", "stored", "multiply-adds", "ms", "peak MB")
    rows = [
        [
            state.name,
            f"{state.score.value:.1f} ({state.score.low:.1f} to {state.score.high:.1f})",
            "" if not i else f"{0 - state.lost.value:+.1f} ({0 - state.lost.high:+.1f} to {0 - state.lost.low:+.1f})",
            millions(state.cost.activated_params),
            millions(state.cost.stored_params),
            giga_macs(state.cost.macs),
            f"{1000 * state.speed.seconds:.2f}",
            f"{state.speed.peak_bytes / 2**20:.1f}",
        ]
        for i, state in enumerate(evidence.states)
    ]
    batch = evidence.states[0].speed.batch_size
    return (
        f"{plain_table(header, rows)}\n\n{evidence.pictures} test pictures, the same ones for every model. "
        f"ms: measured for one picture in a batch of {batch}; peak: weights and activations of such a batch."
    )


def _epochs(text: str) -> float:
    value = float(text)
    if not math.isfinite(value) or value < 0 or (value > 1 and value != int(value)):
        raise argparse.ArgumentTypeError(f"must be a share below 1 or a whole number of epochs, got {text}")
    return value
