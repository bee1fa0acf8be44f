"""`vimoe analyze`: which MoE layers of a finished run specialise, what each is worth, and which to keep."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from vimoe.cli.arguments import Parser, at_least, number

if TYPE_CHECKING:
    from vimoe.analysis.analysis_result import Analysis
    from vimoe.vit.plan import Plan

ABLATED = ("mean", "random", "second", "shared", "pruned")


def run(arguments: Sequence[str]) -> None:
    """Write the analysis, the plan and the report into the run folder, and print what they say."""
    parser = Parser("analyze", "Writes routing tables, plan.json and report.html into the run folder.")
    parser.value("run", "the folder of a finished run", type=Path)
    parser.group("data")
    parser.flag("--dataset", "other images than the run's own")
    parser.shared("--data-dir")
    parser.flag("--split", "the images to measure on", "val", choices=("train", "val", "test"))
    parser.flag("--sample", "measure on so many images of the split, each class in its share", type=at_least(1))
    parser.group("analysis")
    parser.flag("--shuffles", "permutations behind p-values and chance levels", 199, type=at_least(99))
    parser.flag(
        "--max-drop",
        "prune a layer once the images show that it costs at most so many points",
        1.0,
        type=number(lambda points: points >= 0, "a number of points, 0 or more"),
    )
    parser.flag(
        "--experts",
        "score each expert by these, between commas: ablation, load, router-change, reap, activation",
        "",
        type=lambda text: tuple(text.split(",")),
        metavar="CRITERIA",
    )
    parser.group("run")
    parser.shared("--batch-size", "--workers", "--device")
    args = parser.parse(arguments)
    from vimoe.report.analyzed_run import analyze
    from vimoe.report.page import write_page
    from vimoe.report.run_report import analysis_report

    options = {name: value for name, value in vars(args).items() if name != "run"}
    found = analyze(args.run, note=parser.note, **options)
    command = shlex.join(["vimoe", "analyze", *arguments])
    report = write_page(analysis_report(args.run, command, args.dataset, args.data_dir), args.run / "report.html")
    print(analysis_table(found.analysis, found.plan))
    print(f"\nThe report lies in {report}, the plan in {args.run / 'plan.json'}.")
    print(f"`vimoe prune {args.run}` carries it out.")


def analysis_table(analysis: Analysis, plan: Plan) -> str:
    """What was measured on every layer, the last block first, and what the plan makes of them."""
    from vimoe.report.expert_table import agreement_table, expert_table
    from vimoe.report.results import decision_table
    from vimoe.report.tables import Table, metric_name

    rows = []
    for layer in reversed(analysis.layers):
        measure, lost = layer.specialisation, {k.name: f"{0 - k.lost.value:+.1f}" for k in layer.ablations}
        rows.append(
            [
                str(layer.layer),
                f"{measure.information:.2f}",
                f"{100 * measure.normalised:.0f} % ({100 * measure.low:.0f} to {100 * measure.high:.0f})",
                f"{measure.p_value:.3f}",
                f"{measure.effective_experts:.1f} of {len(measure.load)}",
                f"{layer.stability:.0%}",
                *(lost.get(name, "-") for name in ABLATED),
            ]
        )
    header = ("block", "bits", f"{analysis.measure} (95 %)", "p", "in use", "stable", *ABLATED)
    score, sampled = analysis.score, f" of {n}" if (n := analysis.split_images) > analysis.images else ""
    note = (
        f"{analysis.images}{sampled} images of {analysis.split}, {metric_name(analysis.metric)} {score.value:.1f} % "
        f"(95 %: {score.low:.1f} to {score.high:.1f}). The last five columns are points gained or lost when this layer "
        "alone is ablated: the experts answer with their mean, experts are chosen at random, every choice is the "
        "second one, the shared expert is alone, a plain FFN takes the layer's place."
    )
    tables = (
        Table(header, rows, [note]),
        expert_table(analysis),
        agreement_table(analysis),
        decision_table(analysis, plan),
    )
    return "\n\n".join(table.text() for table in tables if table)
