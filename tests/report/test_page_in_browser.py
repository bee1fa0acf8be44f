"""The page in headless Chromium, as its readers have it."""

import re
import shutil
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

from tests.report.examples import EVIL, report
from tests.report.test_page import of_patches
from vimoe.analysis.counts import RoutingCounts
from vimoe.report.page import Report, page

playwright = pytest.importorskip("playwright.sync_api")
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
pytestmark = [
    pytest.mark.browser,
    pytest.mark.skipif(CHROMIUM is None, reason="there is no chromium"),
]

HUNDRED = tuple(f"species {i}" for i in range(100))


def of_a_hundred_classes() -> Report:
    table = np.random.default_rng(0).integers(0, 9, (2, 100, 2))
    return report(counts=RoutingCounts((1, 2), (2, 2), HUNDRED, table))


PAGES = {"images": report(), "patches": of_patches(), "hundred": of_a_hundred_classes()}


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with playwright.sync_playwright() as started:
        chromium = started.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield chromium
        chromium.close()


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    folder = tmp_path_factory.mktemp("pages")
    for name, made in PAGES.items():
        (folder / f"{name}.html").write_text(page(made), encoding="utf-8")
    return {name: (folder / f"{name}.html").as_uri() for name in PAGES}


def opened(browser: Any, url: str, width: int = 1440, scheme: str = "light", **settings: Any) -> Any:
    """The page, once it is known that nothing went wrong while it loaded."""
    shown = browser.new_page(viewport={"width": width, "height": 900}, color_scheme=scheme, **settings)
    trouble: list[str] = []
    shown.on("console", lambda message: trouble.append(message.text))
    shown.on("pageerror", lambda error: trouble.append(str(error)))
    shown.on("dialog", lambda dialog: trouble.append(dialog.message))
    shown.on("request", lambda asked: trouble.append(asked.url) if not asked.url.startswith(("data:", url)) else None)
    shown.goto(url)
    shown.trouble = trouble
    assert not trouble
    return shown


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [390, 1440])
@pytest.mark.parametrize("name", list(PAGES))
def test_it_loads_without_errors_or_requests_and_fits_its_window(
    browser: Any, written: dict[str, str], name: str, width: int, scheme: str
) -> None:
    shown = opened(browser, written[name], width, scheme)
    for details in shown.locator("details").all():
        details.evaluate("element => element.open = true")
    assert shown.evaluate("document.documentElement.scrollWidth") == width
    sizes = shown.evaluate(
        """[...document.querySelectorAll("main *, nav *")]
             .filter(e => [...e.childNodes].some(n => n.nodeType === 3 && n.textContent.trim()))
             .filter(e => e.getClientRects().length && !e.closest("svg"))
             .map(e => parseFloat(getComputedStyle(e).fontSize))"""
    )
    assert min(sizes) >= 10.5
    assert not shown.trouble
    shown.close()


def heatmap(shown: Any, number: int) -> Any:
    """A heatmap in the middle of the window, at rest: scrolling puts its words away."""
    whole = shown.locator(f"#block-{number} .whole")
    whole.evaluate("element => element.scrollIntoView({block: 'center'})")
    shown.wait_for_timeout(150)
    return whole


def contrast(one: str, other: str) -> float:
    """WCAG 2.1's contrast of two colours `rgb(r, g, b)`."""

    def luminance(colour: str) -> float:
        values = np.array([int(x) for x in colour[4:-1].split(",")]) / 255
        linear = np.where(values <= 0.04045, values / 12.92, ((values + 0.055) / 1.055) ** 2.4)
        return float(linear @ [0.2126, 0.7152, 0.0722])

    dark, light = sorted((luminance(one), luminance(other)))
    return (light + 0.05) / (dark + 0.05)


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_text_stands_out_from_the_page(browser: Any, written: dict[str, str], scheme: str) -> None:
    shown = opened(browser, written["images"], scheme=scheme)

    def colour(selector: str, kind: str = "color") -> str:
        return str(shown.locator(selector).first.evaluate(f"element => getComputedStyle(element).{kind}"))

    ground = colour("body", "backgroundColor")
    for selector in ("body", ".soft", "main a", "nav a.pruned"):
        assert contrast(colour(selector), ground) >= 4.5
    drawn = [colour(f"#block-2 .drawing {part}", "fill") for part in ("text", "svg")]
    assert all(contrast(found, ground) >= 4.5 for found in drawn)
    shown.close()


