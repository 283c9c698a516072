"""The report: JSON document and HTML page of a small search made by hand, with hostile token texts."""

import base64
import gzip
import hashlib
import json
import math
import os
import re
import shutil
import subprocess
from dataclasses import replace
from html.parser import HTMLParser
from types import SimpleNamespace

import pytest
import torch

SCRIPT = "</script><img src=x onerror=alert(1)>"
HOSTILE = (SCRIPT, "<!--", "{{7*7}}", "a\u2028b", "<b>bold</b>", "\u202ereversed", '" onmouseover="alert(2)', "'); x('")
PROVENANCE = {
    "model": {"name": "tiny", "sha256": "ab12"},
    "dictionaries": [{"name": SCRIPT, "d_sae": 6}, {"name": "out", "d_sae": 5}],
    "corpus": {"name": "by hand", "n_stories": 3},
    "commit": None,
    "seconds": math.inf,
}


@pytest.fixture(scope="module")
def bc():
    """The modules under test, imported under the shape-checking hook."""
    from bilinear_circuits import circuits, profiles, report, shape, spectra
    from bilinear_circuits.report import html, text

    return SimpleNamespace(
        circuits=circuits, profiles=profiles, report=report, shape=shape, spectra=spectra, html=html, text=text
    )


def make_profile(bc, feature=3):
    eigenvalues = torch.tensor([2.0, -1.5, 0.5, 0.0])
    block = torch.tensor([[0.1, 0.2, -0.9], [0.2, 0.0, 0.8], [-0.9, 0.8, -0.3]])
    shape = bc.shape.AndShape(
        torch.tensor([4, 1]), torch.tensor([2]), torch.tensor([0.5, 0.25, 0.125]), block, 0.75
    )  # fmt: skip
    return bc.profiles.FeatureProfile(
        layer=2,
        feature=feature,
        frequency=0.01,
        top_tokens=HOSTILE,
        promoted=((SCRIPT, 0.5), (" ", 0.4), ("", 0.3), ("\n", 0.2)),
        suppressed=(("<!--", -0.5), ("{{7*7}}", -0.25)),
        spectrum=bc.spectra.Spectrum(eigenvalues, torch.eye(4), eigenvalues.norm()),
        shape=shape,
        input_labels=(f"{SCRIPT} · <b>x</b>", "{{7*7}} · <!--", "a\u2028b"),
        projections=torch.tensor([[0.0, 0.1], [0.6, -0.2], [-0.7, 0.3], [0.05, 0.0], [0.8, 0.9], [0.0, -0.1]]),
        eigenvector_labels=(((4, SCRIPT, 0.8), (2, "<!--", -0.7)), ((4, "plain", 0.9),)),
        predicted=torch.tensor([0.1, 0.4, 0.9]),
        actual=torch.tensor([0.2, 0.5, 1.1]),
        rank2_correlation=0.875,
        terms={"feature_feature": 0.5, "constant": -0.125},
        completeness=1.25,
        examples=(
            bc.profiles.Example(HOSTILE, (0.0, 0.5, 0.0, 1.0, 0.0, 0.0, 0.0, 0.0), 3, 1.0),
            bc.profiles.Example(("the", "end"), (0.25, 0.0), 0, 0.5),
        ),
    )


def make_effect(bc, mean, half=0.1, n=12):
    return bc.circuits.Effect(mean, mean - half, mean + half, n)


def make_proof(bc, sign=1, removal=None, control=None, trigger=0.02):
    nothing = bc.circuits.Effect(math.nan, math.nan, math.nan, 0)
    return bc.circuits.CausalProof(
        rank=2,
        removal=removal or make_effect(bc, -0.5 * sign),
        removal_all_sites=make_effect(bc, -0.25 * sign),
        ablation=make_effect(bc, -0.4 * sign),
        ablation_all_sites=nothing,
        control=control or make_effect(bc, 0.01),
        controls=(
            bc.circuits.Control(0, 30, 2, 1.5, make_effect(bc, 0.03)),
            bc.circuits.Control(1, 20, 1, 1.25, make_effect(bc, -0.01)),
        ),
        trigger_control=make_effect(bc, 0.02, 0.01),
        trigger_controls=(bc.circuits.Control(5, 25, 9, 1.0, make_effect(bc, trigger)),),
        p_value=1 / 4,
        ce_base=1.5,
        ce_removal=make_effect(bc, 0.0002, 0.0005),
        ce_ablation=make_effect(bc, 0.0001, 0.0005),
    )


def make_evidence(bc, feature, shift):
    return bc.circuits.Evidence(
        2, feature, 0.5, shift, 1.5, 0.9, 0.75, 0.6, math.nan, 40, 20, (2.0, -1.5, 0.5, 0.0), 0.8
    )


