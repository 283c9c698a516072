"""The report: JSON document, verdicts and texts of a small search made by hand."""

import json
import math
from dataclasses import replace

import pytest
from reports import HOSTILE, PROVENANCE, SCRIPT, make_effect, make_proof, make_search, modules


@pytest.fixture(scope="module")
def bc():
    return modules()


@pytest.fixture(scope="module")
def search(bc):
    return make_search(bc)


@pytest.fixture(scope="module")
def profile(search):
    return search.circuits[0].profile


def test_payload_is_strict_json_with_the_numbers_put_in(bc, search):
    payload = bc.report.search_payload(search, PROVENANCE)
    assert json.loads(json.dumps(payload, allow_nan=False)) == payload
    assert payload["schema_version"] == 2
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
