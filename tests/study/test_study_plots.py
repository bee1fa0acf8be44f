from typing import Any

import pytest
from matplotlib.figure import Figure

from tests.study.support import row
from vimoe.study.study_plots import deepest, study_figures
from vimoe.study.study_rows import StudyRow

SETTINGS = ("dense", "wide2-L2", "N2-L1", "N2-L2", "N2-L1-shared", "N2-L2-shared", "N8-L2", "N8-L2-paper")
ROWS = [row(setting, seed, 80.0 + i + 0.5 * seed) for i, setting in enumerate(SETTINGS) for seed in range(2)]
CURVES = {each.run: [{"epoch": 1.0, "val_top1": 70.0}, {"epoch": 2.0, "val_top1": each.val}] for each in ROWS}


def drawn(figure: Figure) -> dict[str, dict[str, Any]]:
    """By panel title, by label, the points of each line that has one."""
    legend = dict(zip((t.get_text() for t in figure.legends[0].get_texts()), figure.legends[0].legend_handles))
    assert all(legend.values())
    return {ax.get_title(): ax for ax in figure.axes if ax.get_visible()}  # type: ignore[misc]


def means(ax: Any) -> list[list[tuple[float, float]]]:
    """The points of each curve of means, in the order of drawing; curves stand a little beside their place."""
    return [[(round(x), y) for x, y in zip(*c.lines[0].get_data(), strict=True)] for c in ax.containers]


@pytest.fixture(scope="module")
def figures() -> dict[str, Figure]:
    return study_figures(ROWS, CURVES)


def test_a_study_with_moe_runs_has_all_its_figures(figures: dict[str, Figure]) -> None:
    assert set(figures) == {
        *("accuracy_by_depth", "accuracy_by_parameters", "accuracy_by_macs", "accuracy_by_routing_degree"),
        *("specialisation_by_layer", "training_curves"),
    }
    assert "training_curves" not in study_figures(ROWS, {})
    assert study_figures(ROWS[:4], CURVES) == {}


def test_accuracy_by_depth_has_a_panel_for_each_n_and_variant(figures: dict[str, Figure]) -> None:
    panels = drawn(figures["accuracy_by_depth"])
    assert list(panels) == ["N = 2", "N = 8", "paper, N = 8"]
    without, shared, wide = means(panels["N = 2"])
    assert without == [(1, 82.25), (2, 83.25)]  # means over the two seeds
    assert shared == [(1, 84.25), (2, 85.25)]
    assert wide == [(2, 81.25)]
    dense = panels["N = 2"].lines[0].get_ydata()
    assert list(dense) == [80.25, 80.25]
    seeds = panels["N = 2"].collections
    assert any(sorted(float(y) for y in c.get_offsets()[:2, 1]) == [80.0 + 2, 80.5 + 2] for c in seeds)


def test_a_planned_run_lies_where_its_plan_left_it() -> None:
    planned = [row("N2-L2-planned", 0, 90.0, kept=1), row("N2-L2-planned", 1, 91.0, kept=0)]
    figures = study_figures([*ROWS, *planned, row("N8-L4-planned", 0, 50.0, kept=2)], CURVES)
    without, _, _, after = means(drawn(figures["accuracy_by_depth"])["N = 2"])
    assert without == [(1, 82.25), (2, 83.25)]
    assert after == [(0, 91.0), (1, 90.0)]
    assert [t.get_text() for t in figures["accuracy_by_depth"].legends[0].get_texts()][-1].startswith("planned")


def test_a_control_that_was_trained_otherwise_stays_out() -> None:
    rows = [row("dense", 0, 80.0, lr=0.1), row("dense-lr=0.2", 0, 10.0, lr=0.2), row("N8-L2", 0, 81.0, lr=0.1)]
    panels = drawn(study_figures(rows, {})["accuracy_by_depth"])
    assert list(panels["N = 8"].lines[0].get_ydata()) == [80.0, 80.0]


def test_specialisation_is_that_of_the_runs_with_the_most_moe_layers(figures: dict[str, Figure]) -> None:
    assert {(r.setting, r.seed) for r in deepest(ROWS)} == {
        (setting, seed) for setting in ("N2-L2", "N2-L2-shared", "N8-L2", "N8-L2-paper") for seed in range(2)
    }
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
    assert means(drawn(study_figures(alone, {})["accuracy_by_depth"])["N = 8"]) == [[(2, 81.0)]]
