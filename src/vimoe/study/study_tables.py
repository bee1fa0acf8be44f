"""The tables of a study, and in words what its seeds can tell."""

import math
from collections.abc import Sequence

import numpy as np

from vimoe.report.panels import mean_and_std
from vimoe.report.tables import Table, whole
from vimoe.study.comparisons import Comparison, adjusted, spread, sweeps
from vimoe.study.latencies import Latencies
from vimoe.study.statistics import smallest_difference
from vimoe.study.study_table import StudyRow, by_setting
from vimoe.vit.cost import giga_macs, millions

# Columns of each setting where the task has them.
_MORE = ("test_nll", "test_ece")


def settings_table(rows: Sequence[StudyRow], latencies: Latencies | None = None) -> Table:
    """Every setting: how good it is over its seeds, and what it costs; how long it takes where that was measured."""
    metric = rows[0].metric if rows else ""
    more = [key for key in _MORE if any(key in row.values for row in rows)]
    partly = any(0 < row.values.get("trained_params", 0) < row.values["stored_params"] for row in rows)
    sizes = ("activated_params", "stored_params", *(["trained_params"] if partly else []))
    cells = []
    for setting, same in by_setting(rows).items():
        values = {key: [row.values[key] for row in same if key in row.values] for key in same[0].values}
        cells.append(
            [
                *(setting, str(len(same)), _spread_cell([row.test for row in same])),
                *(_spread_cell([row.val for row in same]), *(_spread_cell(values.get(key, [])) for key in more)),
                *(millions(round(np.mean(values[key]))) if key in values else "-" for key in sizes),
                *(giga_macs(round(np.mean(values["macs"]))), whole(round(np.mean(values["routing_degree"])))),
                _spread_cell([float(np.mean(list(row.by_block("touched").values()))) for row in same if _kept(row)]),
                f"{np.mean(values['seconds']):.0f}",
                *(_latency_cells(latencies, setting) if latencies else ()),
            ]
        )
    header = (
        *("setting", "seeds", f"test {metric}", f"val {metric}", *(key.replace("_", " ") for key in more)),
        *(key.removesuffix("_params") for key in sizes),
        *("an image", "routing degree", "experts touched", "seconds", *(("ms", "quartiles") if latencies else ())),
    )
    note = (
        "Mean ± standard deviation between seeds. Experts touched: those of a layer that one image's tokens are sent "
        "to, mean over the MoE layers."
    )
    timed = () if latencies is None else (_latency_note(latencies),)
    return Table(header, cells, (note, *timed))


def _latency_cells(latencies: Latencies, setting: str) -> tuple[str, str]:
    if (latency := latencies.by_setting.get(setting)) is None:
        return "-", "-"
    low, high = latency.quartiles
    return f"{1e3 * latency.median:.2f}", f"{1e3 * low:.2f} to {1e3 * high:.2f}"


def _latency_note(latencies: Latencies) -> str:
    batch, device, threads, by_setting = latencies
    return (
        f"ms: {batch} {'image' if batch == 1 else 'images'} at once on {device}, {threads} "
        f"{'thread' if threads == 1 else 'threads'}, the first seed's model on noise; median and quartiles of "
        f"{len(next(iter(by_setting.values())).seconds)} rounds in which all settings take turns."
    )


def planned_table(rows: Sequence[StudyRow]) -> Table:
    """Every run that was analyzed, pruned and recovered, beside the sweep over L that it stands for."""
    settings = by_setting(rows)
    cells = []
    for setting, by_last, best in sweeps(settings):
        for row in settings[setting]:
            by_name = {each.setting: each for each in rows if each.seed == row.seed}
            origin, chosen = by_name[row.origin], by_name.get(best)
            swept = [by_name.get(name) for last, name in by_last.items() if last]
            cells.append(
                [
                    *(setting, str(row.seed), ", ".join(map(str, sorted(_kept(row)))) or "none"),
                    *(f"{row.test:.2f}", f"{origin.test:.2f}", f"{chosen.test:.2f} ({best})" if chosen else "-"),
                    *(millions(int(row.values[count])) for count in ("activated_params", "stored_params")),
                    f"{origin.values['seconds'] + row.values['seconds']:.0f}",
                    "-" if None in swept else f"{sum(each.values['seconds'] for each in swept if each):.0f}",
                ]
            )
    metric = rows[0].metric if rows else ""
    header = (
        *("setting", "seed", "MoE layers kept", f"test {metric}", "before", "best L on val", "activated", "stored"),
        *("seconds", "seconds of the sweep"),
    )
    note = (
        "Seconds: the run, its analysis and its recovery, against the MoE runs of the sweep over L; the dense "
        "pretraining and the dense control, which both need, are not counted."
    )
    return Table(header, cells, (note,))


def comparisons_table(found: Sequence[Comparison], metric: str) -> Table:
    """Every comparison: the mean difference on the test split with its intervals, and what so many seeds would find."""
    images = any(comparison.right is not None for comparison in found)
    cells = []
    for comparison, p_holm in zip(found, adjusted(found), strict=True):
        result, by_image = comparison.paired, comparison.by_image
        findable = smallest_difference(result.std, result.n)
        row = [
            *(comparison.question, comparison.one, comparison.other, str(result.n), f"{result.mean:+.2f}"),
            *(_interval_cell(result.low, result.high), _p_cell(result.p_value), _p_cell(p_holm)),
            "-" if math.isinf(findable) else f"{findable:.2f}",
        ]
        if images:
            row.insert(6, _interval_cell(by_image.low, by_image.high) if by_image else "-")
        cells.append(row)
    header = ["question", "one", "against", "seeds", f"difference in {metric}", "95 % interval", "p", "p (Holm)"]
    notes = [
        "Differences paired by seed, with the t interval of their mean; p of a paired t test, and adjusted for the "
        "number of comparisons of the same question. Findable: the true difference that so many seeds with this spread "
        "show in 80 % of cases (two-sided, 5 %). Settings that differ in the learning rate alone are represented by "
        "the one that is best on the validation split.",
        power_line(spread(found)),
    ]
    if images:
        header.insert(6, "by image")
        notes.insert(1, "By image: the 95 % interval for other test images and these very models, paired by image.")
    return Table([*header, "findable"], cells, notes)


def power_line(std: float) -> str:
    """What numbers of seeds can tell at this spread of paired differences, in one line."""
    if not std > 0:
        return "One seed, or seeds that all agree, tell nothing about the spread between seeds."
    found = ", ".join(f"{n} seeds {smallest_difference(std, n):.2f}" for n in (3, 5, 10, 20))
    return (
        f"Paired differences spread by {std:.2f} between seeds (pooled over all comparisons of two settings); "
        f"the smallest difference found in 80 % of cases is then with {found}."
    )


def _kept(row: StudyRow) -> list[int]:
    """The blocks that are MoE layers."""
    return list(row.by_block("touched"))


def _spread_cell(values: Sequence[float]) -> str:
    if not values:
        return "-"
    mean, std = mean_and_std(values)
    return f"{mean:.2f} ± {std:.2f}" if len(values) > 1 else f"{mean:.2f}"


def _interval_cell(low: float, high: float) -> str:
    return "-" if math.isnan(low) else f"{low:+.2f} to {high:+.2f}"


def _p_cell(p_value: float) -> str:
    if math.isnan(p_value):
        return "-"
    return "<0.001" if p_value < 0.001 else f"{p_value:.3f}"