@pytest.fixture(scope="module")
def search(bc):
    best, other = make_evidence(bc, 3, 2.0), make_evidence(bc, 4, -1.0)
    return bc.circuits.CircuitSearch(
        query=bc.circuits.CircuitQuery(SCRIPT, ("not", SCRIPT), ("good", "<!--"), ("bad", "{{7*7}}"), True),
        missing=(SCRIPT,),
        ranking=(best, other, make_evidence(bc, 0, 0.5)),
        circuits=(
            bc.circuits.Circuit(best, make_profile(bc, 3), make_proof(bc, 1)),
            bc.circuits.Circuit(other, make_profile(bc, 4), make_proof(bc, -1)),
        ),
        decoder_cosine=torch.tensor([[1.0, -0.5], [-0.5, 1.0]]),
        settings=bc.circuits.SearchSettings(controls=2),
        n_tokens=1234,
        n_trigger_tokens=56,
        n_sites=8,
        seed=7,
    )


@pytest.fixture(scope="module")
def profile(search):
    return search.circuits[0].profile


@pytest.fixture(scope="module")
def page(bc, search):
    return bc.report.circuits_page(search, PROVENANCE)


class Elements(HTMLParser):
    """Collects the elements of a page, checks that they nest, and keeps scripts by id and text outside of them."""

    VOID = frozenset({"meta", "br", "img", "link", "input", "hr"})

    def __init__(self, page):
        super().__init__()
        self.opened, self.elements, self.scripts, self.text = [], [], {}, ""
        self.feed(page)
        self.close()

    def handle_starttag(self, tag, attributes):
        self.elements.append((tag, dict(attributes)))
        if tag not in self.VOID:
            self.opened.append(tag)

    def handle_endtag(self, tag):
        assert self.opened.pop() == tag, f"</{tag}> closes nothing"

    def handle_data(self, data):
        if self.opened and self.opened[-1] == "script":
            name = self.elements[-1][1].get("id", "page")
            self.scripts[name] = self.scripts.get(name, "") + data
        elif not self.opened or self.opened[-1] != "style":
            self.text += data


@pytest.fixture(scope="module")
def parsed(page):
    return Elements(page)


def test_payload_is_strict_json_with_the_numbers_put_in(bc, search):
    payload = bc.report.search_payload(search, PROVENANCE)
    assert json.loads(json.dumps(payload, allow_nan=False)) == payload
    assert payload["schema_version"] == 1
    assert payload["query"]["triggers"] == ["not", SCRIPT]
    assert (payload["n_tokens"], payload["n_trigger_tokens"], payload["n_sites"], payload["seed"]) == (1234, 56, 8, 7)
    assert payload["settings"]["controls"] == 2
    assert [(one["name"], one["sign"]) for one in payload["ranking"]] == [("2/3", 1), ("2/4", -1), ("2/0", 1)]
    assert payload["decoder_cosine"] == [[1.0, -0.5], [-0.5, 1.0]]
    proof = payload["circuits"][0]["proof"]
    assert proof["removal"] == {"mean": -0.5, "low": -0.6, "high": -0.4, "n": 12, "excludes_zero": True}
    assert proof["controls"][1]["effect"]["mean"] == -0.01
    assert proof["p_value"] == pytest.approx(1 / 4)


def test_payload_of_a_profile_holds_what_follows_from_its_tensors(bc, profile):
    payload = bc.report.profile_payload(profile, PROVENANCE, n_eigenvalues=3)["profile"]
    assert payload["eigenvalues"] == [2.0, -1.5, 0.5]
    # ||Q||_F = sqrt(4 + 2.25 + 0.25), the edge is 2 ||Q||_F / sqrt(4) = ||Q||_F.
    assert payload["semicircle_edge"] == pytest.approx(math.sqrt(6.5))
    assert payload["outliers"] == 0
    shares = [0.5, 0.375, 0.125]
    assert payload["effective_rank"] == pytest.approx(math.exp(-sum(p * math.log(p) for p in shares)), rel=1e-5)
    assert [one["feature"] for one in payload["groups"]["first"]] == [4, 1]
    assert payload["groups"]["second"] == [
        {"feature": 2, "label": "a\u2028b", "usage": 0.125, "projection": [-0.7, 0.3]}
    ]
    assert payload["block"][0] == [0.1, 0.2, -0.9]
    assert payload["eigenvectors"][0][1] == {"feature": 2, "label": "<!--", "projection": -0.7}
    assert payload["promoted"][0] == {"token": SCRIPT, "logit": 0.5}
    assert payload["examples"][0]["tokens"] == list(HOSTILE)


