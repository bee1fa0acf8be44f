"""`vimoe prune`: carry out a plan on a finished run, recover, and show what it did."""

import shlex
from collections.abc import Sequence
from pathlib import Path

from vimoe.cli.arguments import Parser, number


def run(arguments: Sequence[str]) -> None:
    """Write the pruned model into a folder of its own and print the evidence."""
    parser = Parser("prune", "The pruned model gets a folder of its own; the original run stays as it is.")
    parser.value("run", "the folder of a finished run", type=Path)
    parser.flag("--plan", "the plan (default: RUN/plan.json)", type=Path)
    parser.flag(
        "--recover-epochs",
        "epochs of recovery training; below 1 a share of the run's own epochs, 0 for none (default: 0.25, and 0 where "
        "the plan keeps everything)",
        type=number(
            lambda epochs: 0 <= epochs <= 1 or (epochs > 1 and epochs == int(epochs)),
            "a share below 1 or a whole number of epochs",
        ),
    )
    parser.flag("--output", "the new folder (default: RUN-pruned)", type=Path)
    parser.shared("--data-dir", "--device")
    args = parser.parse(arguments)
    from vimoe.report.comparison import pruning_table
    from vimoe.study.prune_run import prune_run

    evidence = prune_run(args.run, args.plan, args.recover_epochs, args.output, args.data_dir, args.device, parser.note)
    print(pruning_table(evidence).text())
    print(f"\nThe pruned model lies in {evidence.output / 'model'}.")
    if (args.run / "analysis.json").exists():  # else the plan was made by hand, and there is nothing to show
        from vimoe.report.page import write_page
        from vimoe.report.run_report import pruning_report

        command = shlex.join(["vimoe", "prune", *arguments])
        report = pruning_report(args.run, evidence, command, args.data_dir)
        print(f"The report lies in {write_page(report, evidence.output / 'report.html')}.")
