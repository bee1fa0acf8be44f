from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from tests.analysis.examples import analysis, measure
from tests.report.examples import rows
from tests.report.names import NAMES
from vimoe.analysis.analysis_result import Step
from vimoe.analysis.paired import Estimate
from vimoe.report.plots import (
    COLOURS,
    PRUNED,
    ablations,
    load_over_time,
    removal_curve,
    short,
    specialisation_by_depth,
    training_curves,
)
from vimoe.report.saving import embed
from vimoe.vit.plan import LayerPlan, Plan


def words(figure: Any) -> list[str]:
    return [text.get_text() for found in figure.legends for text in found.get_texts()]


def step(layer: int, lost: float, accepted: bool, drop: tuple[int, ...] = ()) -> Step:
    return Step(
        layer,
        drop,
        Estimate(lost, lost - 1, lost + 2),
        Estimate(lost, lost - 1, lost + 2),
        "accepted" if accepted else "needed",
    )


def test_a_name_is_one_short_line() -> None:
    assert short("a\n b") == "a b"
    assert short("x" * 99, 10) == "x" * 9 + "…"


def test_curves_show_every_run_by_name() -> None:
    runs = {name: [{"epoch": e, "loss": 1 / e, "val_top1": 90.0 + e} for e in (1, 2, 3)] for name in ("dense", "moe")}
    figure = training_curves(runs)
    assert words(figure) == ["dense", "moe"]
    assert [ax.get_ylabel() for ax in figure.axes] == ["training loss", "validation top-1 %"]
    assert [list(line.get_ydata()) for line in figure.axes[1].lines] == [[91, 92, 93]] * 2


def test_the_experts_in_use_stand_beside_the_curves_of_a_run_that_has_them() -> None:
    figure = training_curves({"moe": rows()}, rows())
    assert figure.axes[2].get_ylabel() == "experts in use (effective number)"
    assert [list(line.get_ydata()) for line in figure.axes[2].lines] == [[1.75] * 3] * 2
    assert figure.axes[2].get_ylim() == (0, 1.03 * 2), "as high as there are experts: collapse cannot look like use"


def test_loads_are_stacked_to_the_whole_also_after_one_epoch() -> None:
    for epochs in (1, 3):
        figure = load_over_time(rows(epochs))
        assert [ax.get_title() for ax in figure.axes] == ["block 2", "block 1"]
        first, second = (area.get_paths()[0].get_extents() for area in figure.axes[0].collections)
        assert (first.y0, first.y1, second.y0, second.y1) == (0, 0.25, 0.25, 1)
        assert second.x1 > second.x0
        assert words(figure) == ["expert 0", "expert 1"]


def test_the_order_of_removal_is_a_curve_with_intervals_of_what_was_accepted_and_refused() -> None:
    steps = (step(1, 0.5, True), step(2, 6.0, False), step(2, 0.5, True, drop=(1,)))
    ax = (figure := removal_curve(replace(analysis(), steps=steps))).axes[0]
    accepted, refused = ax.containers
    assert accepted.lines[0].get_xydata().tolist() == [[1, 89.5]]
    assert refused.lines[0].get_xydata().tolist() == [[2, 84.0]]
    assert refused.lines[2][0].get_segments()[0].tolist() == [[2, 82.0], [2, 85.0]]
    assert [label.get_text() for label in ax.get_xticklabels()] == ["–\n0", "1\n1", "2\n1"]
    assert ax.get_ylabel() == "top-1 % on val"
    assert words(figure) == ["intact model", "lowest score allowed", "step accepted", "step refused"]


def test_the_curve_has_the_dense_controls_line_and_the_lowest_score_allowed_where_there_are_such() -> None:
    figure = removal_curve(replace(analysis(), max_drop=2.0), ("dense $x$", Estimate(91.0, 88.0, 94.0)))
    assert words(figure)[:3] == ["intact model", "dense $x$", "lowest score allowed"]
    levels = [line.get_ydata()[0] for line in figure.axes[0].lines[:3]]
    assert levels == [90.0, 91.0, 88.0]
    figure.draw_without_rendering()


def test_the_curves_legend_fits_into_a_figure_of_few_layers() -> None:
    steps = (step(1, 0.5, accepted=True), step(2, 6.0, accepted=False))
    found = replace(analysis(), max_drop=2.0, steps=steps)
    figure = removal_curve(found, ("dense, as many steps", Estimate(91.0, 88.0, 94.0)))
    figure.draw_without_rendering()
    box, whole = figure.legends[0].get_window_extent(), figure.bbox
    assert whole.x0 <= box.x0 < box.x1 <= whole.x1
    assert box.y1 <= whole.y1


def test_only_what_is_beyond_noise_has_a_colour() -> None:
    found = analysis()
    last = found.layers[-1]
    unsure = replace(last, ablations=tuple(replace(k, lost=Estimate(1.0, -1.0, 3.0)) for k in last.ablations))
    figure = ablations(replace(found, layers=(found.layers[0], unsure)))
    assert len(figure.axes) == 5
    dots = figure.axes[0].collections[-1]
    assert dots.get_offsets()[:, 0].tolist() == [-3.0, -1.0]
    colours = ["#" + bytes((255 * c[:3]).round().astype(np.uint8)).hex().upper() for c in dots.get_facecolors()]
    assert colours == [COLOURS[1], PRUNED]


def test_specialisation_stands_by_block_with_its_interval() -> None:
    found = {2: measure(0.6), 1: measure(0.05)}
    ax = specialisation_by_depth(found, Plan((LayerPlan(1, ()), LayerPlan(2, (0,))))).axes[0]
    assert [bar.get_height() for bar in ax.patches] == pytest.approx([5, 60])
    ends = [segment[:, 1].tolist() for segment in ax.collections[0].get_segments()]
    assert ends == [pytest.approx([0, 15]), pytest.approx([50, 70])]


@pytest.mark.parametrize("name", NAMES)
def test_any_run_name_can_be_drawn(name: str) -> None:
    history = [{"epoch": 1, "loss": 1.0, "val_top1": 90.0}]
    assert embed(training_curves({name: history, "other": history}), "name", "").svg
    assert embed(removal_curve(analysis(), (name, Estimate(90, 80, 95))), "name", "").svg
