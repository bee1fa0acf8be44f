"""A study's folder for its readers: what it measured as CSV, and from that alone the tables and figures.

study.csv         a row a run
curves.csv        a row a run and epoch
routing/*.npz     counts [layer, class, expert] of the runs with the most MoE layers, first seed
tables/           settings and comparisons, as .md, .csv and .tex
figures/          as .png, .svg and .pdf
"""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence
from pathlib import Path

from vimoe.analysis.counts import RoutingCounts
from vimoe.analysis.specialisation import specialisation
from vimoe.errors import UserError
from vimoe.report.figures import routing_heatmaps
from vimoe.report.study_figures import save_figure
from vimoe.study.comparisons import comparisons, spread
from vimoe.study.execute import Progress
from vimoe.study.figures import Curves, deepest, study_figures
from vimoe.study.rows import StudyRow, read_study_rows, study_rows, write_study
from vimoe.study.tables import comparisons_table, power_line, settings_table
from vimoe.training.run import RunFolder, write_bytes, write_text


def gather(progress: Progress, folder: Path) -> None:
    """Write what the finished runs measured into the study's folder."""
    rows = study_rows(progress.runs, progress.results)
    write_study(rows, folder / "study.csv")
    _write_curves(rows, folder)
    first_seed = rows[0].seed if rows else 0
    for row in deepest(rows):
        if row.seed == first_seed:
            counts = (folder / row.run / "routing" / "val.npz").read_bytes()
            write_bytes(folder / "routing" / f"{row.setting}.npz", counts)


def publish(folder: Path) -> str:
    """Make all tables and figures from what `gather` wrote, and nothing else.

    Returns:
        What the study says about its own power, in one line.

    Raises:
        UserError: The folder holds no study's tables.
    """
    rows = read_study_rows(folder / "study.csv")
    if not rows:
        raise UserError(f"{folder / 'study.csv'} holds no runs yet")
    found = comparisons(rows)
    for name, table in (
        ("settings", settings_table(rows)),
        ("comparisons", comparisons_table(found, rows[0].metric)),
    ):
        for suffix, text in (("md", table.markdown()), ("csv", table.csv()), ("tex", table.latex())):
            write_text(folder / "tables" / f"{name}.{suffix}", text)
    for name, figure in study_figures(rows, _read_curves(folder)).items():
        save_figure(figure, folder / "figures" / name)
    for path in sorted((folder / "routing").glob("*.npz")):
        counts = RoutingCounts.load(path)
        measures = {layer: specialisation(counts.layer(layer), shuffles=99) for layer in counts.layers}
        save_figure(routing_heatmaps(counts, measures), folder / "figures" / f"heatmaps-{path.stem}")
    return power_line(spread(found))


def _write_curves(rows: Sequence[StudyRow], folder: Path) -> None:
    """Every epoch of every run: loss and the figures of the validation split."""
    epochs = [(row.run, epoch) for row in rows for epoch in RunFolder(folder / row.run).read_rows()]
    columns = list(dict.fromkeys(key for _, epoch in epochs for key, value in epoch.items() if key != "routing"))
    table = io.StringIO()
    writer = csv.writer(table, lineterminator="\n")
    writer.writerow(["run", *columns])
    writer.writerows([run, *(epoch.get(key, "") for key in columns)] for run, epoch in epochs)
    write_text(folder / "curves.csv", table.getvalue())


def _read_curves(folder: Path) -> Curves:
    path = folder / "curves.csv"
    curves: dict[str, list[dict[str, float]]] = {}
    if path.exists():
        with path.open(newline="") as file:
            for line in csv.DictReader(file):
                values = {key: float(value) for key, value in line.items() if key != "run" and value}
                curves.setdefault(line["run"], []).append(values)
    return curves
