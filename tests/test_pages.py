"""Pages of the verbs that take circuits apart, edit, compare and discover: they say what the JSON beside them says."""

import re
from dataclasses import replace
from types import SimpleNamespace

import pytest
from pages import check_hostile, check_page, interval, page_of, read, rows_of, shown, words_of
from reports import HOSTILE, PROVENANCE, SCRIPT, make_discoveries
from verbs import asked, write_world

from bilinear_circuits.cli import main
from bilinear_circuits.interactions.naming import FeatureNames


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """A tiny world with a circuit.json; `run(verb)` gives the folder a verb wrote there, each run once."""
    root = tmp_path_factory.mktemp("jane-doe")
    places = write_world(root)
    assert main(asked("circuits", places, root / "found")) == 0
    done = {}

    def run(verb):
        if verb not in done:
            assert main(asked(verb, places, root / verb)) == 0
            done[verb] = root / verb
        return done[verb]

    return SimpleNamespace(root=root, run=run)


@pytest.mark.parametrize("verb", ["prove", "discover", "edit", "compare"])
def test_a_page_is_whole_and_tells_of_no_folder(verb, world):
    page = page_of(world.run(verb))
    parsed = check_page(page)
    assert str(world.root) not in page
    assert "jane-doe" not in page
    assert {"provenance", "glossary"} <= {attributes.get("id") for _, attributes in parsed.elements}
    sizes = len(re.findall(r'id="plotly-bundle"', page)), sum("data-figure" in one for _, one in parsed.elements)
    assert sizes[0] == min(1, sizes[1])  # plotly only where something is drawn
    assert sizes[1] <= 1


def test_the_proof_page_says_what_was_measured(world):
    folder = world.run("prove")
    page, proof = page_of(folder), read(folder, "proof.json")
    rows, text = rows_of(page), words_of(page)
    assert proof["proofs"]
    assert f"circuit.json, sha256 {proof['provenance']['circuits']['sha256'][:12]}…" in text
    for one in proof["proofs"]:
        own, exact = one["complement"]["sets"][0], one["exactness"]
        removed, whole = interval(one["places"]["site"]), interval(one["complement"]["whole"])
        row = next(row for row in rows if row[:2] == [one["name"], f"{one['n_active']} of {one['n_sites']}"])
        assert row[3:7] == [removed, whole, interval(own["lost"], 2), interval(own["kept"], 2)]
        assert [one["name"], f"{exact['differenced_correlation']:.9f}"] in [row[:2] for row in rows]
        section = page.split(f'<section id="circuit-{one["name"].replace("/", "-")}">')[1].split("</section>")[0]
        inside = rows_of(section)
        assert ["circuit removed at the trigger", removed, str(one["places"]["site"]["n"])] in inside
        assert ["removed at random other tokens", interval(one["places"]["elsewhere"])] in [row[:2] for row in inside]
        for dose in one["doses"]:
            assert [f"{dose['factor']:+g}".replace("-", "−"), interval(dose["effect"])] in inside
        for other in one["other_features"]:
            assert f"{one['layer']}/{other['feature']}" in [row[0] for row in inside]
        for ablation in one["circuit"]:
            assert ["the circuit", ablation["method"], interval(ablation["effect"])] in [row[:3] for row in inside]
        first, second, measured = (one["effects"][key] for key in ("first", "second", "measured"))
        edges = {row[0]: row for row in inside if " × " in row[0]}
        assert len(edges) == len(first)
        for a, b, at_sites in zip(first, second, measured, strict=True):
            assert edges[f"{a} × {b}"][7] == shown(sum(at_sites) / len(at_sites), 4)
    for joint in proof["joint"]:
        assert [" + ".join(joint["names"]), interval(joint["together"]), interval(joint["sum"])] in rows


