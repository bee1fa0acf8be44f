import functools
import re
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest

from tests.analysis.examples import analysis
from tests.report.examples import EVIL, report, rows
from vimoe.analysis.analysis_result import Analysis
from vimoe.analysis.counts import RoutingCounts
from vimoe.analysis.paired import Estimate
from vimoe.analysis.patches import ExpertMap
from vimoe.analysis.specialisation import specialisation
from vimoe.report.gallery import thumbnail
from vimoe.report.page import Report, figures, nearest, page, write_page
from vimoe.report.saving import FORMATS
from vimoe.vit.plan import LayerPlan, Plan


def of_patches() -> Report:
    rng = np.random.default_rng(0)
    one = ExpertMap(
        rng.integers(0, 256, (40, 60, 3), dtype=np.uint8),
        rng.integers(0, 2, (40, 60)),
        {1: rng.integers(0, 2, (5, 8)), 2: rng.integers(0, 2, (5, 8))},
        (8, 8),
    )
    return report(analysis=replace(analysis(), metric="pixels", unit="patch"), maps=[one])


def bare() -> Analysis:
    """No ablations, no steps, no neighbours."""
    layers = tuple(replace(layer, ablations=()) for layer in analysis().layers)
    return replace(analysis(), layers=layers, neighbours=(), steps=(), paths={})


EVERY = {
    "everything": report(),
    "the least": report(analysis=bare(), images={}, tables=[], rows={}, recipes={}),
    "a segmentation run": of_patches(),
    "a control": report(control=(f"dense {EVIL}", Estimate(91.0, 88.0, 94.0)), tables=[]),
    "a plan that leaves all as it is": report(plan=Plan(())),
}


@functools.cache
def html_of(name: str) -> str:
    return page(EVERY[name])


@pytest.mark.parametrize("name", EVERY)
def test_the_page_is_one_file_that_asks_the_network_for_nothing(name: str) -> None:
    html = html_of(name)
    assert not re.findall(r"(?:src|srcset|href)\s*=\s*[\"'](?!#|data:)", html)
    assert "@import" not in html
    assert not re.findall(r"url\((?!#)", html)
    assert "default-src 'none'" in html


@pytest.mark.parametrize("name", EVERY)
def test_names_from_outside_are_escaped(name: str) -> None:
    html = html_of(name)
    assert EVIL not in html
    assert html.count("&lt;script&gt;") >= 4
    assert html.count("<script") == 2


@pytest.mark.parametrize("name", EVERY)
def test_every_tag_is_closed_every_id_is_its_own_and_every_link_leads_somewhere(name: str) -> None:
    void = {"meta", "br", "img", "link", "input", "hr", "source"}
    stack: list[str] = []
    ids: list[str] = []
    links: list[str] = []

    class Checker(HTMLParser):
        def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
            if tag not in void:
                stack.append(tag)
            self.handle_startendtag(tag, attrs)

        def handle_endtag(self, tag: str) -> None:
            assert stack.pop() == tag

        def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
            named = dict(attrs)
            ids.extend([str(named["id"])] if "id" in named else [])
            links.extend([str(named["href"])[1:]] if str(named.get("href", "")).startswith("#") else [])

    Checker().feed(html_of(name))
    assert not stack
    assert len(ids) == len(set(ids))
    assert set(links) <= set(ids)
    assert {"block-1", "block-2"} <= set(links)


def test_the_page_says_what_was_measured_and_decided() -> None:
    html = html_of("everything")
    for words in (
        "It works.",
        "as it is",
        "Dispensable: too little.",
        "60 % (50 to 70)",
        "-4.5 (-6.5 to -2.5)",
        "the second choice instead of the first",
        "layer depth l = 1",
        "seed: 3",
        "a/0.png",
    ):
        assert words in html, words
    assert html.index('id="results"') < html.index('id="block-2"') < html.index('id="block-1"')


def test_every_layer_has_one_row_in_one_table_instead_of_a_sentence_each() -> None:
    html = html_of("everything")
    assert html.count("-5.5 (-9.0 to -2.0)") == 1
    assert "edited by hand" not in html
    by_hand = html_of("a plan that leaves all as it is")
    assert by_hand.count("keep, edited by hand") == 2
    assert by_hand.count("Edited by hand: the analysis decided otherwise.") == 2


