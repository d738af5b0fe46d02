"""The pages in a real browser: slider, hints, tables, themes, paper, narrow screens, and no script at all."""

from __future__ import annotations

import re
import shutil
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from example_pages import ERRORS, experiments_page, run_page

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
PATIENCE = 60_000
"""Milliseconds: a busy machine starts a browser slowly."""

CONTRASTS = """() => {
  const canvas = new OffscreenCanvas(1, 1).getContext("2d", { willReadFrequently: true });
  const levels = (colour) => {
    canvas.clearRect(0, 0, 1, 1);
    canvas.fillStyle = colour;
    canvas.fillRect(0, 0, 1, 1);
    return [...canvas.getImageData(0, 0, 1, 1).data];
  };
  const ground = (element) => {
    for (let each = element; each; each = each.parentElement) {
      const colour = levels(getComputedStyle(each).backgroundColor);
      if (colour[3] === 255) return colour;
    }
    return [255, 255, 255, 255];
  };
  const light = ([...colour]) => colour.slice(0, 3)
    .map((level) => level / 255)
    .map((level) => (level <= 0.04045 ? level / 12.92 : ((level + 0.055) / 1.055) ** 2.4))
    .reduce((sum, level, index) => sum + level * [0.2126, 0.7152, 0.0722][index], 0);
  const ratio = (one, other) => (Math.max(one, other) + 0.05) / (Math.min(one, other) + 0.05);
  const written = [...document.querySelectorAll("body *")].filter((each) =>
    each.checkVisibility({ visibilityProperty: true }) &&
    [...each.childNodes].some((node) => node.nodeType === 3 && node.data.trim()));
  const letters = (each) => light(levels(getComputedStyle(each).color));
  return written.map((each) => [each.outerHTML.slice(0, 80), ratio(letters(each), light(ground(each)))]);
}"""

OVERFLOWING = """() => [...document.querySelectorAll("body *")]
  .filter((each) => each.checkVisibility() && !each.parentElement.closest(".wide, .sheet, .screen"))
  .filter((each) => each.getBoundingClientRect().right > innerWidth + 0.5 || each.getBoundingClientRect().left < -0.5)
  .map((each) => each.outerHTML.slice(0, 80))"""

FOCUSED = "(({ id, className, type, tagName }) => id || className || type || tagName)(document.activeElement)"


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    if CHROMIUM is None:
        pytest.skip("no chromium on this machine")
    with playwright.sync_playwright() as engine:
        browser = engine.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"], timeout=PATIENCE)
        yield browser
        browser.close()