def test_names_in_a_proof_stay_text(world):
    from bilinear_circuits.circuits import CircuitQuery
    from bilinear_circuits.interventions import CircuitProofs
    from bilinear_circuits.report.pages import proof_page
    from bilinear_circuits.utilities.saving import load_result

    proofs = load_result(CircuitProofs, world.run("prove"))
    labels = {
        layer: {key: " · ".join(HOSTILE[int(key) % 3 :: 3]) for key in names} for layer, names in proofs.labels.items()
    }
    query = CircuitQuery(SCRIPT, (SCRIPT, "a\u2028b"), ("<!--", "{{7*7}}"), ("<b>bold</b>", "\u202ereversed"))
    hostile = replace(proofs, query=query, labels=labels, untested={SCRIPT: "<b>why</b>"})
    check_hostile(proof_page(hostile, PROVENANCE, lambda token: HOSTILE[token % len(HOSTILE)]))


def test_a_proof_of_nothing_is_a_page_still(world):
    from bilinear_circuits.interventions import CircuitProofs
    from bilinear_circuits.report.pages import proof_page
    from bilinear_circuits.utilities.saving import load_result

    proofs = load_result(CircuitProofs, world.run("prove"))
    page = proof_page(replace(proofs, proofs=(), joint=(), untested={"1/2": "too few sites"}), PROVENANCE, str)
    check_page(page)
    assert ["1/2", "too few sites"] in rows_of(page)
    assert 'id="plotly-bundle"' not in page


class Names(FeatureNames):
    """Features in hostile words."""

    def tokens(self, layer, feature):
        return tuple(HOSTILE)

    def __call__(self, layer, feature, side="in"):
        return f"{HOSTILE[feature % 5]} · {HOSTILE[5]}"


def test_the_discovery_page_says_what_was_found_and_names_stay_text():
    from bilinear_circuits.report.pages import discovery_page

    search = make_discoveries()
    search = replace(search, apart=(replace(search.discoveries[0], feature=77, motif="and"),))
    page = discovery_page(search, (), (), Names([], None), PROVENANCE)
    check_hostile(page)
    rows, text = rows_of(page), words_of(page)
    assert "1discoveries 1echoes of other features 1whose inputs hardly meet 20output features 40tests" in text
    flip, echo, apart = (next(row for row in rows if row[0] == name) for name in ("4/143", "4/9", "4/77"))
    assert flip[2:6] == ["0.800", "0.700", "0.00010", "0.0020"]
    assert flip[6].startswith("−0.250 (")
    assert flip[6].endswith(") on 30 tokens")
    assert "and 2 more) × (" in flip[6]
    assert echo[-2:] == ["and", "4/143"]
    assert apart[6] == "and"
    motifs = {row[0]: row[2:] for row in rows if row[0] in ("and", "flip")}
    assert motifs == {
        "and": ["0", "1", "1", "0.500", "0.900", "0.400"],
        "flip": ["1", "0", "0", "none", "0.900", "0.300"],
    }
    for part, folded in (("motif-flip", False), ("echoes", True), ("apart", True)):
        tag = "details" if folded else "h2"
        assert f'<{tag} id="{part}"' in page


def test_long_lists_of_discoveries_are_cut_and_say_so():
    from bilinear_circuits.report.pages import discovery_page

    search = make_discoveries()
    many = tuple(replace(search.discoveries[0], feature=feature) for feature in range(250))
    page = discovery_page(replace(search, discoveries=many), (), (), Names([], None), PROVENANCE)
    assert "The first 100 of 250 discoveries; all are in discoveries.csv." in page
    names = [row[0] for row in rows_of(page) if re.fullmatch(r"4/\d+", row[0]) and len(row) == 7]
    assert names == [f"4/{feature}" for feature in range(100)]


