import matplotlib
import numpy as np
import pytest

from tests.report.names import NAMES
from vimoe.analysis.counts import RoutingCounts
from vimoe.analysis.specialisation import Specialisation, specialisation
from vimoe.report.heatmap import FEW, NAMED, class_shares, routing_heatmaps, row_order
from vimoe.report.saving import embed
from vimoe.vit.plan import LayerPlan, Plan


def example(classes: int = 4, names: tuple[str, ...] | None = None, groups: tuple[str, ...] = ()) -> RoutingCounts:
    rng = np.random.default_rng(0)
    counts = rng.integers(0, 20, (3, classes, 4)) + 5
    counts[2] = 20 * np.eye(4, dtype=np.int64)[np.arange(classes) % 4][:, ::-1]
    return RoutingCounts((1, 3, 5), (4, 4, 4), names or tuple(f"c{i}" for i in range(classes)), counts, groups)


def measures(table: RoutingCounts) -> dict[int, Specialisation]:
    return {layer: specialisation(table.layer(layer), 9) for layer in table.layers}


def of_table(table: list[list[int]], groups: tuple[str, ...] = ()) -> RoutingCounts:
    names = tuple(f"c{i}" for i in range(len(table)))
    return RoutingCounts((7,), (len(table[0]),), names, np.array([table]), groups)


def test_rows_are_shares_and_a_class_that_never_occurred_has_none() -> None:
    shares = class_shares(np.array([[0, 10], [8, 2], [0, 0], [5, 5]]))
    assert shares.tolist() == [[0, 1], [0.8, 0.2], [0, 0], [0.5, 0.5]]


def test_rows_are_ordered_by_their_dominant_expert_and_by_faithfulness_to_it() -> None:
    assert row_order(of_table([[1, 9], [8, 2], [4, 6], [10, 0]]), 7).tolist() == [3, 1, 0, 2]


def test_many_classes_are_ordered_by_super_class_first() -> None:
    groups = ("plant", "animal")
    few = of_table([[1, 9], [9, 1]], groups)
    assert row_order(few, 7).tolist() == [1, 0]
    table = [[9, 1] if label % 3 else [1, 9] for label in range(NAMED + 1)]
    many = of_table(table, tuple(groups[label % 2] for label in range(NAMED + 1)))
    order = row_order(many, 7).tolist()
    assert [label % 2 for label in order] == sorted((label % 2 for label in order), reverse=True)
    dominant = [label % 3 == 0 for label in order if label % 2]
    assert dominant == sorted(dominant)


def test_all_panels_share_one_colour_scale_from_0_to_1_and_the_last_layer_comes_first() -> None:
    table = example()
    plan = Plan((LayerPlan(1, ()), LayerPlan(3, ()), LayerPlan(5, (0, 1, 2, 3))))
    panels = [ax for ax in routing_heatmaps(table, measures(table), plan).axes if ax.images]
    assert [ax.get_title().split("\n")[0] for ax in panels] == ["block 5, kept", "block 3, pruned", "block 1, pruned"]
    assert [ax.get_label() for ax in panels] == ["block 5", "block 3", "block 1"]
    blues = matplotlib.colormaps["Blues"]
    assert np.asarray(panels[0].images[0].get_array()) == pytest.approx(blues(np.eye(4)))
    assert [label.get_text() for label in panels[0].get_yticklabels()] == ["c3", "c2", "c1", "c0"]
    shares = class_shares(table.layer(3))[row_order(table, 3)]
    assert np.asarray(panels[1].images[0].get_array()) == pytest.approx(blues(shares))


def test_one_layer_alone_is_the_same_panel() -> None:
    table = example()
    (panel,) = [ax for ax in routing_heatmaps(table, measures(table), blocks=[3]).axes if ax.images]
    everywhere = next(ax for ax in routing_heatmaps(table, measures(table)).axes if ax.get_label() == "block 3")
    assert (panel.images[0].get_array() == everywhere.images[0].get_array()).all()


