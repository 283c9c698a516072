"""The report of a circuit search in a real browser: figures, theme, tooltips."""

import json

import pytest
from reports import PROVENANCE, make_search, modules


@pytest.fixture(scope="module")
def address(tmp_path_factory):
    file = tmp_path_factory.mktemp("report") / "report.html"
    bc = modules()
    file.write_text(bc.report.circuits_page(make_search(bc), PROVENANCE), encoding="utf-8")
    return file.as_uri()


def open_drawn(page, address):
    page.goto(address)
    page.wait_for_selector("html[data-drawn]", timeout=30_000)


def test_every_figure_is_drawn_in_either_theme(browser_page, screenshot, address):
    open_drawn(browser_page, address)
    assert browser_page.get_attribute("html", "data-drawn") == "9"
    assert browser_page.locator(".js-plotly-plot .main-svg").count() >= 9
    assert browser_page.locator(".waiting").count() == 0
    screenshot("circuits-light")
    colours = "() => [getComputedStyle(document.body).backgroundColor, page.colour('--ink')]"
    tick = "() => getComputedStyle(document.querySelector('.xtick text')).fill"
    light, light_tick = browser_page.evaluate(colours), browser_page.evaluate(tick)
    browser_page.get_by_role("button", name="Switch to the dark theme").click()
    dark = browser_page.evaluate(colours)
    assert all(one != other for one, other in zip(light, dark, strict=True))
    browser_page.wait_for_function(f"(before) => ({tick})() !== before", arg=light_tick)  # plotly is drawn again
    screenshot("circuits-dark")
    stored = browser_page.evaluate("({ ...localStorage })")
    assert list(stored.values()) == ["dark"]
    # Chromium writes it in the background, and a reload on a busy machine can come first: so it is given again here.
    browser_page.add_init_script(f"Object.assign(localStorage, {json.dumps(stored)})")
    browser_page.reload()
    assert browser_page.evaluate(colours) == dark


@pytest.mark.slow
def test_tokens_tell_their_activation_and_stay_text(browser_page, screenshot, address):
    browser_page.set_viewport_size({"width": 390, "height": 844})
    open_drawn(browser_page, address)
    assert browser_page.evaluate("document.documentElement.scrollWidth") <= 390  # a phone scrolls one way only
    screenshot("circuits-phone")
    assert browser_page.locator("img, main script").count() == 0
    assert "<img src=x onerror=alert(1)>" in browser_page.inner_text("main")
    token, tip = browser_page.locator(".example .token.on").first, browser_page.get_by_role("tooltip")
    token.hover()
    assert tip.inner_text() == "0.500"
    browser_page.keyboard.press("Escape")
    assert not tip.is_visible()
    browser_page.locator(".example .token.on").nth(1).focus()
    assert tip.inner_text() == "1.00"
    check_text_helpers(browser_page)


def check_text_helpers(page):
    """page.js writes tokens and numbers as report/text.py does."""
    text = modules().text
    for token in ("", " ", " not", "\n", "a\u2028b", "\u202ereversed", "plain", " two words  "):
        assert page.evaluate("(token) => page.visible(token)", token) == text.visible(token)
    for value in (None, 0, 5, -1234567, 0.6, -0.12345, 12.5, 0.00321):
        assert page.evaluate("(value) => page.number(value)", value) == text.number(value)
        assert page.evaluate("(value) => page.signed(value)", value) == text.signed(value)


def test_links_open_what_is_folded(browser_page, address):
    open_drawn(browser_page, address)
    table = browser_page.locator("#ranking table")
    assert not table.is_visible()
    browser_page.locator(".contents").get_by_role("link", name="Ranking").click()
    assert table.is_visible()
    assert browser_page.locator("#ranking").evaluate("one => Math.abs(one.getBoundingClientRect().top)") < 60
    browser_page.locator("#ranking summary").click()
    assert not table.is_visible()
    browser_page.locator(".contents").get_by_role("link", name="Ranking").click()  # the same link once more
    assert table.is_visible()
    browser_page.goto(address + "#provenance")
    browser_page.reload()
    assert browser_page.locator("#provenance table").is_visible()
    assert not table.is_visible()


@pytest.mark.slow
def test_folded_parts_are_on_paper(browser_page, address):
    open_drawn(browser_page, address)
    shown = "() => ['ranking', 'provenance'].map(id => document.querySelector(`#${id} table`).checkVisibility())"
    assert browser_page.evaluate(shown) == [False, False]
    browser_page.emulate_media(media="print")
    assert browser_page.evaluate(shown) == [True, True]
    browser_page.emulate_media(media="screen")
    browser_page.evaluate("dispatchEvent(new Event('beforeprint'))")  # browsers that know no ::details-content
    assert browser_page.locator("details:not([open])").count() == 0
    browser_page.evaluate("dispatchEvent(new Event('afterprint'))")
    assert browser_page.evaluate(shown) == [False, False]