def test_each_plot_of_the_page_is_the_figure_that_is_written_beside_it() -> None:
    """The same texts stand in both."""
    made = report(control=("dense control", Estimate(91.0, 88.0, 94.0)))
    html = page(made)
    for figure in figures(made).values():
        for ax in figure.axes:
            for text in (ax.get_title().split("\n")[0], ax.get_xlabel(), ax.get_ylabel().split("\n")[0]):
                assert text in html
    assert "dense control" in html
    assert html.count("<svg role=") == 6 + 2  # six figures, and each of two layers by itself


def test_a_name_that_is_no_mathematics_is_drawn_as_it_is() -> None:
    counts = RoutingCounts((1, 2), (2, 2), ("$x$", "a_b^c$"), report().counts.counts)
    html = page(report(counts=counts, rows={"$\\frac{": rows(), "other": rows()}))
    assert html.count(">$x$</text>") == 4  # two panels together, two alone
    assert ">$\\frac{</text>" in html


def test_each_image_is_embedded_once_however_often_it_is_shown() -> None:
    html = html_of("everything")
    for place in range(4):
        assert html.count(f'id="image-{place}"') == 1
        assert html.count(f'href="#image-{place}"') == 2  # in two layers
    for image in report().images.values():
        assert html.count(image.uri) == 1


def test_a_segmentation_run_shows_its_expert_maps() -> None:
    html = html_of("a segmentation run")
    assert html.count("data:image/webp;base64,") == 1
    assert "share of a class's patches" in html
    assert "each patch of an image" in html


def test_a_hundred_classes_with_full_galleries_stay_under_5_mb() -> None:
    rng = np.random.default_rng(0)
    layers, experts, classes = 12, 16, 100
    table = RoutingCounts(
        tuple(range(layers)),
        (experts,) * layers,
        tuple(f"a class with a name of its own, number {i}" for i in range(classes)),
        rng.integers(0, 50, (layers, classes, experts)),
    )
    measured = specialisation(table.layer(0), 9)
    model = analysis().layers[0]
    cards = tuple(
        replace(model.experts[0], expert=e, confident=tuple(range(8)), unsure=tuple(range(8, 16)))
        for e in range(experts)
    )
    alike = ((0.5,) * experts,) * experts
    everything = replace(
        analysis(),
        class_names=table.class_names,
        layers=tuple(
            replace(model, layer=n, specialisation=measured, experts=cards, output_similarity=alike)
            for n in range(layers)
        ),
        neighbours=(),
    )
    noise = [rng.integers(0, 256, (64, 64, 3), dtype=np.uint8) for _ in range(20)]  # nothing compresses worse
    drawn = [thumbnail(image, 0) for image in noise]
    made = report(
        counts=table,
        plan=Plan(tuple(LayerPlan(n, ()) for n in range(layers))),
        analysis=everything,
        images={place: drawn[place % 20] for place in range(900)},
        rows={"training": rows(100)},
    )
    assert len(page(made).encode()) < 5e6


def test_the_same_report_gives_the_same_bytes() -> None:
    assert page(report()) == page(report())


def test_the_figures_are_written_beside_the_page_in_every_format(tmp_path: Path) -> None:
    path = write_page(report(), tmp_path / "report.html")
    assert path.read_text(encoding="utf-8") == page(report())
    names = {
        f"{name}.{suffix}"
        for name in ("heatmaps", "depth", "removal", "curves", "load", "ablations")
        for suffix in FORMATS
    }
    assert {p.name for p in (tmp_path / "figures").iterdir()} == names


def test_the_expert_maps_are_a_figure_for_papers_too() -> None:
    assert "expert_maps" in figures(of_patches())


def test_there_are_only_figures_of_what_is_known() -> None:
    assert set(figures(EVERY["the least"])) == {"heatmaps", "depth"}


def test_an_expert_has_a_card_with_its_nearest_one_and_an_unused_one_has_none() -> None:
    last = analysis().layers[-1]
    assert nearest(last, 1) == (0, 0.4)
    html = html_of("everything")
    assert html.index("Expert 1 <span>75.0 %") < html.index("Expert 0 <span>25.0 %")  # by load
    assert "most similar outputs: expert 0 (similarity 0.40" in html
    idle = replace(last.experts[0], load=0.0, classes=(), confident=(), unsure=())
    last = replace(last, experts=(idle, last.experts[1]))
    assert nearest(last, 1) is None
    html = page(report(analysis=replace(analysis(), layers=(analysis().layers[0], last))))
    html = html[html.index('id="block-2"') : html.index('id="block-1"')]
    assert "Expert 0 <span>" not in html
    assert "(nothing reached expert 0)" in html
    assert "most similar outputs" not in html
