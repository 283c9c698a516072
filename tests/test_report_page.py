"""Pages: one file each, whole, and safe against hostile token texts."""

import base64
import gzip
import hashlib
import json
import re

import pytest
from reports import PROVENANCE, SCRIPT, Elements, make_search, modules


@pytest.fixture(scope="module")
def bc():
    return modules()


@pytest.fixture(scope="module")
def search(bc):
    return make_search(bc)


@pytest.fixture(scope="module")
def profile(search):
    return search.circuits[0].profile


@pytest.fixture(scope="module")
def page(bc, search):
    return bc.report.circuits_page(search, PROVENANCE)


@pytest.fixture(scope="module")
def parsed(page):
    return Elements(page)


def test_page_nests_and_holds_no_hostile_markup(page, parsed):
    assert parsed.opened == []
    for token in (SCRIPT, "<!--", "\u2028", "\u202e", "<b>x"):
        assert token not in page
    assert "img" not in {tag for tag, _ in parsed.elements}
    assert not [name for _, attributes in parsed.elements for name in attributes if name.startswith("on")]
    assert SCRIPT in parsed.text
    assert "{{7*7}}" in parsed.text
    assert "49" not in re.findall(r"\w+", parsed.text)


def test_page_fetches_nothing_and_is_small(page, parsed):
    fetching = [
        value
        for _, attributes in parsed.elements
        for name, value in attributes.items()
        if name in ("src", "srcset", "href", "action", "data", "poster") and not value.startswith(("#", "data:,"))
    ]
    assert fetching == []
    assert not re.search(r"@import|url\(|https?://", page)
    assert len(page.encode()) < 5_000_000


def test_links_and_figures_lead_somewhere(page, parsed):
    ids = {attributes["id"] for _, attributes in parsed.elements if "id" in attributes}
    for _, attributes in parsed.elements:
        if "href" in attributes and attributes["href"] != "data:,":
            assert attributes["href"][1:] in ids
        if "data-figure" in attributes:
            assert f"figure-{attributes['data-figure']}" in ids
            assert attributes["aria-label"]
    assert sum("data-figure" in attributes for _, attributes in parsed.elements) == 1 + 2 * 4


def test_json_blocks_parse_back_to_the_figures(bc, search, parsed, profile):
    blocks = {name: text for name, text in parsed.scripts.items() if name.startswith("figure-")}
    assert len(blocks) == 1 + 2 * 4
    expected = {
        "figure-forest": bc.report.effect_forest(search.circuits),
        "figure-2-3-heatmap": bc.report.interaction_heatmap(profile),
        "figure-2-3-plane": bc.report.eigenvector_plane(profile),
        "figure-2-3-spectrum": bc.report.spectrum_bars(profile),
        "figure-2-3-scatter": bc.report.rank2_scatter(profile),
    }
    for name, figure in expected.items():
        assert not set(blocks[name]) & set("<>&\u2028\u2029")
        assert json.loads(blocks[name]) == figure


def test_bundle_is_plotly_itself_and_the_policy_admits_it_alone(bc, parsed):
    from plotly.offline import get_plotlyjs

    assert gzip.decompress(base64.b64decode(parsed.scripts["plotly-bundle"])).decode() == get_plotlyjs()
    policy = next(a["content"] for tag, a in parsed.elements if tag == "meta" and "http-equiv" in a)
    for script in (parsed.scripts["page"], get_plotlyjs()):
        digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
        assert f"'sha256-{digest}'" in policy
    assert policy.startswith("default-src 'none'")
    assert "script-src 'unsafe" not in policy


def test_page_is_the_same_every_time(bc, search, page):
    bc.html.packed_plotly.cache_clear()
    assert bc.report.circuits_page(search, PROVENANCE) == page


def test_page_reads_without_scripts(parsed):
    text = " ".join(parsed.text.split())
    assert "−0.500 [−0.600, −0.400]" in text
    assert "proved on held-out stories" in text
    assert "1,234 tokens, 56 of them triggers" in text
    assert "dictionaries[1].d_sae" in text
    assert "settings.ranking_stories200" in text
    assert "quantile 0.50" in text
    for limit in ("direct path only", "removed at all tokens", "cannot fall below", "completeness above 1"):
        assert limit in text


def test_feature_page_has_the_section_without_the_causal_part(bc, profile):
    page = Elements(bc.report.feature_page(profile, PROVENANCE))
    assert page.opened == []
    assert len([name for name in page.scripts if name.startswith("figure-")]) == 4
    assert "Ledger of the pre-activation" in page.text
    assert "cross-entropy" not in page.text