def test_a_class_with_few_images_is_grey_and_the_figure_says_so() -> None:
    table = of_table([[FEW, 0], [0, FEW - 1], [0, 0]])
    figure = routing_heatmaps(table, measures(table))
    (panel,) = [ax for ax in figure.axes if ax.images]
    drawn = np.asarray(panel.images[0].get_array())
    by_label = {label: drawn[row] for row, label in enumerate(row_order(table, 7).tolist())}
    assert by_label[0][0] == pytest.approx(matplotlib.colormaps["Blues"](1.0))
    assert by_label[1][1] == pytest.approx(matplotlib.colormaps["Greys"](0.6))
    words = [text.get_text() for found in figure.legends for text in found.get_texts()]
    assert words == [f"class with fewer than {FEW} images"]
    assert not routing_heatmaps(example(), measures(example())).legends


def test_many_classes_are_drawn_without_names_in_a_grid_and_with_them_alone() -> None:
    table = example(classes=100)
    panels = [ax for ax in routing_heatmaps(table, measures(table)).axes if ax.images]
    assert not panels[0].get_yticklabels()
    (panel,) = [ax for ax in routing_heatmaps(table, measures(table), blocks=[1]).axes if ax.images]
    assert len(panel.get_yticklabels()) == 100


def test_super_classes_are_named_where_classes_are_not() -> None:
    groups = ("animal",) * 40 + ("plant",) * 60
    table = example(classes=100, groups=groups)
    panel = next(ax for ax in routing_heatmaps(table, measures(table)).axes if ax.images)
    assert [label.get_text() for label in panel.get_yticklabels()] == ["animal", "plant"]
    assert list(panel.get_yticks()) == [19.5, 69.5]
    alone = next(ax for ax in routing_heatmaps(table, measures(table), blocks=[1]).axes if ax.images)
    assert len(alone.get_yticklabels()) == 100
    assert [(text.get_text(), text.get_position()[1]) for text in alone.texts] == [("animal", 19.5), ("plant", 69.5)]


def test_names_of_small_super_classes_give_way_where_they_would_overlap() -> None:
    groups = ("animal",) * 298 + ("fungus",) * 3 + ("moss",) * 2 + ("plant",) * 297
    figure = routing_heatmaps((table := example(classes=600, groups=groups)), measures(table))
    figure.draw_without_rendering()
    panel = next(ax for ax in figure.axes if ax.images)
    assert [label.get_text() for label in panel.get_yticklabels()] == ["animal", "fungus", "plant"]


def test_the_colour_scale_ends_at_the_highest_share_of_any_layer() -> None:
    even, table = np.full((4, 8), 10), np.full((2, 4, 8), 10)
    table[1, 0, 0] = 45  # 45 of 115
    counts = RoutingCounts((2, 3), (8, 8), tuple("abcd"), table)
    for blocks in (None, [2], [3]):
        figure = routing_heatmaps(counts, measures(counts), blocks=blocks)
        assert figure.axes[-1].get_ylim() == (0.0, 0.4)
    assert class_shares(even).max() < 0.4


def test_a_grid_of_twelve_fits_its_rows() -> None:
    """No panel's title or names reach into another panel."""
    names = tuple(f"a rather long class name {i}" for i in range(10))
    counts = RoutingCounts(tuple(range(12)), (8,) * 12, names, np.ones((12, 10, 8), dtype=np.int64))
    figure = routing_heatmaps(counts, {n: specialisation(counts.layer(n), 9) for n in range(12)})
    figure.draw_without_rendering()
    boxes = [ax.get_tightbbox() for ax in figure.axes if ax.images]
    assert len(boxes) == 12
    assert not any(a.overlaps(b) for i, a in enumerate(boxes) for b in boxes[:i])
    assert all(ax.get_position().height * figure.get_figheight() > 1.2 for ax in figure.axes if ax.images)


@pytest.mark.parametrize("name", NAMES)
def test_any_class_name_can_be_drawn(name: str) -> None:
    table = example(4, (name, "b", "c", "d"))
    figure = routing_heatmaps(table, measures(table), blocks=[5])
    assert embed(figure, "name", "").svg
    panel = next(ax for ax in figure.axes if ax.images)
    shown = panel.get_yticklabels()[3].get_text()
    assert shown == " ".join(name.split()) or (len(shown) == 28 and name.startswith(shown[:-1]))
    assert panel.get_position().width * figure.get_figwidth() > 1.5
