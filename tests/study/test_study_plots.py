from dataclasses import replace
from typing import Any

import pytest
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator

from tests.study.support import row
from vimoe.study.study_plots import study_figures
from vimoe.study.study_table import StudyRow, StudyTable

SETTINGS = ("dense", "wide2-L2", "N2-L1", "N2-L2", "N2-L1-shared", "N2-L2-shared", "N8-L2", "N8-L2-paper")
ROWS = [row(setting, seed, 80.0 + i + 0.5 * seed) for i, setting in enumerate(SETTINGS) for seed in range(2)]
AXES = ("depth", "activated_params", "stored_params", "macs", "routing_degree")
CURVES = {each.run: [{"epoch": 1.0, "val_top1": 70.0}, {"epoch": 2.0, "val_top1": each.val}] for each in ROWS}


def figures_of(rows: list[StudyRow], curves: dict[str, list[dict[str, float]]] | None = None) -> dict[str, Figure]:
    return study_figures(StudyTable(rows, curves or {}, {}))


def drawn(figure: Figure) -> dict[str, dict[str, Any]]:
    """By panel title, by label, the points of each line that has one."""
    legend = dict(zip((t.get_text() for t in figure.legends[0].get_texts()), figure.legends[0].legend_handles))
    assert all(legend.values())
    return {ax.get_title(): ax for ax in figure.axes if ax.get_visible()}  # type: ignore[misc]


def means(ax: Any) -> list[list[tuple[float, float]]]:
    """The points of each curve of means, in the order of drawing; curves stand a little beside their tick."""
    ticks = ax.get_xticks()
    beside = isinstance(ax.xaxis.get_major_locator(), FixedLocator)

    def place(x: float) -> float:
        return float(min(ticks, key=lambda tick: abs(tick - x))) if beside else x

    return [[(place(x), y) for x, y in zip(*c.lines[0].get_data(), strict=True)] for c in ax.containers]


@pytest.fixture(scope="module")
def figures() -> dict[str, Figure]:
    return figures_of(ROWS, CURVES)


def test_a_study_with_moe_runs_has_all_its_figures(figures: dict[str, Figure]) -> None:
    assert set(figures) == {
        *(f"{what}_by_{axis}" for what in ("accuracy", "difference") for axis in AXES),
        *("specialisation_by_layer", "training_curves"),
    }
    assert "training_curves" not in figures_of(ROWS)
    assert figures_of(ROWS[:2], CURVES) == {}


def test_accuracy_by_depth_has_a_panel_for_each_n_and_variant(figures: dict[str, Figure]) -> None:
    panels = drawn(figures["accuracy_by_depth"])
    assert list(panels) == ["N = 2", "N = 8", "paper, N = 8"]
    without, shared, wide = means(panels["N = 2"])
    assert without == [(1, 82.25), (2, 83.25)]  # means over the two seeds
    assert shared == [(1, 84.25), (2, 85.25)]
    assert wide == [(2, 81.25)]
    assert panels["N = 2"].patches
    dense = panels["N = 2"].lines[0].get_ydata()
    assert list(dense) == [80.25, 80.25]
    seeds = panels["N = 2"].collections
    assert any(sorted(float(y) for y in c.get_offsets()[:2, 1]) == [80.0 + 2, 80.5 + 2] for c in seeds)


def test_a_planned_run_lies_where_its_plan_left_it() -> None:
    planned = [row("N2-L2-planned", 0, 90.0, kept=1), row("N2-L2-planned", 1, 91.0, kept=0)]
    figures = figures_of([*ROWS, *planned, row("N8-L4-planned", 0, 50.0, kept=2)], CURVES)
    without, _, _, after = means(drawn(figures["accuracy_by_depth"])["N = 2"])
    assert without == [(1, 82.25), (2, 83.25)]
    assert after == [(0, 91.0), (1, 90.0)]
    assert [t.get_text() for t in figures["accuracy_by_depth"].legends[0].get_texts()][-1].startswith("planned")


def test_a_control_that_was_trained_otherwise_stays_out() -> None:
    rows = [row("dense", 0, 80.0, opt="a"), row("dense-opt=b", 0, 10.0, opt="b"), row("N8-L2", 0, 81.0, opt="a")]
    panels = drawn(figures_of(rows)["accuracy_by_depth"])
    assert list(panels["N = 8"].lines[0].get_ydata()) == [80.0, 80.0]


def test_with_a_frozen_trunk_dense_is_a_curve_over_the_blocks_that_learn() -> None:
    settings = {"dense-L1": 70.0, "dense-L2": 75.0, "N8-L1": 71.0, "N8-L2": 77.0}
    figures = figures_of([row(setting, 0, test, freeze="trunk") for setting, test in settings.items()])
    panel = drawn(figures["accuracy_by_depth"])["N = 8"]
    assert means(panel) == [[(1, 71.0), (2, 77.0)], [(1, 70.0), (2, 75.0)]]
    assert not panel.patches  # no level with its band
    gained, level = means(drawn(figures["difference_by_depth"])["N = 8"])
    assert (gained, level) == ([(1, 1.0), (2, 2.0)], [(1, 0.0), (2, 0.0)])
    assert not drawn(figures["accuracy_by_routing_degree"])["no shared expert"].patches


def test_panels_say_which_routing_they_show_where_there_are_both() -> None:
    rows = [row("N8-L2", 0, 81.0), row("N8-L2-token", 0, 82.0, routing="token")]
    rows[1] = replace(rows[1], qualifier="token")
    assert list(drawn(figures_of(rows)["accuracy_by_depth"])) == ["image, N = 8", "token, N = 8"]


