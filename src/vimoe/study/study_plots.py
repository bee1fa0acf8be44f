"""The figures of a study, from its rows alone: which settings stand in which panel."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence

from matplotlib.figure import Figure

from vimoe.report.panels import Panel, Series, panels_over_seeds
from vimoe.report.tables import metric_name
from vimoe.study.comparisons import share_training
from vimoe.study.study_rows import StudyRow, by_setting

# One label has one colour in all figures.
DENSE, WIDE, PLANNED = "dense", "dense, equal activated parameters", "planned from all layers, recovered"
_COLOURS = {"no shared expert": 1, "shared expert": 0, WIDE: 2, PLANNED: 3}
# By run, the figures of each epoch.
Curves = Mapping[str, Sequence[Mapping[str, float]]]


def study_figures(rows: Sequence[StudyRow], curves: Curves) -> dict[str, Figure]:
    """By file name, every figure that this study has the runs for."""
    moe = [row for row in rows if row.kind == "moe"]
    if not moe:
        return {}
    metric = rows[0].metric
    test = f"test {metric_name(metric)} %"
    figures = {
        "accuracy_by_depth": _by_depth(rows, test),
        "accuracy_by_parameters": _by_cost(rows, "activated_params", 1e6, "activated parameters, millions", test),
        "accuracy_by_macs": _by_cost(rows, "macs", *_mac_unit(rows), test),
        "accuracy_by_routing_degree": _by_routing_degree(rows, test),
        "specialisation_by_layer": _specialisation(rows),
    }
    if curves:
        figures["training_curves"] = _training(rows, curves, metric)
    return figures


def deepest(rows: Iterable[StudyRow]) -> list[StudyRow]:
    """Of each N, qualifier and seed, with and without a shared expert, the MoE run with the most MoE layers."""
    found: dict[tuple[object, ...], StudyRow] = {}
    for row in rows:
        key = (_experts(row), row.qualifier, _shared(row), row.seed)
        if row.kind == "moe" and (key not in found or _last(row) > _last(found[key])):
            found[key] = row
    return list(found.values())


def _by_depth(rows: Sequence[StudyRow], y_label: str) -> Figure:
    """The paper's Figure 2: over L for each N, with and without a shared expert, the dense line, the dense control."""

    def panel(title: str, here: Sequence[StudyRow]) -> Panel:
        series = [*_by_shared(here, _last), *_wide(rows, here, _last), *_planned(rows, here, _kept)]
        return Panel(title, series, _dense_level(rows, here))

    return panels_over_seeds(_panels(rows, panel), "MoE layers L (the last of the model)", y_label)


def _by_cost(rows: Sequence[StudyRow], count: str, unit: float, x_label: str, y_label: str) -> Figure:
    """The paper's Figure 1: every setting against what it costs."""

    def place(row: StudyRow) -> float:
        return row.counts[count] / unit

    def panel(title: str, here: Sequence[StudyRow]) -> Panel:
        series = [*_by_shared(here, place), *_wide(rows, here, place), *_planned(rows, here, place)]
        if dense := _controls(rows, here, "dense"):
            series.append(Series(DENSE, _points(dense, place, _test)))
        return Panel(title, series)

    return panels_over_seeds(_panels(rows, panel), x_label, y_label)


def _mac_unit(rows: Sequence[StudyRow]) -> tuple[float, str]:
    """GMAC, or MMAC for small models, and what the axis says."""
    small = max(row.counts["macs"] for row in rows) < 1e8
    return (1e6, "multiply-adds for an image, millions") if small else (1e9, "multiply-adds for an image, GMAC")


def _by_routing_degree(rows: Sequence[StudyRow], y_label: str) -> Figure:
    """Against C(N, k)^L; panels by qualifier and shared expert, a curve for each N."""
    moe = [row for row in rows if row.kind == "moe"]
    sizes = sorted({_experts(row) for row in moe})

    def panel(title: str, here: Sequence[StudyRow]) -> Panel:
        series = [
            Series(f"N = {n}", _points(some, lambda row: row.counts["routing_degree"], _test), colour=i)
            for i, n in enumerate(sizes)
            if (some := [row for row in here if _experts(row) == n])
        ]
        return Panel(title, series, _dense_level(rows, here))

    grid = [
        [
            panel(_titled(qualifier, "shared expert" if shared else "no shared expert"), some)
            for shared in (False, True)
            if (some := [row for row in moe if row.qualifier == qualifier and _shared(row) == shared])
        ]
        for qualifier in _qualifiers(moe)
    ]
    return panels_over_seeds(grid, "routing degree C(N, k)^L", y_label, log_base=2)


def _specialisation(rows: Sequence[StudyRow]) -> Figure:
    """Normalised mutual information by block, of the runs with the most MoE layers."""

    def panel(title: str, here: Sequence[StudyRow]) -> Panel:
        series = []
        for label, shared in (("no shared expert", False), ("shared expert", True)):
            points: dict[float, list[float]] = {}
            for row in deepest(here):
                if _shared(row) == shared:
                    for block, value in row.information.items():
                        points.setdefault(block, []).append(value)
            if points:
                series.append(Series(label, list(points.items()), colour=_COLOURS[label]))
        return Panel(title, series)

    y_label = "how far the class decides the expert\n(normalised mutual information)"
    return panels_over_seeds(_panels(rows, panel), "block (0 is the first)", y_label)


