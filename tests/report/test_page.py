import re
from html.parser import HTMLParser
from pathlib import Path

from tests.report.test_figures import example, measures
from vimoe.report.arm import Arm
from vimoe.report.page import Report, write_page
from vimoe.vit.cost import Cost
from vimoe.vit.plan import LayerPlan, Plan

EVIL = "<script>alert(1)</script>"


def page(tmp_path: Path) -> str:
    table = example(names=(EVIL, "&", "a", "b"))
    history = [{"epoch": e, "loss": 1 / e, "val_top1": 90.0 + e} for e in (1, 2, 3)]
    report = Report(
        title=f"Title {EVIL}",
        conclusion="It works.",
        arms=[Arm(f"dense {EVIL}", 96.7, 1.0, 360, Cost(600_000, 600_000, 10_500_000), 57.4)],
        counts=table,
        measures=measures(table),  # type: ignore[arg-type]
        plan=Plan((LayerPlan(1, (), reason="too little"), LayerPlan(3, ()), LayerPlan(5, (0, 1, 2, 3), reason=EVIL))),
        rows={"dense": history},
        recipes={"dense": f"output: {EVIL}"},
        command="vimoe demo --seed 0",
    )
    return write_page(report, tmp_path / "report.html").read_text()


def test_the_page_is_one_file_that_asks_the_network_for_nothing(tmp_path: Path) -> None:
    html = page(tmp_path)
    assert not re.findall(r"(?:src|href)\s*=\s*[\"'](?!#|data:)", html)
    assert "@import" not in html
    assert html.count("<svg") == 3


def test_names_from_outside_are_escaped(tmp_path: Path) -> None:
    html = page(tmp_path)
    assert EVIL not in html
    assert html.count("&lt;script&gt;") >= 5


def test_the_page_says_what_was_measured_and_decided(tmp_path: Path) -> None:
    html = page(tmp_path)
    for words in ("It works.", "96.7 ± 1.0", "0.60 M", "too little", "vimoe demo --seed 0", "360 test pictures"):
        assert words in html


def test_every_tag_is_closed(tmp_path: Path) -> None:
    void = {"meta", "br", "img", "link", "input", "hr"}
    stack: list[str] = []

    class Checker(HTMLParser):
        def handle_starttag(self, tag: str, attrs: object) -> None:
            if tag not in void:
                stack.append(tag)

        def handle_endtag(self, tag: str) -> None:
            assert stack.pop() == tag

        def handle_startendtag(self, tag: str, attrs: object) -> None:
            pass

    Checker().feed(page(tmp_path))
    assert not stack


def test_the_figures_are_written_beside_the_page(tmp_path: Path) -> None:
    page(tmp_path)
    assert {p.name for p in (tmp_path / "figures").iterdir()} == {"heatmaps.png", "depth.png", "curves.png"}