def test_the_heatmap_answers_to_the_pointer_and_to_the_arrow_keys(browser: Any, written: dict[str, str]) -> None:
    shown = opened(browser, written["images"])
    tip, whole = shown.locator("#tip"), heatmap(shown, 2)
    assert not tip.is_visible()
    size = whole.bounding_box()
    whole.hover(position={"x": 0.75 * size["width"], "y": 0.75 * size["height"]})
    assert tip.inner_text() == "a → expert 1\n100 % of the class: 20 of 20 images"
    whole.focus()
    whole.press("ArrowUp")
    assert tip.inner_text() == f"{EVIL} → expert 1\n5.0 % of the class: 1 of 20 images"
    whole.press("ArrowLeft")
    assert tip.inner_text() == f"{EVIL} → expert 0\n95 % of the class: 19 of 20 images"
    shown.mouse.move(5, 500)
    assert not tip.is_visible()
    assert not shown.trouble
    shown.close()


def test_the_heatmap_answers_to_a_tap(browser: Any, written: dict[str, str]) -> None:
    shown = opened(browser, written["patches"], 390, has_touch=True)
    heatmap(shown, 1).tap(position={"x": 10, "y": 10})
    assert shown.locator("#tip").inner_text() == "a → expert 0\n60 % of the class: 12 of 20 patches"
    shown.close()


def test_the_navigation_leads_to_a_layer_and_says_where_the_reader_is(browser: Any, written: dict[str, str]) -> None:
    shown = opened(browser, written["images"])
    here = shown.locator("nav a[aria-current]")
    assert here.inner_text() == "Results"
    for number in ("2", "1"):
        shown.locator(f'nav a[href="#block-{number}"]').click()
        shown.wait_for_function(f"document.querySelector('nav a[aria-current]').hash === '#block-{number}'")
        top = shown.locator(f"#block-{number}").bounding_box()["y"]
        assert 0 <= top <= 300
        assert shown.locator("nav").bounding_box()["y"] == 0
    shown.close()


def test_the_grid_of_all_layers_answers_to_the_pointer_too(browser: Any, written: dict[str, str]) -> None:
    shown = opened(browser, written["images"])
    panel = shown.locator('#heatmaps .whole[data-block="1"]')
    panel.hover(position={"x": 3, "y": 3})
    assert shown.locator("#tip").inner_text() == "a → expert 0\n60 % of the class: 12 of 20 images"
    cells = shown.locator("#heatmaps svg image").nth(1).bounding_box()  # blocks 2 and 1
    place = panel.bounding_box()
    assert all(abs(cells[key] - place[key]) < 1.5 for key in ("x", "y", "width", "height"))
    shown.close()


def test_class_names_of_many_classes_can_be_read_and_found(browser: Any, written: dict[str, str]) -> None:
    shown = opened(browser, written["hundred"])
    names = [text for text in shown.locator("#block-2 svg text").all_text_contents() if text.startswith("species")]
    assert sorted(names) == sorted(HUNDRED)
    assert not [text for text in shown.locator("#heatmaps svg text").all_text_contents() if text.startswith("species")]
    shown.locator("#find").fill("species 42")
    assert shown.locator("#hits").inner_text() == "“species 42” is framed in every layer"
    assert shown.locator(".found").count() == 4  # in two panels together and two alone
    framed = shown.locator("#block-2 .found").bounding_box()
    named = shown.locator("#block-2 svg text", has_text=re.compile("^species 42$")).bounding_box()
    assert abs(framed["y"] + framed["height"] / 2 - named["y"] - named["height"] / 2) < 6
    shown.locator("#find").fill("species 4")
    assert shown.locator("#block-1 .found").count() == 1
    shown.locator("#find").fill("")
    assert shown.locator(".found").count() == 0
    shown.close()


def test_it_prints_without_what_only_a_screen_can_do(browser: Any, written: dict[str, str]) -> None:
    shown = opened(browser, written["images"], scheme="dark")
    shown.emulate_media(media="print")
    assert not shown.locator("nav").is_visible()
    assert not shown.locator("#find").is_visible()
    assert shown.locator("#block-2 .drawing svg").is_visible()
    assert len(shown.pdf(format="A4")) > 10_000
    shown.close()