def test_the_discovery_page_lists_planes_and_interference(world):
    folder = world.run("discover")
    rows, document = rows_of(page_of(folder)), read(folder, "pairs.json")
    assert document["pairs"]
    for pair in document["pairs"]:
        first, second = (f"{pair['layer']}/{one}" for one in pair["features"])
        row = next(row for row in rows if row[0] == pair["kind"] and row[1] == first and row[3] == second)
        assert row[6:8] == [shown(pair["correlation"], 2), shown(pair["decoder_cosine"], 2)]
    for one in document["interference"]:
        row = next(row for row in rows if row[:2] == [str(one["layer"]), f"{one['k']:,}"])
        assert row[4] == shown(one["rank_correlation"], 2)


def test_the_glossary_is_that_of_the_documents(world):
    from pathlib import Path

    from bilinear_circuits.report.glossary import GLOSSARY

    text = (Path(__file__).parents[1] / "docs/glossary.md").read_text(encoding="utf-8")
    documents = dict(re.findall(r"^\*\*(.+?)\*\*\n:   (.*?)(?=\n\n|\Z)", text, re.DOTALL | re.MULTILINE))
    assert {word: " ".join(documents[word].split()) for word in GLOSSARY} == GLOSSARY


@pytest.mark.parametrize("verb", ["circuits", "prove", "discover", "edit", "compare", "paths", "heads"])
def test_a_glossary_has_the_words_of_its_page_alone(verb, world):
    page = page_of(world.root / "found" if verb == "circuits" else world.run(verb))
    body, _, glossary = page.partition('<h2 id="glossary">')
    words = re.findall(r"<dt>(.*?)</dt>", glossary)
    assert words == sorted(words, key=str.lower)
    said = words_of(body).lower()
    assert [word for word in words if word.lower().rstrip("s") not in said] == []


def test_the_edit_page_says_what_was_measured(world):
    folder = world.run("edit")
    page, report = page_of(folder), read(folder, "edit.json")
    rows, text = rows_of(page), words_of(page)
    assert f"circuit.json, sha256 {report['provenance']['circuit']['sha256'][:12]}…" in text
    edited, predicted = report["effect"], report["predicted"]
    assert ["edited model", interval(edited), str(edited["n"]), interval(report["effect_all_sites"])] in rows
    assert ["predicted with hooks", interval(predicted), str(predicted["n"]), "–"] in rows
    deviation = f"{report['largest_deviation']:.1e}".replace("-", "−")
    assert f"{deviation}largest deviation from the prediction" in text
    for name, key in (("all tokens", "overall"), ("right after triggers", "at_triggers")):
        shift = report[key]
        row = next(row for row in rows if row[0] == name)
        assert row[1:5] == [
            f"{shift['n_tokens']:,}",
            f"{shift['ce_before']:.4f}",
            f"{shift['ce_after']:.4f}",
            interval(shift["ce_change"], 5),
        ]
    for edit, one in zip(report["edits"], report["features"], strict=True):
        row = next(row for row in rows if row[0] == one["name"])
        assert row[1:4] == ["0", ", ".join(map(shown, edit["eigenvalues"])), interval(one["effect"])]
    for one in report["ranks"]:
        assert [str(one["rank"]), interval(one["effect"]), str(one["effect"]["n"])] in rows
    for one in (*report["controls"], *report["trigger_controls"]):
        assert [", ".join(one["names"]), interval(one["effect"])] in [row[1:3] for row in rows]
    assert ["neurons of every layer, after", str(report["weights"]["d_mlp"])] in rows
    assert [name for name in ("README.md", "edit.json", "report.html") if not (folder / name).is_file()] == []


def test_names_of_an_edit_stay_text(world):
    from bilinear_circuits.circuits import CircuitQuery
    from bilinear_circuits.report.pages import edit_page
    from bilinear_circuits.surgery import EditReport
    from bilinear_circuits.utilities.saving import load_result

    report = load_result(EditReport, world.run("edit") / "result")
    query = CircuitQuery(SCRIPT, (SCRIPT, "a\u2028b"), ("<!--", "{{7*7}}"), ("<b>bold</b>", "\u202ereversed"))
    check_hostile(edit_page(report, query, f"{SCRIPT} removed", PROVENANCE))


