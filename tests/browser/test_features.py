"""The feature report in a browser: search, sort, filter, open a feature and come back, hover, theme, phone."""

import pytest
from features_world import D_SAE_OUT, DEAD, DENSE, HOSTILE, LAYER, write_world

NARROW = {"width": 390, "height": 844}


@pytest.fixture(scope="module")
def report(tmp_path_factory):
    from sae.commands import features

    root = tmp_path_factory.mktemp("features")
    world, out = write_world(root), root / "report"
    features.run(features.Arguments(**world, layer=LAYER, out=str(out), n_stories=60))
    return out


@pytest.fixture
def index(browser_page, report):
    browser_page.goto((report / "layer-1-out" / "index.html").as_uri())
    browser_page.wait_for_selector("html[data-ready]")
    return browser_page


def numbers(page):
    """Features listed, in their order."""
    return [int(text) for text in page.locator("#rows tbody td.first a").all_inner_texts()]


def found(page, n):
    page.wait_for_function("n => document.querySelectorAll('#rows tbody tr').length === n", arg=n)


def open_feature(page, report, side, feature):
    page.goto((report / f"layer-1-{side}" / "features" / f"{feature}.html").as_uri())
    page.wait_for_selector("html[data-drawn]")


@pytest.mark.slow
def test_front_page_leads_to_both_sides(browser_page, report):
    browser_page.goto((report / "index.html").as_uri())
    browser_page.get_by_role("link", name="Layer 1, output features").click()
    browser_page.wait_for_selector("html[data-ready]")
    browser_page.get_by_role("link", name="Input features of layer 1").click()
    browser_page.wait_for_selector("html[data-ready]")
    assert "input features" in browser_page.inner_text("h1")


def test_search_by_number_and_by_token(index, screenshot):
    found(index, D_SAE_OUT)
    index.fill("#find", "31")
    index.wait_for_function("() => document.querySelector('#rows tbody tr td').textContent.startsWith('31')")
    screenshot("features-index-tiny")
    index.fill("#find", '"cat"')
    index.wait_for_function("() => location.hash.includes('cat')")
    assert numbers(index)
    for row in index.locator("#rows tbody tr").all():
        assert "cat" in row.locator("td.tokens").first.inner_text().split()
    index.fill("#find", HOSTILE[0])
    index.wait_for_function("() => location.hash.includes('script')")
    assert numbers(index)
    assert index.locator("#rows img").count() == 0
    index.fill("#find", "ca")
    index.select_option("#where", "suppressed")
    assert "suppresses" in index.locator("#rows thead th").all_inner_texts()
    for row in index.locator("#rows tbody tr").all():
        assert row.locator("td.tokens").nth(1).inner_text().startswith("cat")
    index.fill("#find", "nosuchtoken")
    found(index, 0)
    assert "No feature matches" in index.inner_text("#count")


def test_sort_and_filter(index):
    def column(name):
        place = index.locator("#rows thead th").all_inner_texts().index(name)
        return index.locator(f"#rows tbody tr td:nth-child({place + 1})").all_inner_texts()

    index.get_by_role("button", name="frequency").click()
    assert index.locator("th[aria-sort='descending']").inner_text() == "frequency"
    shown = [float(text.split()[0]) for text in column("frequency")]
    assert shown == sorted(shown, reverse=True)
    assert numbers(index)[0] == DENSE
    index.get_by_role("button", name="frequency").click()
    assert index.locator("th[aria-sort='ascending']").count() == 1
    assert DEAD in numbers(index)[: shown.count(0.0)]
    index.select_option("#state", "dead")
    assert DEAD in numbers(index)
    assert set(index.locator(".flag").all_inner_texts()) == {"dead"}
    index.select_option("#sort", "feature")
    assert numbers(index) == sorted(numbers(index), reverse=False) or numbers(index) == sorted(numbers(index))[::-1]


@pytest.mark.slow
def test_the_way_back_keeps_the_search(index):
    index.fill("#find", "cat")
    index.wait_for_function("() => location.hash.includes('q=cat')")
    index.select_option("#sort", "frequency")
    before, hash_before = numbers(index), index.evaluate("location.hash")
    index.locator("#rows tbody a").first.click()
    index.wait_for_selector("html[data-drawn]")
    assert f"{before[0]}.html" in index.url
    index.keyboard.press("ArrowRight")
    index.wait_for_url(lambda url: f"{before[0]}.html" not in url)
    index.click("#back")
    index.wait_for_selector("html[data-ready]")
    assert index.evaluate("location.hash") == hash_before
    assert index.input_value("#find") == "cat"
    assert numbers(index) == before


@pytest.mark.slow
def test_values_on_hover_and_on_focus(browser_page, report):
    open_feature(browser_page, report, "out", 31)
    token = browser_page.locator(".ex b.c").first
    token.hover()
    tip = browser_page.locator("#tip")
    assert tip.is_visible()
    assert float(tip.inner_text()) > 0
    browser_page.keyboard.press("Escape")
    assert not tip.is_visible()
    token.focus()
    assert tip.inner_text() == token.get_attribute("data-tip")


@pytest.mark.slow
def test_every_figure_is_drawn_in_both_themes(browser_page, report, screenshot):
    open_feature(browser_page, report, "out", 31)
    assert browser_page.evaluate("document.documentElement.dataset.drawn") == "4"
    assert browser_page.locator(".js-plotly-plot").count() == 4
    ink = "document.querySelector('.js-plotly-plot').layout.font.color"
    light = browser_page.evaluate(ink)
    browser_page.click("#theme")
    browser_page.wait_for_function(f"() => {ink} !== {light!r}")
    assert browser_page.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(21, 24, 27)"
    screenshot("features-page-tiny-dark", full=True)


@pytest.mark.slow
@pytest.mark.parametrize("side", ["in", "out"])
@pytest.mark.parametrize("feature", [DEAD, DENSE])
def test_dead_and_dense_pages_stand(browser_page, report, side, feature):
    browser_page.goto((report / f"layer-1-{side}" / "features" / f"{feature}.html").as_uri())
    assert browser_page.locator(".note").is_visible()
    assert browser_page.locator(".js-plotly-plot").count() == 0 or feature == DENSE


@pytest.mark.slow
def test_nothing_is_wider_than_a_phone(browser_page, report, screenshot):
    browser_page.set_viewport_size(NARROW)
    browser_page.goto((report / "layer-1-out" / "index.html").as_uri())
    browser_page.wait_for_selector("html[data-ready]")
    assert browser_page.evaluate("document.documentElement.scrollWidth") <= NARROW["width"]
    screenshot("features-index-tiny-phone")
    open_feature(browser_page, report, "out", 31)
    assert browser_page.evaluate("document.documentElement.scrollWidth") <= NARROW["width"]


@pytest.mark.slow
def test_keyboard_alone_finds_a_feature(index):
    index.focus("#find")
    index.keyboard.type("31")
    index.wait_for_function("() => location.hash.includes('q=31')")
    for _ in range(30):
        index.keyboard.press("Tab")
        if index.evaluate("document.activeElement.closest('#rows tbody') !== null"):
            break
    index.keyboard.press("Enter")
    index.wait_for_url(lambda url: "31.html" in url)