def test_payload_has_null_where_nothing_was_measured(bc, search):
    payload = bc.report.search_payload(search, PROVENANCE)
    assert payload["ranking"][0]["rank2_correlation"] is None
    assert payload["circuits"][0]["proof"]["ablation_all_sites"]["low"] is None
    assert payload["provenance"]["seconds"] is None


def test_payload_refuses_what_json_has_no_type_for(bc, profile):
    with pytest.raises(TypeError, match="got a set"):
        bc.report.profile_payload(profile, {"layers": {3, 4}})


def test_visible_tokens(bc):
    shown = [bc.text.visible(token) for token in ("", " ", " not", "\n", "\t", "\u202e", "\ud800", "##ly")]
    assert shown == ["∅", "␣", "␣not", "↵", "⇥", "⟨U+202E⟩", "⟨U+D800⟩", "##ly"]
    assert bc.text.visible_label("not ·   · n't") == "not · ␣ · n't"


@pytest.mark.parametrize(
    ("removal", "control", "expected"),
    [
        ((-0.5, 0.1), (0.0, 0.1), "proved on held-out stories"),
        ((-0.05, 0.1), (0.0, 0.1), "not proved: the interval of the removal includes zero"),
        ((-0.5, 0.1), (-0.3, 0.1), "not proved: the controls move the model too (mean −0.300, interval without zero)"),
        (
            (-0.05, 0.1),
            (-0.3, 0.1),
            "not proved: the interval of the removal includes zero; the controls move the model too (mean −0.300,"
            " interval without zero)",
        ),
        ((0.5, 0.1), (0.0, 0.1), "not proved: the removal acts against the prediction (+0.500)"),
    ],
)
def test_verdict_says_what_failed(bc, removal, control, expected):
    proof = make_proof(bc, 1, make_effect(bc, *removal), make_effect(bc, *control))
    found = bc.report.verdict(proof, 1)
    assert found.text == expected
    assert found.proved is (expected == "proved on held-out stories")
    mirrored = make_proof(bc, 1, make_effect(bc, -removal[0], 0.1), make_effect(bc, *control))
    assert bc.report.verdict(mirrored, -1).proved is found.proved


def test_verdict_does_not_take_nan_for_an_interval(bc):
    nothing = bc.circuits.Effect(math.nan, math.nan, math.nan, 0)
    assert bc.report.verdict(make_proof(bc, control=nothing), 1).text == "not proved: no control was measured"
    found = bc.report.verdict(make_proof(bc, removal=nothing), 1)
    assert found.text == "not proved: the feature is active at no trigger site, fewer than 10"


def test_verdict_needs_ten_sites_and_no_control_that_does_as_much(bc):
    few = bc.circuits.Effect(-0.5, -0.5, -0.5, 3)
    assert bc.report.verdict(make_proof(bc, removal=few), 1).text == (
        "not proved: the feature is active at 3 trigger sites, fewer than 10"
    )
    rivalled = bc.report.verdict(make_proof(bc, trigger=0.6), 1)
    assert rivalled.text == "not proved: 1 of 3 controls move the model as much"


@pytest.mark.parametrize(("everywhere", "noted"), [(0.3, True), (-0.3, False), (0.05, False)])
def test_verdict_notes_where_the_removal_turns_round_over_all_sites(bc, everywhere, noted):
    proof = replace(make_proof(bc, 1), removal_all_sites=make_effect(bc, everywhere))
    found = bc.report.verdict(proof, 1)
    assert found.proved
    assert ("the other way (+0.300)" in found.note) is noted


def test_heatmap_holds_the_block_and_a_symmetric_scale(bc, profile):
    heatmap = bc.report.interaction_heatmap(profile)
    trace = heatmap.data[0]
    torch.testing.assert_close(torch.tensor(trace.z), profile.shape.block)
    assert (trace.zmin, trace.zmid, trace.zmax) == pytest.approx((-0.9, 0, 0.9))
    assert trace.customdata[0][2] == ["4 &lt;/script&gt;&lt;img src=x onerror=alert(1)&gt; · &lt;b&gt;x&lt;/b&gt;",
                                      "2 a⟨U+2028⟩b"]  # fmt: skip
    assert {(line.x0, line.y0) for line in heatmap.layout.shapes} == {(1.5, -0.5), (-0.5, 1.5)}


def test_plane_has_every_input_feature_once_and_names_the_members(bc, profile):
    plane = bc.report.eigenvector_plane(profile)
    points = {(x, y) for trace in plane.data for x, y in zip(trace.x, trace.y, strict=True)}
    assert points == {tuple(round(value, 5) for value in row) for row in profile.projections.tolist()}
    assert [len(trace.x) for trace in plane.data] == [3, 2, 1]
    named = {note.text.split()[0]: (note.x, note.y) for note in plane.layout.annotations}
    assert named == {str(feature): pytest.approx(tuple(profile.projections[feature].tolist())) for feature in (4, 1, 2)}


