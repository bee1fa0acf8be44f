from pathlib import Path

import numpy as np
import pytest
from matplotlib.figure import Figure

from vimoe.analysis.counts import RoutingCounts
from vimoe.analysis.patches import ExpertMap
from vimoe.analysis.specialisation import specialisation
from vimoe.report.expert_maps import expert_maps
from vimoe.report.plots import routing_heatmaps, specialisation_by_depth
from vimoe.report.saving import FORMATS, save_figure

NAMES = ("<script>alert(1)</script>", "&", "a", "b")
COUNTS = RoutingCounts((1, 3), (4, 4), NAMES, np.random.default_rng(0).integers(0, 20, (2, 4, 4)))
MEASURES = {layer: specialisation(COUNTS.layer(layer), 9) for layer in COUNTS.layers}


def maps() -> Figure:
    rng = np.random.default_rng(0)
    image = rng.integers(0, 256, (40, 60, 3), dtype=np.uint8)
    experts = {layer: rng.integers(0, 4, (5, 8)) for layer in COUNTS.layers}
    return expert_maps([ExpertMap(image, rng.integers(0, 4, (40, 60)), experts, (8, 8))], COUNTS)


def depth() -> Figure:
    return specialisation_by_depth(MEASURES)


@pytest.mark.parametrize("draw", [depth, maps])
def test_a_figure_is_written_in_every_format_and_the_same_each_time(draw: object, tmp_path: Path) -> None:
    for folder in ("one", "two"):
        save_figure(draw(), tmp_path / folder / "fig.ure")  # type: ignore[operator]
    for suffix in FORMATS:
        first = (tmp_path / "one" / f"fig.ure.{suffix}").read_bytes()
        assert first == (tmp_path / "two" / f"fig.ure.{suffix}").read_bytes()


def test_text_stays_text_and_class_names_are_escaped(tmp_path: Path) -> None:
    save_figure(routing_heatmaps(COUNTS, MEASURES), tmp_path / "maps")
    svg = (tmp_path / "maps.svg").read_text()
    assert "<script>" not in svg
    assert "&lt;script&gt;" in svg