@pytest.fixture(scope="module")
def places(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    return {"run": run_page(tmp_path_factory.mktemp("run")), "claims": experiments_page(tmp_path_factory.mktemp("all"))}


@pytest.fixture
def visit(browser: Any, places: dict[str, Path]) -> Iterator[Any]:
    """``visit(name, **options)`` opens a page of its own; at the end nothing was asked for, and nothing went wrong."""
    opened, wrong = [], []

    def open_page(name: str, width: int = 1440, **options: Any) -> Any:
        context = browser.new_context(viewport={"width": width, "height": 900}, **options)
        opened.append(context)
        page = context.new_page()
        page.set_default_timeout(PATIENCE)
        page.on("console", lambda message: wrong.append(message.text))
        page.on("pageerror", lambda error: wrong.append(str(error)))
        address = places[name].as_uri()
        page.on("request", lambda request: request.url in (address,) or wrong.append(request.url[:80]))
        page.goto(address)
        return page

    yield open_page
    for context in opened:
        context.close()
    assert [each for each in wrong if not each.startswith("data:")] == []


def shown_picture(page: Any) -> str:
    """The alternative text of the picture on the screen: there is exactly one."""
    found = [each for each in page.locator(".screen img").all() if each.is_visible()]
    assert len(found) == 1
    return found[0].get_attribute("alt")


def column(page: Any, table: str, number: int) -> list[str]:
    """The first line of the visible cells of a column, from the top."""
    rows = page.locator(f"{table} tbody tr:visible").all()
    return [row.locator("th, td").nth(number).inner_text().split("\n")[0] for row in rows]


def test_slider_table_and_theme(visit: Any) -> None:
    """All that matters, in one visit."""
    page = visit("run", color_scheme="light")
    slider = page.get_by_role("slider", name="Stage")
    assert shown_picture(page) == "photos/first.jpg, input"
    slider.press("ArrowRight")
    assert shown_picture(page) == "photos/first.jpg, backbone, seed 0"
    slider.press("End")
    assert shown_picture(page) == "photos/first.jpg, decoder, seed 0"
    assert slider.get_attribute("aria-valuetext") == page.locator("output").inner_text() == "decoder"

    page.get_by_role("button", name="MSE", exact=True).press("Enter")
    assert column(page, ".sortable", 0) == ["backbone", "decoder", "encoder", "mean image"]
    assert page.locator("[aria-sort=ascending]").inner_text().startswith("MSE")

    ground = "getComputedStyle(document.body).backgroundColor"
    before = page.evaluate(ground)
    page.get_by_role("button", name="Dark theme").click()
    assert page.evaluate(ground) != before
    page.get_by_role("button", name="Light theme").click()
    assert page.evaluate(ground) == before


@pytest.mark.slow
def test_dragging_choosing_an_image_and_a_view(visit: Any) -> None:
    page = visit("run")
    box = page.locator(".screen").bounding_box()
    page.mouse.move(box["x"] + 0.1 * box["width"], box["y"] + 9)
    page.mouse.down()
    page.mouse.move(box["x"] + 0.6 * box["width"], box["y"] + 9)
    page.mouse.up()
    page.mouse.move(box["x"] + 0.1 * box["width"], box["y"] + 9)  # the button is up: nothing follows any more
    assert shown_picture(page) == "photos/first.jpg, encoder, seed 0"
    page.get_by_role("radio", name="photos/first.jpg").press("ArrowRight")
    page.get_by_text("spread between seeds").click()
    assert shown_picture(page) == "photos/second.jpg, encoder, spread"
    assert page.locator(".which").inner_text() == "photos/second.jpg · detects a cat"
    assert "0.0800 [0.0400, 0.160]" in page.locator(".about .shown").inner_text()
    assert "80 % of the squared error" in page.locator(".about .shown").inner_text()


@pytest.mark.slow
def test_values_show_for_the_pointer_and_for_the_keyboard(visit: Any) -> None:
    page = visit("run")
    hint = page.get_by_role("tooltip")
    assert not hint.is_visible()
    bands = page.locator(".chart").first.locator(".band")
    bands.nth(1).hover()
    assert hint.inner_text().split("\n") == [
        *("encoder: 0.0800", "95 % interval 0.0400 to 0.160", "seeds 0.0800, 0.0800", "mean image 0.100")
    ]
    page.keyboard.press("Escape")
    assert not hint.is_visible()
    bands.first.focus()
    page.keyboard.press("ArrowRight")
    page.keyboard.press("ArrowRight")
    assert hint.inner_text().startswith("decoder: 0.0101")
    page.locator("td", has_text="0.0800").first.hover()
    assert hint.inner_text().startswith("encoder: MSE 0.08\n")
    steps = page.locator(".chart").last.locator(".band")
    assert 20 < steps.count() <= 40
    steps.first.hover()
    assert hint.inner_text().split("\n")[0] == "step 1"


@pytest.mark.slow
def test_a_value_stands_where_the_chart_shows_it(visit: Any) -> None:
    """The bands share the panel out, one for each stage, its point in the middle."""
    page = visit("run")
    boxes = [band.bounding_box() for band in page.locator(".chart").first.locator(".band").all()]
    assert len(boxes) == len(ERRORS)
    assert all(abs(one["x"] + one["width"] - other["x"]) < 1 for one, other in pairwise(boxes))
    widths = [box["width"] for box in boxes]
    assert max(widths) - min(widths) < 1
    plot = page.locator(".plot").first.bounding_box()
    assert plot["x"] < boxes[0]["x"]
    assert boxes[-1]["x"] + widths[-1] <= plot["x"] + plot["width"] + 1


@pytest.mark.slow
def test_tables_sort_up_down_and_back(visit: Any) -> None:
    page = visit("claims")
    page.locator(".numbers summary").click()
    mean = page.locator(".numbers").get_by_role("button", name="mean")
    written = column(page, ".numbers", 2)
    for name, order in (("ascending", written), ("descending", written[-2::-1] + written[-1:]), (None, written)):
        mean.click()
        assert column(page, ".numbers", 2) == order
        assert mean.locator("xpath=..").get_attribute("aria-sort") == name
    assert written[0] == "0.000100"
    assert written[-1] == "–"


@pytest.mark.slow
def test_claims_are_filtered_and_sorted(visit: Any) -> None:
    page = visit("claims")
    verdicts = lambda: [each.split(" ", 1)[1] for each in column(page, ".claims", 1)]  # noqa: E731
    assert verdicts() == ["undecided", "holds", "not tested", "does not hold"]
    page.get_by_role("button", name="Verdict").click()
    assert verdicts() == ["holds", "does not hold", "undecided", "not tested"]
    page.get_by_role("button", name="Effect").click()
    assert verdicts() == ["does not hold", "undecided", "holds", "not tested"]
    page.get_by_role("radio", name="all 4").press("ArrowRight")
    assert verdicts() == ["holds"]
    page.locator(".drawn:visible").hover()
    assert page.get_by_role("tooltip").inner_text().split("\n") == [
        *("holds: 10.500 [10.400, 10.600]", "SSIM lost", "claimed: at least 0.050, compared with 0.000"),
        "a/model on folder:photos; 9 images, 3 seeds",
    ]


@pytest.mark.slow
@pytest.mark.parametrize("theme", ["light", "dark"])
@pytest.mark.parametrize("name", ["run", "claims"])
def test_letters_can_be_read(visit: Any, name: str, theme: str) -> None:
    """WCAG AA, as the browser computes the colours; by the system's theme, and by the button."""
    for system in ("light", "dark"):
        page = visit(name, color_scheme=system)
        page.evaluate("for (const each of document.querySelectorAll('details')) each.open = true")
        if system != theme:
            page.locator("#theme").click()
        found = page.evaluate(CONTRASTS)
        assert len(found) > 30
        assert [each for each in found if each[1] < 4.5] == []
        page.locator("[data-hint]:visible").first.hover()
        assert [each for each in page.evaluate(CONTRASTS) if each[1] < 4.5] == []
        shown = page.locator(".plot img:visible").evaluate_all("all => all.map(each => each.className)")
        assert set(shown) <= {f"on-{theme}"}


@pytest.mark.slow
@pytest.mark.parametrize("width", [390, 1440])
@pytest.mark.parametrize("name", ["run", "claims"])
def test_nothing_overflows(visit: Any, name: str, width: int) -> None:
    page = visit(name, width)
    page.evaluate("for (const each of document.querySelectorAll('details')) each.open = true")
    assert page.evaluate(OVERFLOWING) == []
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    for place in page.locator("[data-hint]:visible").all()[:8]:
        place.scroll_into_view_if_needed()
        place.hover()
        box = page.get_by_role("tooltip").bounding_box()
        assert box["x"] >= 0
        assert box["x"] + box["width"] <= width


@pytest.mark.slow
def test_on_paper_all_is_open_and_no_control_is_left(visit: Any) -> None:
    page = visit("claims", color_scheme="dark")
    page.get_by_role("radio", name="holds: 1").first.check(force=True)
    page.locator("#theme").click()
    page.emulate_media(media="print")
    page.evaluate("dispatchEvent(new Event('beforeprint'))")
    assert page.locator(".claims tbody tr:visible").count() == 4
    assert page.locator(".numbers tbody tr:visible").count() == 10
    assert page.locator("#theme:visible, .contents:visible, input:visible").count() == 0
    assert page.locator("html").evaluate("root => getComputedStyle(root).colorScheme") == "light"
    page.evaluate("dispatchEvent(new Event('afterprint'))")
    assert page.locator("details[open]").count() == 0
    run = visit("run")
    run.emulate_media(media="print")
    assert run.locator("#theme:visible, .viewer:visible").count() == 0
    assert run.locator(".views").inner_text().split() == ["Show", "seed", "0"]
    assert run.pdf(format="A4").startswith(b"%PDF")


@pytest.mark.slow
def test_tab_reaches_every_control(visit: Any) -> None:
    page = visit("run")
    reached: list[str] = []
    while reached.count("theme") < 2:
        page.keyboard.press("Tab")
        reached.append(page.evaluate(FOCUSED))
        ring = page.evaluate("getComputedStyle(document.activeElement).outlineStyle")
        assert ring != "none" or reached[-1] in (
            "view-0",
            "radio",
            "BODY",
        )  # a pill and a picture have rings of their own
    assert {"theme", "view-0", "range", "radio", "wide", "band", "button"} <= set(reached)
    assert reached.count("band") == 3  # one stop for a chart


@pytest.mark.slow
@pytest.mark.parametrize("name", ["run", "claims"])
def test_without_a_script_everything_is_there(visit: Any, name: str) -> None:
    page = visit(name, java_script_enabled=False)
    assert page.locator("button:visible, .viewer:visible").count() == 0
    assert page.locator("table.sortable").count() > 0
    assert page.locator("[title]").count() > 3
    if name == "run":
        assert page.locator(".cell img:visible").count() == 8
        page.get_by_text("mean of seeds").click()
        assert page.get_by_alt_text(re.compile("backbone, mean")).first.is_visible()
    else:
        page.get_by_text("holds: 1").first.click()
        assert page.locator(".claims tbody tr:visible").count() == 1