def test_spectrum_bars_are_the_eigenvalues_over_the_null(bc, profile):
    figure = bc.report.spectrum_bars(profile, n=3)
    assert list(figure.data[0].y) == [2.0, -1.5, 0.5]
    up, down = figure.data[0].marker.color[0], figure.data[0].marker.color[1]
    assert up != down
    assert figure.data[0].marker.color[2] == up
    band = figure.layout.shapes[0]
    assert (band.y0, band.y1) == pytest.approx((-math.sqrt(6.5), math.sqrt(6.5)))


def test_scatter_pairs_form_and_activation(bc, profile):
    trace = bc.report.rank2_scatter(profile).data[0]
    assert list(zip(trace.x, trace.y, strict=True)) == [(0.1, 0.2), (0.4, 0.5), (0.9, 1.1)]


def test_forest_shows_every_effect_with_its_interval(bc, search):
    figure = bc.report.effect_forest(search.circuits)
    dots, points = figure.data
    rows = dict(zip(points.y, zip(points.x, points.error_x.array, points.error_x.arrayminus, strict=True), strict=True))
    ticks = list(figure.layout.yaxis.ticktext)
    assert rows[ticks.index("removal")] == pytest.approx((-0.5, 0.1, 0.1))
    assert rows[ticks.index("ablation, all trigger sites")] == (None, None, None)
    assert list(dots.x) == [0.03, -0.01, 0.02] * 2
    assert len(points.x) == 2 * 5
    means = {ticks[row]: mean for row, (mean, _, _) in rows.items()}
    assert means["removal"] == 0.5  # of the second circuit, which has the last row of that name


def strings(value):
    """Every string in a nested document."""
    if isinstance(value, str):
        return [value]
    if isinstance(value, dict):
        return [one for inner in value.values() for one in strings(inner)]
    return [one for inner in value for one in strings(inner)] if isinstance(value, list) else []


def test_no_figure_holds_markup_from_a_token(bc, search, profile):
    own = re.compile(r"<b>2/[34]</b>|<br>|<extra></extra>")
    for figure in (
        bc.report.effect_forest(search.circuits),
        bc.report.interaction_heatmap(profile),
        bc.report.eigenvector_plane(profile),
        bc.report.spectrum_bars(profile),
        bc.report.rank2_scatter(profile),
    ):
        texts = strings(json.loads(figure.to_json(engine="json")))
        assert not [text for text in texts if "<" in own.sub("", text)]


def test_figures_stand_an_empty_group_and_a_zero_block(bc, profile):
    none = torch.tensor([], dtype=torch.long)
    shape = bc.shape.AndShape(none, none, torch.zeros(0), torch.zeros(0, 0), 0.0)
    empty = replace(profile, shape=shape, input_labels=())
    assert len(bc.report.eigenvector_plane(empty).data[0].x) == 6
    assert "Layer 2, feature 3" in bc.report.feature_page(empty, {})
    flat = replace(profile, shape=replace(profile.shape, block=torch.zeros(3, 3)))
    assert bc.report.interaction_heatmap(flat).data[0].zmax == 1.0


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
        if name in ("src", "srcset", "href", "action", "data", "poster") and not value.startswith("#")
    ]
    assert fetching == []
    assert not re.search(r"@import|url\(|https?://", page)
    assert len(page.encode()) < 5_000_000


def test_links_and_figures_lead_somewhere(page, parsed):
    ids = {attributes["id"] for _, attributes in parsed.elements if "id" in attributes}
    for _, attributes in parsed.elements:
        if "href" in attributes:
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
        assert json.loads(blocks[name]) == json.loads(figure.to_json(engine="json"))


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


@pytest.mark.slow
def test_browser_draws_every_figure_without_an_error(page, tmp_path):
    browser = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if browser is None:
        pytest.skip("no Chromium on this machine")
    file = tmp_path / "report.html"
    file.write_text(page, encoding="utf-8")
    flags = ["--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-sync"]
    flags += ["--disable-background-networking", "--disable-component-update", "--enable-logging=stderr"]
    flags += [f"--user-data-dir={tmp_path / 'browser'}", "--virtual-time-budget=20000", "--dump-dom"]
    done = subprocess.run(
        [browser, *flags, file.as_uri()], capture_output=True, text=True, timeout=180, check=True, env=dict(os.environ)
    )
    assert 'data-drawn="9"' in done.stdout
    assert done.stdout.count("js-plotly-plot") >= 9
    assert "CONSOLE" not in done.stderr, [line for line in done.stderr.splitlines() if "CONSOLE" in line]
