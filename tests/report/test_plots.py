import numpy as np
import pytest

from vimoe.analysis.counts import RoutingCounts
from vimoe.analysis.specialisation import specialisation
from vimoe.report.plots import order_by_expert, routing_heatmaps, training_curves
from vimoe.vit.plan import LayerPlan, Plan


def example(classes: int = 4, names: tuple[str, ...] | None = None) -> RoutingCounts:
    rng = np.random.default_rng(0)
    counts = rng.integers(0, 20, (3, classes, 4))
    counts[2] = 20 * np.eye(4, dtype=np.int64)[np.arange(classes) % 4][:, ::-1]
    return RoutingCounts((1, 3, 5), (4, 4, 4), names or tuple(f"c{i}" for i in range(classes)), counts)


def measures(table: RoutingCounts) -> dict[int, object]:
    return {layer: specialisation(table.layer(layer), 9) for layer in table.layers}


def test_rows_are_ordered_by_their_dominant_expert_and_by_faithfulness_to_it() -> None:
    shares = np.array([[0.1, 0.9], [0.8, 0.2], [0.4, 0.6], [1.0, 0.0]])
    assert order_by_expert(shares).tolist() == [3, 1, 0, 2]


def test_all_panels_share_one_colour_scale_from_0_to_1_and_the_last_layer_comes_first() -> None:
    table = example()
    plan = Plan((LayerPlan(1, ()), LayerPlan(3, ()), LayerPlan(5, (0, 1, 2, 3))))
    figure = routing_heatmaps(table, measures(table), plan)
    panels = [ax for ax in figure.axes if ax.images]
    assert [image.get_clim() for ax in panels for image in ax.images] == [(0, 1)] * 3
    assert [ax.get_title().split("\n")[0] for ax in panels] == [
        "block 5 (l = 1)  kept",
        "block 3 (l = 3)  pruned",
        "block 1 (l = 5)  pruned",
    ]
    shares = panels[0].images[0].get_array()
    assert np.asarray(shares) == pytest.approx(np.eye(4))
    assert [label.get_text() for label in panels[0].get_yticklabels()] == ["c3", "c2", "c1", "c0"]


def test_a_thousand_classes_are_drawn_without_names() -> None:
    table = example(classes=1000)
    panels = [ax for ax in routing_heatmaps(table, measures(table)).axes if ax.images]
    assert not panels[0].get_yticklabels()


def test_curves_show_every_run_by_name() -> None:
    rows = {name: [{"epoch": e, "loss": 1 / e, "val_top1": 90.0 + e} for e in (1, 2, 3)] for name in ("dense", "moe")}
    figure = training_curves(rows)
    assert [text.get_text() for text in figure.axes[1].get_legend().get_texts()] == ["dense", "moe"]
    assert len(figure.axes[0].lines) == 2
