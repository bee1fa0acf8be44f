"""The tables and figures of a study, from what `gather` keeps of it and nothing else.

tables/    settings, comparisons and, where there are planned runs, planned, as .md, .csv and .tex
figures/   as .png, .svg and .pdf
"""

from pathlib import Path

from vimoe.analysis.counts import RoutingCounts
from vimoe.analysis.specialisation import specialisation
from vimoe.errors import UserError
from vimoe.files import write_text
from vimoe.report.heatmap import routing_heatmaps
from vimoe.report.saving import save_figure
from vimoe.study.comparisons import comparisons, spread, tuned
from vimoe.study.latencies import read_latencies
from vimoe.study.study_plots import study_figures
from vimoe.study.study_table import read_table
from vimoe.study.study_tables import comparisons_table, planned_table, power_line, settings_table


def publish(folder: Path) -> str:
    """Make all tables and figures; gives a line on the study's power. Raises UserError if the folder holds no study."""
    table = read_table(folder)
    rows = table.rows
    if not rows:
        raise UserError(f"{folder / 'study.csv'} holds no runs yet")
    found = comparisons(rows, table.right)
    tables = {
        "settings": settings_table(rows, read_latencies(folder)),
        "comparisons": comparisons_table(found, rows[0].metric),
    }
    if any(row.kind == "planned" for row in rows):
        tables["planned"] = planned_table(tuned(rows))
    for name, cells in tables.items():
        for suffix, text in (("md", cells.markdown()), ("csv", cells.csv()), ("tex", cells.latex())):
            write_text(folder / "tables" / f"{name}.{suffix}", text)
    for name, figure in study_figures(table).items():
        save_figure(figure, folder / "figures" / name)
    guided = {row.setting for row in rows if row.recipe.get("guide_classes")}
    by_patch = {row.setting for row in rows if row.recipe["routing"] == "token"}
    for path in sorted((folder / "routing").glob("*.npz")):
        counts = RoutingCounts.load(path)
        measures = {n: specialisation(counts.layer(n), 99, path.stem in guided) for n in counts.layers}
        figure = routing_heatmaps(counts, measures, unit="patch" if path.stem in by_patch else "image")
        save_figure(figure, folder / "figures" / f"heatmaps-{path.stem}")
    return power_line(spread(found))
