import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from matplotlib.figure import Figure

from vimoe.analysis.counts import RoutingCounts
from vimoe.analysis.patches import ExpertMap
from vimoe.analysis.specialisation import specialisation
from vimoe.report.expert_maps import expert_maps
from vimoe.report.heatmap import routing_heatmaps
from vimoe.report.plots import specialisation_by_depth
from vimoe.report.saving import FORMATS, embed, embed_pixels, save_figure

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


def test_an_embedded_figure_takes_font_and_colour_of_the_page_and_says_where_its_axes_lie() -> None:
    drawing = embed(routing_heatmaps(COUNTS, MEASURES), "maps", 'words "quoted"')
    assert drawing.svg.startswith('<svg role="img" aria-label="words &#34;quoted&#34;"')
    assert "<script>" not in drawing.svg
    assert "&lt;script&gt;" in drawing.svg
    assert "font-family" not in drawing.svg
    assert "#000000" not in drawing.svg
    assert "currentColor" in drawing.svg
    assert set(drawing.boxes) == {"block 1", "block 3"}
    left, top, width, height = (float(x) for x in re.findall(r":([\d.]+)%", drawing.boxes["block 3"]))
    assert 0 < left < left + width < 100
    assert 0 < top < top + height < 100


def test_no_id_is_in_two_embedded_figures() -> None:
    one, other = (set(re.findall(r'id="([^"]+)"', embed(depth(), name, "").svg)) for name in ("one", "other"))
    assert one
    assert not one & other
    assert embed(depth(), "one", "") == embed(depth(), "one", "")


def test_photographs_are_embedded_as_pixels() -> None:
    uri = embed_pixels(maps())
    assert uri.startswith("data:image/webp;base64,")
    assert uri == embed_pixels(maps())


def test_a_script_that_the_font_lacks_makes_no_noise(tmp_path: Path) -> None:
    counts = replace(COUNTS, class_names=("猫", "犬", "鳥", "魚"))
    save_figure(routing_heatmaps(counts, MEASURES), tmp_path / "maps")  # pytest makes a warning an error
    assert "猫" in (tmp_path / "maps.svg").read_text(encoding="utf-8")
