"""The figures of a study, from its table alone: which runs stand in which panel, as which curve."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from matplotlib.figure import Figure

from vimoe.report.panels import Panel, Series, panels_over_seeds
from vimoe.report.tables import metric_name
from vimoe.study.comparisons import share_training, tuned, without
from vimoe.study.effort import FORWARDS_A_STEP
from vimoe.study.study_table import StudyRow, StudyTable, by_setting, deepest

# What is drawn beside the MoE runs, by kind. One label has one colour in all figures.
_BESIDE = {
    "dense": "dense",
    "wide": "dense, wider FFNs",
    "planned": "planned from all layers, recovered",
}
_COLOURS = {"shared expert": 0, "no shared expert": 1, _BESIDE["wide"]: 2, _BESIDE["planned"]: 3, "dense": None}
Rows = Sequence[StudyRow]
# What runs are grouped by, in the order of the groups, and what a group is called.
Group = Callable[[StudyRow], tuple[Any, str]]
# The places of a run on the x axis, with a value for each.
Points = Callable[[StudyRow], Iterable[tuple[float, float]]]


def study_figures(table: StudyTable) -> dict[str, Figure]:
    """By file name, every figure that this study has the runs for.

    `accuracy_by_…` shows the test metric with the standard deviation between seeds, `difference_by_…` how it differs
    from the dense model of the same seed and training, with the 95 % t interval of the mean. Of each setting the runs
    with its best learning rate are drawn.
    """
    rows = tuned(table.rows)
    if not any(row.kind == "moe" for row in rows):
        return {}
    metric = f"{metric_name(rows[0].metric)} %"
    gains = _gains(rows)
    compared = [row for row in rows if row.run in gains]
    figures = {
        **_over_all_axes("accuracy", rows, {row.run: row.test for row in rows}, f"test {metric}"),
        **_over_all_axes(
            "difference", compared, gains, f"test {metric}: difference from dense, same seed", interval=True
        ),
    }
    figures["specialisation_by_layer"] = _draw(
        deepest(rows),
        lambda row: row.by_block("information").items(),
        "block (0 is the first)",
        "how far the class decides the expert\n(normalised mutual information)",
    )

    most = max(row.recipe["last"] for row in rows)
    drawn = [row for row in rows if row.kind != "wide" or row.recipe["last"] == most]

    def over_time(key: str, y_label: str, x_label: str, end: Callable[[StudyRow], float]) -> Figure:
        """The paper's Figure 3: a curve for each L, means over seeds; of wide models the one with most wide FFNs."""

        def points(row: StudyRow) -> list[tuple[float, float]]:
            epochs = table.curves.get(row.run, ())
            return [(epoch["epoch"] / row.recipe["epochs"] * end(row), epoch[key]) for epoch in epochs]

        how: dict[str, Any] = {"column": _both(_experts, _shared), "curve": _layers, "beside": ("dense", "wide")}
        return _draw(drawn, points, f"{x_label} of the fine-tuning", y_label, shaded=True, dots=False, **how)

    def macs(row: StudyRow) -> float:
        return FORWARDS_A_STEP * row.values["shown_images"] * row.values["macs"] / 1e12

    if table.curves:
        validation = f"val_{rows[0].metric}", f"val {metric}"
        figures["training_curves"] = over_time(*validation, "epoch", lambda row: row.recipe["epochs"])
    if table.curves and all("steps" in row.values for row in rows):
        figures["loss_by_steps"] = over_time("loss", "training loss", "step", lambda row: row.values["steps"])
        figures["loss_by_macs"] = over_time("loss", "training loss", "multiply-adds (10¹²)", macs)
    return figures


def _over_all_axes(
    what: str, rows: Rows, values: Mapping[str, float], y_label: str, interval: bool = False
) -> dict[str, Figure]:
    """Figures of one value of each run over what the runs differ in; none where no MoE run has the value."""
    moe = [row for row in rows if row.kind == "moe"]

    def over(place: Callable[[StudyRow], float], x_label: str, **how: Any) -> Figure:
        return _draw(rows, lambda row: [(place(row), values[row.run])], x_label, y_label, interval=interval, **how)

    def over_cost(key: str, x_label: str, unit: float = 1e6) -> Figure:
        return over(lambda row: row.values[key] / unit, x_label, beside=tuple(_BESIDE))

    if not moe:
        return {}
    giga = max(row.values["macs"] for row in rows) >= 1e8
    figures = {
        # The paper's Figure 2, and below its Figure 1.
        "depth": over(_last, "MoE layers L (the last of the model)", beside=("dense", "wide", "planned"), level=True),
        "activated_params": over_cost("activated_params", "activated parameters, millions"),
        "stored_params": over_cost("stored_params", "stored parameters, millions"),
        "macs": over_cost(
            "macs", f"multiply-adds for an image, {'GMAC' if giga else 'millions'}", 1e9 if giga else 1e6
        ),
        "routing_degree": over(
            lambda row: row.values["routing_degree"],
            "routing degree C(N, k)^L",
            **{"column": _shared, "curve": _experts, "level": True, "log_base": 2},
        ),
    }
    if len({row.recipe["epochs"] for row in moe}) > 1:
        steps = all("steps" in row.values for row in rows)
        figures["length"] = over(
            lambda row: row.values["steps"] if steps else row.recipe["epochs"],
            "steps of training" if steps else "epochs of training",
            line=lambda row: without(row, ["epochs"]),
            **{"curve": _both(_layers, _shared), "beside": ("dense", "wide")},
        )
    return {f"{what}_by_{axis}": figure for axis, figure in figures.items()}


