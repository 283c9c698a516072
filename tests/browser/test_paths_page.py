"""The pages of `paths` and `heads` in a real browser: the map, its way to the pairs, both themes, a phone."""

import pytest
import torch
from llamas import random_llama
from reports import HOSTILE, PROVENANCE


@pytest.fixture(scope="module")
def places(tmp_path_factory):
    from bilinear_circuits.paths.account import account_for
    from bilinear_circuits.paths.heads import summarize_heads
    from bilinear_circuits.paths.run import FrozenRun
    from bilinear_circuits.report.pages import heads_page, paths_page, why_page

    root = tmp_path_factory.mktemp("paths")
    tokens = torch.arange(len(HOSTILE)) + 4
    run = FrozenRun(random_llama("silu"), tokens)
    texts = dict(zip(tokens.tolist(), HOSTILE, strict=True))
    table = summarize_heads(run.frozen.weights, [(1, 2)], tokens, 8, 4)
    pages = {
        "paths": paths_page(account_for(run, run.graph((5, 4))), texts.__getitem__, PROVENANCE),
        "heads": heads_page(table, HOSTILE, PROVENANCE),
        "why": why_page(run.why(1, 0, 6, 2), HOSTILE, PROVENANCE),
    }
    for name, page in pages.items():
        (root / f"{name}.html").write_text(page, encoding="utf-8")
    return {name: (root / f"{name}.html").as_uri() for name in pages}


@pytest.mark.parametrize("name", ["paths", *(pytest.param(one, marks=pytest.mark.slow) for one in ("heads", "why"))])
def test_figures_are_drawn_in_either_theme_and_on_a_phone(name, browser_page, screenshot, places):
    browser_page.goto(places[name])
    browser_page.wait_for_selector("html[data-drawn]", timeout=30_000)
    assert browser_page.get_attribute("html", "data-drawn") == "2"
    screenshot(f"{name}-light", full=True)
    browser_page.get_by_role("button", name="Switch to the dark theme").click()
    screenshot(f"{name}-dark", full=True)
    browser_page.set_viewport_size({"width": 390, "height": 844})
    assert browser_page.evaluate("document.documentElement.scrollWidth") <= 390
    screenshot(f"{name}-phone", full=True)


@pytest.mark.slow
def test_a_mark_of_the_map_leads_to_the_pairs_of_its_mlp(browser_page, places):
    browser_page.set_viewport_size({"width": 390, "height": 844})
    browser_page.goto(places["paths"])
    scrolled = browser_page.evaluate(
        "() => { const map = document.querySelector('.flow'); return [map.scrollWidth > map.clientWidth,"
        " document.querySelector('.flow .target').getBoundingClientRect().right <= innerWidth]; }"
    )
    assert scrolled == [True, True]  # the target is in sight at first
    mark = browser_page.locator(".flow a").last
    link = mark.get_attribute("href")
    mark.focus()
    assert browser_page.get_by_role("tooltip").inner_text().endswith("Click for its pairs.")
    browser_page.keyboard.press("Enter")
    assert browser_page.locator(link).get_attribute("open") is not None
    assert browser_page.locator(f"{link} table.matrix").is_visible()
