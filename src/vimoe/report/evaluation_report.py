"""What an evaluation says: tables for the terminal, and its files: numbers, confusion matrix, worst mistakes."""

import io
import json
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure
from torch import Tensor

from vimoe.analysis.evaluate_run import Evaluation
from vimoe.data.contact_sheet import contact_sheet
from vimoe.files import write_bytes, write_text
from vimoe.report.plots import short
from vimoe.report.saving import save_figure
from vimoe.report.tables import Table, metric_name, metrics_table

# Up to so many classes their names stand at the axes, and up to so many shares in the cells.
_NAMED, _NUMBERED = 60, 20
# A class is told apart from the mean where the worst one is so many points below it.
_UNEVEN = 10.0


def score_words(evaluation: Evaluation) -> str:
    """`test of the run's own data: top-1 65.6 % (95 %: 60.6 to 70.3) on 372 images; mean of the classes 53.2 %`."""
    score, summary = evaluation.score, evaluation.summary
    name = metric_name(evaluation.metric)
    more = [f"mean of the classes {summary['mean_class']:.1f} %"] if "mean_class" in summary else []
    more += [f"{metric_name(key)} {summary[key]:.1f} %" for key in ("map", "miou") if key in summary]
    return "; ".join(
        [
            f"{evaluation.data}: {name} {score.value:.1f} % (95 %: {score.low:.1f} to {score.high:.1f}) on "
            f"{len(evaluation.scores)} images",
            *more,
        ]
    )


def class_table(evaluation: Evaluation) -> Table:
    """A row for each class that occurs."""
    seen = [(name, count, values) for name, count, *values in evaluation.by_class if count]
    return Table(
        ("class", *evaluation.columns),
        [[name, str(count), *(f"{value:.1f}" for value in values)] for name, count, values in seen],
    )


def is_uneven(evaluation: Evaluation) -> bool:
    """Whether some class does much worse than all images together."""
    values = [row[-1] for row in evaluation.by_class if row[1]]
    return bool(values) and float(np.mean(values)) - min(values) > _UNEVEN


def evaluation_text(evaluation: Evaluation) -> str:
    """All metrics and the table by class."""
    head, metrics = score_words(evaluation), metrics_table(evaluation.summary)
    return "\n\n".join([head, metrics, class_table(evaluation).text()])


def confusion_figure(evaluation: Evaluation, confusion: Tensor) -> Figure:
    """Labels against answers: by row, the share of a class that got each answer."""
    names = [row[0] for row in evaluation.by_class]
    counts = confusion.double().numpy()
    shares = counts / np.maximum(counts.sum(1, keepdims=True), 1)
    side = min(14.0, max(3.6, 1.8 + 0.3 * len(names)))
    figure = Figure(figsize=(side + 0.8, side), layout="constrained")
    ax = figure.subplots()
    drawn = ax.imshow(shares, cmap="Blues", vmin=0, vmax=1)
    ax.set_xlabel("answer", fontsize=9)
    ax.set_ylabel("label", fontsize=9)
    if len(names) <= _NAMED:
        labels = [short(name, 20) for name in names]
        size = 8 if len(names) <= 30 else 6
        ax.set_xticks(range(len(names)), labels, rotation=90, fontsize=size, parse_math=False)
        ax.set_yticks(range(len(names)), labels, fontsize=size, parse_math=False)
    if len(names) <= _NUMBERED:
        for row, column in zip(*np.nonzero(shares >= 0.005), strict=True):
            share = shares[row, column]
            colour = "white" if share > 0.6 else "black"
            ax.text(column, row, f"{100 * share:.0f}", ha="center", va="center", fontsize=7, color=colour)
    bar = figure.colorbar(drawn, ax=ax, shrink=0.7, label="share of the class")
    bar.ax.tick_params(labelsize=8)
    ax.set_title(f"{score_words(evaluation).split(': ', 1)[1].split(';')[0]}", fontsize=9)
    return figure


def write_evaluation(evaluation: Evaluation, folder: Path) -> None:
    """Write `metrics.json` and, where there are such, `confusion.png` (SVG, PDF) and `mistakes.jpg` into a folder."""
    write_text(folder / "metrics.json", json.dumps(evaluation.to_dict(), indent=2) + "\n")
    if evaluation.confusion is not None:
        save_figure(confusion_figure(evaluation, evaluation.confusion), folder / "confusion")
    if evaluation.mistakes:
        wide = evaluation.metric == "pixels"
        sheet = contact_sheet(
            [mistake.pixels for mistake in evaluation.mistakes],
            [mistake.words for mistake in evaluation.mistakes],
            columns=2 if wide else 8,
            side=160 if wide else 144,
        )
        buffer = io.BytesIO()
        sheet.save(buffer, "JPEG", quality=90)
        write_bytes(folder / "mistakes.jpg", buffer.getvalue())