def test_the_comparison_page_says_which_circuits_return(world):
    folder = world.run("compare")
    page, result = page_of(folder), read(folder, "result.json")
    rows, text = rows_of(page), words_of(page)
    comparison = loaded_comparison(folder).comparisons[0]
    assert comparison.matches
    for match in comparison.matches:
        star, likeness = " *" if match.is_circuit else "", vars(match.likeness).values()
        said = f"{'yes' if match.returns else 'no'}: {match.match}{star}, {shown(match.likeness.activation, 2)}"
        assert [match.circuit, said, f"{int(match.returns)} of 1"] in rows
        row = next(row for row in rows if row[0] == match.circuit and len(row) == 14)
        assert row[4:11] == [shown(one, 2) for one in likeness]
        assert row[11:13] == [f"{100 * match.percentile:.0f} %", shown(match.chance, 2)]
    total = f"{comparison.n_returned} of {len(comparison.matches)}"
    assert ["all circuits", total, total] in rows
    for pair in comparison.assignment:
        assert [pair.first, pair.second] in [row[:2] for row in rows if len(row) == 9]
    for file in result["provenance"]["files"]:
        assert f"{file['name']}, query tiny, sha256 {file['sha256'][:12]}…" in text
    assert f"{comparison.n_shifts} shifts" in text
    assert f"{comparison.n_null} random features" in text
    assert "correlate at 0.50 or more" in text


def loaded_comparison(folder):
    from bilinear_circuits.comparison.stability import StabilityTable
    from bilinear_circuits.utilities.saving import load_result

    return load_result(StabilityTable, folder)


def test_names_of_a_comparison_stay_text_and_other_models_have_dashes(world):
    from bilinear_circuits.report.pages import comparison_page

    table = loaded_comparison(world.run("compare"))
    one = table.comparisons[0]
    likeness = replace(one.matches[0].likeness, decoder=None, encoder=None, form=None, inputs=None)
    lost = replace(one.matches[0], returns=False, is_circuit=False, likeness=likeness)
    elsewhere = replace(one, second="{{7*7}} <b>bold</b>", matches=(lost, *one.matches[1:]))
    files = [
        {"name": name, "sha256": "ab" * 32, "query": {"name": query}}
        for name, query in ((SCRIPT, "<!--"), ("a\u2028b", "\u202ereversed"))
    ]
    named = replace(table, comparisons=(replace(one, first=SCRIPT), elsewhere))
    page = comparison_page(named, PROVENANCE | {"files": files})
    check_hostile(page)
    rows = rows_of(page)
    first = next(row for row in rows if row[0] == lost.circuit)
    assert first[2] == f"no: {lost.match}, {shown(likeness.activation, 2)}"
    assert first[3] == "1 of 2"
    assert ["–"] * 4 in [row[7:11] for row in rows]


def test_the_report_of_a_search_says_where_everything_is(world):
    page = page_of(world.root / "found")
    names = [one["name"] for one in read(world.root / "found", "circuit.json")["circuits"]]
    contents = re.search(r'<nav class="contents".*?</nav>', page, re.DOTALL).group()
    links = re.findall(r'<a href="#([^"]+)">(.*?)</a>', contents)
    ids = re.findall(r'\bid="([^"]+)"', page)
    assert {"Summary", "Effects", "Ranking", "Provenance", "Glossary", *(f"Circuit {name}" for name in names)} <= {
        text for _, text in links
    }
    assert [ids.count(id) for id, _ in links] == [1] * len(links)
    assert [ids.index(id) for id, _ in links] == sorted(ids.index(id) for id, _ in links)  # in the order of the page
    for folded in ("ranking", "provenance"):
        assert f'<details id="{folded}" class="fold">' in page
    words = re.findall(r"<dt>(.*?)</dt>", page.partition('<h2 id="glossary">')[2])
    assert {"Outlier", "AND shape", "Completeness", "Trigger", "Pole", "Controls", "Rank-2 form"} <= set(words)
    check_page(page)
