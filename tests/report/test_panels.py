import pytest
from matplotlib.figure import Figure

from tests.report.names import NAMES
from vimoe.report.panels import Panel, Series, mean_and_std, panels_over_seeds
from vimoe.report.saving import embed

SERIES = Series("with", [(2, [1.0, 3.0]), (1, [0.0, 0.5])], colour=0)
WIDE = Series("without", [(1, [9.0])], dashed=True, colour=1)


def figure() -> Figure:
    rows = [
        [Panel("a", [SERIES, WIDE], ("level", [5.0, 7.0])), Panel("b", [SERIES])],
        [Panel("c", [Series("shaded", [(1, [1.0])], shade=1.0)])],
    ]
    return panels_over_seeds(rows, "x", "y")


def test_mean_and_spread_between_seeds() -> None:
    assert mean_and_std([1.0, 3.0]) == (2.0, pytest.approx(2**0.5))
    assert mean_and_std([4.0]) == (4.0, 0.0)


def test_means_bars_and_every_seed_are_drawn() -> None:
    ax = figure().axes[0]
    curve = ax.containers[0]
    assert [(round(x), y) for x, y in zip(*curve.lines[0].get_data(), strict=True)] == [(1, 0.25), (2, 2.0)]
    low_high = [tuple(segment[:, 1]) for segment in curve.lines[2][0].get_segments()]
    assert low_high[1] == pytest.approx((2.0 - 2**0.5, 2.0 + 2**0.5))
    seeds = [sorted((round(x), y) for x, y in found.get_offsets()) for found in ax.collections]
    assert [(1, 0.0), (1, 0.5), (2, 1.0), (2, 3.0)] in seeds


def test_a_level_is_a_line_with_a_band() -> None:
    ax = figure().axes[0]
    assert list(ax.lines[0].get_ydata()) == [6.0, 6.0]
    band = ax.patches[0].get_extents().transformed(ax.transData.inverted())
    assert (band.y0, band.y1) == (pytest.approx(6 - 2**0.5), pytest.approx(6 + 2**0.5))


def test_all_that_is_drawn_lies_within_the_common_axes() -> None:
    drawn = figure()
    low, high = drawn.axes[0].get_ylim()
    assert low < 0.25 - mean_and_std([0.0, 0.5])[1]
    assert high > 9.0
    for ax in drawn.axes[:3]:
        assert ax.get_ylim() == (low, high)
        assert list(ax.get_xticks()) == [1, 2]


def test_the_legend_names_each_label_once_and_empty_places_are_hidden() -> None:
    drawn = figure()
    assert [text.get_text() for text in drawn.legends[0].get_texts()] == ["level", "with", "without", "shaded"]
    panel = Panel("a", [SERIES])
    wide = panels_over_seeds([[panel, panel, panel], [panel]], "x", "y")
    assert [ax.get_visible() for ax in wide.axes] == [True, True, True, True, False, False]


def test_ragged_rows_of_panels_are_packed() -> None:
    panel = Panel("a", [SERIES])
    drawn = panels_over_seeds([[panel, panel, panel], [panel], [panel], [panel]], "x", "y")
    assert [ax.get_visible() for ax in drawn.axes] == 6 * [True]
    column = panels_over_seeds([[panel], [panel], [panel]], "x", "y")
    assert {ax.get_subplotspec().get_topmost_subplotspec().get_gridspec().nrows for ax in column.axes} == {1}


@pytest.mark.parametrize("places", [(0, 1, 2, 4, 8, 12), (1, 2), (0, 1)])
def test_curves_beside_each_other_stay_nearer_to_their_place_than_to_the_next(places: tuple[int, ...]) -> None:
    series = [Series(str(i), [(x, [1.0]) for x in places], colour=i) for i in range(4)]
    drawn = panels_over_seeds([[Panel("a", series)]], "x", "y")
    shown = [container.lines[0].get_xdata() for container in drawn.axes[0].containers]
    assert all([round(x) for x in curve] == list(places) for curve in shown)
    assert len({round(curve[0], 6) for curve in shown}) == 4


def test_curves_without_dots_are_plain_lines_on_an_axis_of_any_base() -> None:
    drawn = panels_over_seeds([[Panel("a", [SERIES])]], "x", "y", log_base=2, dots=False)
    ax = drawn.axes[0]
    assert ax.get_xscale() == "log"
    assert not ax.containers
    assert list(ax.lines[0].get_ydata()) == [0.25, 2.0]


@pytest.mark.parametrize("name", NAMES)
def test_any_name_of_a_variant_can_be_drawn(name: str) -> None:
    series = Series(name, [(1, [1.0, 2.0])], colour=0)
    panel = Panel(name, [series], (name + "!", [1.0]))
    assert embed(panels_over_seeds([[panel]], "x", "y", log_base=2), "name", "").svg