def _gains(rows: Rows) -> dict[str, float]:
    """By run, the test metric less that of a dense run of the same seed that was trained alike, where there is one."""
    gains: dict[str, float] = {}
    for dense in (row for row in rows if row.kind == "dense"):
        for row in rows:
            if row.kind != "start" and row.seed == dense.seed and share_training(row, dense):
                gains.setdefault(row.run, row.test - dense.test)
    return gains


def _draw(
    rows: Rows,
    points: Points,
    x_label: str,
    y_label: str,
    *,
    line: Callable[[StudyRow], str] = lambda row: row.qualifier,
    column: Group | None = None,
    curve: Group | None = None,
    beside: Sequence[str] = (),
    level: bool = False,
    shaded: bool = False,
    **how: Any,
) -> Figure:
    """A grid of panels of the MoE runs, and in each what was trained as they were.

    Args:
        points: What is drawn of a run; what several have at one place is one mean.
        line: One line of panels for each value.
        column: One column of panels for each group, by default for each N.
        curve: One curve for each group, by default with and without a shared expert.
        beside: The kinds of other runs that have a curve of their own.
        level: Whether dense runs are a level instead, where no L says which of their blocks learn.
        shaded: Whether the curves are in order, from dark to light.
        how: Of `panels_over_seeds`.
    """
    column, curve = column or _experts, curve or _shared
    moe = [row for row in rows if row.kind == "moe"]
    columns, curves = (sorted({group(row) for row in moe}) for group in (column, curve))
    levels = [row for row in rows if level and _any_depth(row)]
    others = [row for row in rows if not (level and _any_depth(row))]
    unnamed = "" if len({row.recipe["routing"] for row in moe}) == 1 else "image"
    grid: list[list[Panel]] = []
    for name in dict.fromkeys(map(line, moe)):
        grid.append([])
        for place in columns:
            here = [row for row in moe if line(row) == name and column(row) == place]
            series = []
            for i, (key, label) in enumerate(curves):
                merged = _merged([row for row in here if curve(row) == (key, label)], points)
                shade = i / max(1, len(curves) - 1) if shaded else None
                series += [Series(label, merged, colour=_COLOURS.get(label, i), shade=shade)] if merged else []
            for kind in beside:
                label, own_place = _BESIDE[kind], kind == "planned"
                merged = _merged(_trained_alike(others, here, kind), points)
                look: dict[str, Any] = {"dashed": not own_place, "line": not own_place, "colour": _COLOURS[label]}
                series += [Series(label, merged, **look)] if merged else []
            dense = [y for row in _trained_alike(levels, here, "dense") for _, y in points(row)]
            if here:
                title = ", ".join(filter(None, (name or unnamed, place[1])))
                grid[-1].append(Panel(title, series, (_BESIDE["dense"], dense) if dense else None))
    return panels_over_seeds(grid, x_label, y_label, **how)


def _merged(rows: Rows, points: Points) -> list[tuple[float, list[float]]]:
    found: dict[float, list[float]] = {}
    for row in rows:
        for x, y in points(row):
            found.setdefault(x, []).append(y)
    return sorted(found.items())


def _trained_alike(rows: Rows, here: Rows, kind: str) -> list[StudyRow]:
    """The runs of a kind that were trained as one of those `here`; of planned ones those that were made of them."""
    settings = by_setting(here)
    return [
        row
        for row in rows
        if row.kind == kind
        and (row.origin in settings if kind == "planned" else any(share_training(row, m[0]) for m in settings.values()))
    ]


def _last(row: StudyRow) -> int:
    """L, and of a planned run the MoE layers that are left."""
    return len(row.by_block("information")) if row.kind == "planned" else row.recipe["last"]


def _any_depth(row: StudyRow) -> bool:
    """Whether a run is the dense control of every L; behind a frozen trunk each L has its own."""
    return row.kind == "dense" and not row.recipe["last"]


def _layers(row: StudyRow) -> tuple[int, str]:
    return row.recipe["last"], f"L = {row.recipe['last']}"


def _experts(row: StudyRow) -> tuple[int, str]:
    return row.recipe["num_experts"], f"N = {row.recipe['num_experts']}"


def _shared(row: StudyRow) -> tuple[bool, str]:
    shared = row.recipe["shared_expert"]
    return shared, "shared expert" if shared else "no shared expert"


def _both(one: Group, other: Group) -> Group:
    def group(row: StudyRow) -> tuple[Any, str]:
        (first, name), (second, more) = one(row), other(row)
        return (first, second), f"{name}, {more}"

    return group
