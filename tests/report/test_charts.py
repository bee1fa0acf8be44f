import re

import pytest

from vimoe.report.charts import interval_bar, line_chart, load_chart, span_labels, span_of

EVIL = "<script>alert(1)</script>"


def test_a_bar_reaches_from_0_to_its_value_on_the_given_scale() -> None:
    bar = interval_bar(-2.0, -3.0, -1.0, (-5.0, 5.0))
    assert '<rect x="30.00%" width="20.00%"' in bar
    assert 'x1="20.00%" x2="40.00%"' in bar
    assert 'class="zero" x1="50.00%" x2="50.00%"' in bar


@pytest.mark.parametrize(
    ("value", "low", "high", "kind"),
    [(-2, -3, -1, "loss"), (2, 1, 3, "gain"), (2, -1, 5, "unsure"), (0, 0, 0, "unsure")],
)
def test_only_what_is_beyond_noise_has_a_colour(value: float, low: float, high: float, kind: str) -> None:
    assert f'class="bar {kind}"' in interval_bar(value, low, high, (-9, 9))


def test_the_scale_holds_0_and_all_values() -> None:
    low, high = span_of([-4.0, -1.0])
    assert low < -4
    assert high > 0
    assert span_of([]) == (-1.0, 1.0)


def test_the_ends_of_a_scale_are_named_unless_0_stands_there() -> None:
    assert re.findall(r">([^<>]+)<", span_labels((-2.0, 2.0))) == ["-2.0", "0", "+2.0"]
    assert re.findall(r">([^<>]+)<", span_labels((-9.0, 1.0))) == ["-9.0", "0"]
    assert re.findall(r">([^<>]+)<", span_labels((-1.0, 9.0))) == ["0", "+9.0"]


def test_lines_lie_within_their_chart_and_names_are_escaped() -> None:
    chart = line_chart({EVIL: [(1, 0.5), (2, 40.0)], "b": [(1, -3.0)]}, "epoch", "loss")
    assert EVIL not in chart
    assert "&lt;script&gt;" in chart
    places = [
        tuple(map(float, pair.split(","))) for line in re.findall(r'points="([^"]+)"', chart) for pair in line.split()
    ]
    assert len(places) == 3
    assert all(0 <= x <= 380 and 0 <= y <= 220 for x, y in places)
    assert places[1][1] < places[0][1] < places[2][1]
    assert chart.count("<circle") == 1


def test_ordered_lines_go_from_faint_to_strong() -> None:
    chart = line_chart({str(i): [(1, i), (2, i)] for i in range(3)}, "epoch", "used", ordered=True)
    assert re.findall(r'stroke-opacity="([\d.]+)"', chart) == ["0.20", "0.60", "1.00"]


def test_loads_are_stacked_to_the_whole() -> None:
    chart = load_chart([[0.25, 0.75], [1.0, 0.0]])
    first, second = re.findall(r'points="([^"]+)"', chart)
    assert first == "0.00,75.00 100.00,0.00 100.00,100.00 0.00,100.00"
    assert second == "0.00,0.00 100.00,0.00 100.00,0.00 0.00,75.00"
    assert "expert 0: 25% at first, 100% at last" in chart
    assert load_chart([[0.5, 0.5]]).count("<polygon") == 2


@pytest.mark.parametrize("value", [0.0, 1.7161505196405493, 9.571530068500177, 1e3, -3.0])
def test_a_single_value_has_an_axis_that_can_be_read(value: float) -> None:
    svg = line_chart({"a": [(1, value)]}, "epoch", "loss")
    labels = re.findall(r'text-anchor="end">([-\d.e+]+)<', svg)
    assert len(set(labels)) == len(labels) >= 2
    assert all(len(label) <= 7 for label in labels)