def _training(rows: Sequence[StudyRow], curves: Curves, metric: str) -> Figure:
    """The paper's Figure 3: the validation figure over the epochs, a curve for each L; means over seeds."""
    moe = [row for row in rows if row.kind == "moe"]
    depths = sorted({_last(row) for row in moe})

    def over_epochs(some: Sequence[StudyRow]) -> list[tuple[float, list[float]]]:
        points: dict[float, list[float]] = {}
        for row in some:
            for epoch in curves.get(row.run, ()):
                points.setdefault(epoch["epoch"], []).append(epoch[f"val_{metric}"])
        return list(points.items())

    def panel(title: str, here: Sequence[StudyRow]) -> Panel:
        series = []
        for i, depth in enumerate(depths):
            points = over_epochs([row for row in here if _last(row) == depth])
            if points:
                series.append(Series(f"L = {depth}", points, shade=i / max(1, len(depths) - 1)))
        if dense := over_epochs(_controls(rows, here, "dense")):
            series.append(Series(DENSE, dense, dashed=True))
        return Panel(title, series)

    grid = [
        [
            panel(_titled(qualifier, f"N = {n}, {'' if shared else 'no '}shared expert"), some)
            for n in sorted({_experts(row) for row in moe})
            for shared in (False, True)
            if (some := [r for r in moe if (r.qualifier, _experts(r), _shared(r)) == (qualifier, n, shared)])
        ]
        for qualifier in _qualifiers(moe)
    ]
    return panels_over_seeds(grid, "epoch of the fine-tuning", f"val {metric_name(metric)} %", dots=False)


def _panels(rows: Sequence[StudyRow], panel: Callable[[str, Sequence[StudyRow]], Panel]) -> list[list[Panel]]:
    """A row of panels for each qualifier, a panel for each N."""
    moe = [row for row in rows if row.kind == "moe"]
    return [
        [
            panel(
                _titled(qualifier, f"N = {n}"), [row for row in moe if (row.qualifier, _experts(row)) == (qualifier, n)]
            )
            for n in sorted({_experts(row) for row in moe if row.qualifier == qualifier})
        ]
        for qualifier in _qualifiers(moe)
    ]


def _by_shared(rows: Sequence[StudyRow], place: Callable[[StudyRow], float]) -> list[Series]:
    return [
        Series(label, _points(some, place, _test), colour=_COLOURS[label])
        for label, shared in (("no shared expert", False), ("shared expert", True))
        if (some := [row for row in rows if _shared(row) == shared])
    ]


def _points(
    rows: Sequence[StudyRow], place: Callable[[StudyRow], float], value: Callable[[StudyRow], float]
) -> list[tuple[float, list[float]]]:
    return [(place(same[0]), [value(row) for row in same]) for same in by_setting(rows).values()]


def _wide(rows: Sequence[StudyRow], here: Sequence[StudyRow], place: Callable[[StudyRow], float]) -> Iterator[Series]:
    if wide := _controls(rows, here, "wide"):
        yield Series(WIDE, _points(wide, place, _test), dashed=True, colour=_COLOURS[WIDE])


def _planned(
    rows: Sequence[StudyRow], here: Sequence[StudyRow], place: Callable[[StudyRow], float]
) -> Iterator[Series]:
    """What plans made of the runs `here`, each where it came to lie."""
    origins = {(row.seed, row.setting) for row in here}
    points: dict[float, list[float]] = {}
    for row in rows:
        if row.kind == "planned" and (row.seed, row.origin) in origins:
            points.setdefault(place(row), []).append(row.test)
    if points:
        yield Series(PLANNED, sorted(points.items()), line=False, colour=_COLOURS[PLANNED])


def _dense_level(rows: Sequence[StudyRow], here: Sequence[StudyRow]) -> tuple[str, list[float]] | None:
    dense = _controls(rows, here, "dense")
    return (DENSE, [row.test for row in dense]) if dense else None


def _controls(rows: Sequence[StudyRow], here: Sequence[StudyRow], kind: str) -> list[StudyRow]:
    """The runs of a kind that were trained as those `here`."""
    return [row for row in rows if row.kind == kind and share_training(row, here[0])]


def _qualifiers(rows: Sequence[StudyRow]) -> list[str]:
    return list(dict.fromkeys(row.qualifier for row in rows))


def _titled(qualifier: str, title: str) -> str:
    return f"{qualifier}, {title}" if qualifier else title


def _test(row: StudyRow) -> float:
    return row.test


def _last(row: StudyRow) -> int:
    return int(row.recipe["last"])


def _kept(row: StudyRow) -> int:
    """MoE layers that are left."""
    return len(row.information)


def _experts(row: StudyRow) -> int:
    return int(row.recipe["num_experts"])


def _shared(row: StudyRow) -> bool:
    return bool(row.recipe["shared_expert"])
