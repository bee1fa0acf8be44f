"""What a study measured, gathered from its runs into its own folder.

study.csv         a row a run
curves.csv        a row a run and epoch
routing/*.npz     counts [layer, class, expert] of the runs with the most MoE layers, first seed
"""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping, Sequence
from pathlib import Path

from vimoe.files import write_bytes, write_text
from vimoe.study.grid import StudyRun
from vimoe.study.run_result import Result
from vimoe.study.study_plots import deepest
from vimoe.study.study_rows import StudyRow, study_rows, write_study
from vimoe.training.run_folder import RunFolder


def gather(runs: Sequence[StudyRun], results: Mapping[str, Result], folder: Path) -> None:
    """Write what the runs with a result measured into the study's folder.

    Args:
        runs: All runs of the study.
        results: By name of a run.
        folder: The study's folder, with the run folders inside.
    """
    rows = study_rows(runs, results)
    write_study(rows, folder / "study.csv")
    _write_curves(rows, folder)
    shown = {row.setting: row for row in deepest(rows) if row.seed == rows[0].seed}
    for setting, row in shown.items():
        write_bytes(folder / "routing" / f"{setting}.npz", (folder / row.run / "routing" / "val.npz").read_bytes())
    for path in (folder / "routing").glob("*.npz"):
        if path.stem not in shown:  # it had the most MoE layers when fewer runs were done
            path.unlink()


def _write_curves(rows: Sequence[StudyRow], folder: Path) -> None:
    """Every epoch of every run: loss and the figures of the validation split."""
    epochs = [(row.run, epoch) for row in rows for epoch in RunFolder(folder / row.run).read_rows()]
    columns = list(dict.fromkeys(key for _, epoch in epochs for key, value in epoch.items() if key != "routing"))
    table = io.StringIO()
    writer = csv.writer(table, lineterminator="\n")
    writer.writerow(["run", *columns])
    writer.writerows([run, *(epoch.get(key, "") for key in columns)] for run, epoch in epochs)
    write_text(folder / "curves.csv", table.getvalue())
