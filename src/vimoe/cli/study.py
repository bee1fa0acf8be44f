"""`vimoe study`: a grid of runs over seeds, and its tables and figures; the same command goes on where it stopped."""

import sys
from collections.abc import Sequence
from pathlib import Path

from vimoe.cli.arguments import Parser, at_least, number
from vimoe.errors import UserError


def run(arguments: Sequence[str]) -> None:
    """Do what is left of a study and write what came of it; the exit code is 1 where a run failed."""
    parser = Parser("study", "A run that fails is reported and the others go on; the same command continues a study.")
    parser.flag("--config", "the study file (YAML)", short="-c", type=Path)
    parser.flag("--output", "the study's folder (default: runs/ and the file's name)", type=Path)
    parser.flag("--jobs", "runs at once (default: one for each GPU, else one)", type=at_least(1))
    parser.flag("--device", "auto, or a torch device, instead of the study file's")
    parser.flag("--data-dir", "the folder of images, instead of the study file's")
    parser.flag("--dry-run", "list the runs, what they cost and can show, and run nothing", False, action="store_true")
    above_0 = number(lambda points: points > 0, "a number of points above 0")
    parser.flag("--detect", "with --dry-run: the difference in points that the seeds should show", 0.5, type=above_0)
    parser.flag(
        "--pilot", "with --dry-run: a study whose seeds tell the spread (default: this one)", type=Path, metavar="DIR"
    )
    parser.flag(
        "--measure", "time a model of each setting when all are trained, so many images at once", type=at_least(1)
    )
    parser.flag("--figures-only", "only make the tables and figures of DIR/study.csv again", type=Path, metavar="DIR")
    args = parser.parse(arguments)
    if (args.config is None) == (args.figures_only is None):
        raise UserError("give either the study file with -c, or --figures-only (see vimoe study --help)")
    if args.figures_only is not None:
        from vimoe.study.publish import publish

        if args.measure:
            raise UserError("--measure runs models: give the study file with -c")
        print(publish(args.figures_only))
        return
    if args.pilot is not None and not args.dry_run:
        raise UserError("--pilot tells --dry-run how much seeds differ: give both")
    from vimoe.study.grid import list_runs
    from vimoe.study.study_file import read_study

    instead = {key: value for key, value in (("device", args.device), ("data_dir", args.data_dir)) if value}
    study = read_study(args.config, args.output or Path("runs") / args.config.stem, **instead)
    list_runs(study)  # a mistake in the file is told before torch is imported
    from vimoe.study.execution import dry_run, execute, offered_devices

    if args.dry_run:
        print(dry_run(study, args.jobs or 1, args.detect, args.pilot))
        return
    progress = execute(study, args.jobs)
    if progress.results and args.measure:
        from vimoe.study.latencies import measure_settings
        from vimoe.study.study_table import read_table

        device = offered_devices(str(study.base.get("device", "auto")))[0]
        measure_settings(read_table(study.output).rows, study.output, args.measure, device)
    if progress.results:
        from vimoe.study.publish import publish

        print(publish(study.output))
        print(f"tables and figures lie in {study.output}")
    if progress.failures:
        parser.note(progress.failure_line())
        sys.exit(1)