def test_specialisation_is_that_of_the_runs_with_the_most_moe_layers(figures: dict[str, Figure]) -> None:
    panels = drawn(figures["specialisation_by_layer"])
    assert means(panels["N = 8"]) == [[(10, 1.0), (11, pytest.approx(1.1))]]


def test_routing_degree_is_on_a_logarithmic_axis(figures: dict[str, Figure]) -> None:
    panels = drawn(figures["accuracy_by_routing_degree"])
    ax = panels["no shared expert"]
    assert ax.get_xscale() == "log"
    assert means(ax) == [[(2, 82.25), (4, 83.25)], [(64, 86.25)]]


def test_training_curves_are_means_over_seeds(figures: dict[str, Figure]) -> None:
    ax = drawn(figures["training_curves"])["N = 8, no shared expert"]
    curves = {line.get_label(): list(line.get_ydata()) for line in ax.lines}
    assert [70.0, 86.25] in curves.values()
    assert [70.0, 80.25] in curves.values()  # dense


def test_what_was_not_run_is_not_drawn() -> None:
    alone: list[StudyRow] = [row("N8-L2", 0, 81.0)]
    assert means(drawn(figures_of(alone)["accuracy_by_depth"])["N = 8"]) == [[(2, 81.0)]]


def test_differences_are_from_the_dense_run_of_the_same_seed(figures: dict[str, Figure]) -> None:
    # Every setting gains the same over its own seed's dense run, though seeds differ by half a point.
    panels = drawn(figures["difference_by_depth"])
    without, shared, wide = means(panels["N = 2"])
    assert (without, shared, wide) == ([(1, 2.0), (2, 3.0)], [(1, 4.0), (2, 5.0)], [(2, 1.0)])
    assert list(panels["N = 2"].lines[0].get_ydata()) == [0.0, 0.0]
    for container in panels["N = 2"].containers:  # and shows no spread
        assert all(low == high for (_, low), (_, high) in container.lines[2][0].get_segments())


def test_a_difference_has_the_t_interval_of_its_mean() -> None:
    tests = ((80.0, 81.0), (81.0, 83.0), (80.0, 83.0))  # gains of 1, 2 and 3
    rows = [row(name, seed, pair[i]) for seed, pair in enumerate(tests) for i, name in enumerate(("dense", "N8-L2"))]
    ax = drawn(figures_of(rows)["difference_by_depth"])["N = 8"]
    ((_, low), (_, high)) = ax.containers[0].lines[2][0].get_segments()[0]
    assert (low, high) == (pytest.approx(2 - 2.484, abs=1e-3), pytest.approx(2 + 2.484, abs=1e-3))  # 4.303 / √3


def test_a_run_without_a_dense_run_of_its_seed_and_training_has_no_difference() -> None:
    rows = [row("dense", 0, 80.0), row("N8-L2", 0, 81.0), row("N8-L2", 1, 99.0), row("N8-L4", 0, 90.0, epochs=9)]
    assert means(drawn(figures_of(rows)["difference_by_depth"])["N = 8"]) == [[(2, 1.0)]]
    assert not [name for name in figures_of(rows[1:]) if name.startswith("difference")]


def test_training_lengths_are_an_axis() -> None:
    rows = [
        row(f"{setting}-epochs={n}" if n > 1 else setting, 0, test + n, epochs=n, steps=100 * n, shown_images=3200 * n)
        for setting, test in (("dense", 70.0), ("N8-L2", 60.0), ("N8-L4", 50.0))
        for n in (1, 3)
    ]
    figures = figures_of(rows)
    panels = drawn(figures["accuracy_by_length"])
    assert list(panels) == ["N = 8"]
    assert means(panels["N = 8"]) == [
        *([(100, 61.0), (300, 63.0)], [(100, 51.0), (300, 53.0)]),
        [(100, 71.0), (300, 73.0)],
    ]
    assert means(drawn(figures["difference_by_length"])["N = 8"])[0] == [(100, -10.0), (300, -10.0)]


def test_the_loss_is_drawn_over_steps_and_over_multiply_adds() -> None:
    rows = [row(name, 0, 80.0, epochs=2, steps=100, shown_images=3200) for name in ("dense", "N8-L2")]
    curves = {each.run: [{"epoch": e, "loss": 1 / e, "val_top1": 70.0} for e in (1.0, 2.0)] for each in rows}
    figures = figures_of(rows, curves)
    moe, dense = drawn(figures["loss_by_steps"])["N = 8, no shared expert"].lines
    assert (list(moe.get_xdata()), list(moe.get_ydata())) == ([50, 100], [1.0, 0.5])
    assert list(dense.get_xdata()) == [50, 100]
    moe, dense = drawn(figures["loss_by_macs"])["N = 8, no shared expert"].lines
    assert list(moe.get_xdata()) == pytest.approx([1.5 * 3200 * 10_000_002 / 1e12, 3 * 3200 * 10_000_002 / 1e12])
    assert list(dense.get_xdata()) == pytest.approx([1.5 * 3200 * 1e7 / 1e12, 3 * 3200 * 1e7 / 1e12])


def test_each_setting_is_drawn_with_its_own_best_rate() -> None:
    rows = [
        row("dense", 0, 80.0, lr=0.1),
        row("dense-lr=0.2", 0, 85.0, lr=0.2),
        row("N8-L2", 0, 82.0, lr=0.1),
        row("N8-L2-lr=0.2", 0, 81.0, lr=0.2),
    ]
    panels = drawn(figures_of(rows)["difference_by_depth"])
    assert list(panels) == ["N = 8"]
    assert means(panels["N = 8"]) == [[(2, -3.0)]]
