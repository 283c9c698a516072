"""The verb `prove` and the file it reads: end to end on a tiny model, and every way the file can be wrong."""

import contextlib
import copy
import io
import json
import math
import random
import re
from pathlib import Path

import pytest
import torch
from helpers import as_users_see_it, refused
from planted import random_stories, save_between_dictionaries, tiny_llama

from bilinear_circuits.circuits import CircuitQuery, QueryTokens, SearchSettings, find_circuits
from bilinear_circuits.circuits.search import story_parts
from bilinear_circuits.circuits.target import Target
from bilinear_circuits.cli import main
from bilinear_circuits.command_line import common, records
from bilinear_circuits.command_line.circuit_file import read_circuit_file
from bilinear_circuits.data.corpora import read_stories
from bilinear_circuits.interventions import CircuitProofs
from bilinear_circuits.report import search_payload
from bilinear_circuits.runs import Runs
from bilinear_circuits.utilities.saving import load_result

FILES = ["proof.json", "report.html", "result.json", "result.safetensors"]
SMALL = ["--n-edges", "4", "--n-exact", "20", "--n-draws", "2", "--n-controls", "2", "--n-nonsense", "50"]


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """Options that name a tiny model, dictionaries and stories, and the circuit.json of a search in it."""
    root = tmp_path_factory.mktemp("prove")
    save_between_dictionaries(root, (1, 2))
    (root / "stories.txt").write_text("\n<|endoftext|>\n".join(random_stories(150)))
    asked = common.CommonArguments(
        model=str(root / "tiny"), saes=str(root / "saes"), corpus=str(root / "stories.txt"), seed=3
    )
    bridge, layers = common.load_interactions(asked, [1, 2])
    query = CircuitQuery("tiny", ("not", "never"), ("good", "nice"), ("bad", "sad"))
    settings = SearchSettings(
        ranking_stories=60, loss_stories=4, sites=40, site_position=12, shortlist=3, controls=2, baseline=4
    )
    stories = read_stories(asked.corpus)
    search = find_circuits(bridge, layers, query, stories, settings=settings, seed=3)
    from bilinear_circuits.data.corpora import Corpus

    source = records.provenance(asked, layers, Corpus(asked.corpus), len(stories), 1.0)
    file = root / "circuit.json"
    file.write_text(common.to_json(search_payload(search, source)))
    return {
        "root": root,
        "file": file,
        "options": ["--model", asked.model, "--saes", asked.saes, "--corpus", asked.corpus],
        "model": bridge,
        "layers": {one.mlp.layer: one for one in layers},
        "held_out": story_parts(stories, bridge.tokenizer, settings, 32, 3)[2],
    }


def document(world):
    return json.loads(world["file"].read_text())


def test_the_file_is_read_as_it_was_written(world):
    found, content = read_circuit_file(str(world["file"])), document(world)
    assert [one.name for one in found.targets] == [one["name"] for one in content["circuits"]]
    assert found.query.triggers == ("not", "never")
    assert found.settings.sites == 40
    assert (found.seed, found.n_stories) == (3, 150)
    for one, circuit in zip(found.targets, content["circuits"], strict=True):
        assert one.sign == circuit["evidence"]["sign"]
        groups = circuit["profile"]["groups"]
        assert list(one.groups[0]) == [member["feature"] for member in groups["first"]]
        assert list(one.groups[1]) == [member["feature"] for member in groups["second"]]
    assert found.layers == sorted({one.layer for one in found.targets})
    assert found.only([found.targets[1].name]).targets == (found.targets[1],)
    assert len(found.dictionary_files) == 4
    with refused(ValueError, r"features must be circuits of the search \(.*\), got 9/9"):
        found.only(["9/9"])
    with refused(ValueError, "features must name at least one circuit of the search"):
        found.only([])


@pytest.fixture(scope="module")
def proved(world):
    """Where all circuits were proved, and what was printed."""
    out, printed = world["root"] / "out", io.StringIO()
    with contextlib.redirect_stdout(printed):
        assert main(["prove", str(world["file"]), *world["options"], "--out", str(out), *SMALL]) == 0
    return out, printed.getvalue()


def test_prove_measures_and_prints(world, proved):
    out, shown = proved
    names = [one["name"] for one in document(world)["circuits"]]
    assert sorted(file.name for file in out.iterdir()) == FILES
    result, proof = load_result(CircuitProofs, out), json.loads((out / "proof.json").read_text())
    assert proof["schema_version"] == 1
    assert [one["name"] for one in proof["proofs"]] == names == [one.name for one in result.proofs]
    assert proof["provenance"]["config"]["n_edges"] == 4
    assert len(proof["provenance"]["circuits"]["sha256"]) == 64
    for name, one, plain in zip(names, result.proofs, proof["proofs"], strict=True):
        assert f"== layer/feature {name}: " in shown
        assert plain["exactness"]["written_correlation"] == pytest.approx(1)
        assert plain["places"]["site"]["mean"] == pytest.approx(one.places.site.mean, rel=1e-5)
        assert [dose["factor"] for dose in plain["doses"]] == [-1, 0, 0.25, 0.5, 0.75, 1, 1.5, 2]
        labels = result.labels[str(one.layer)]
        assert {str(feature) for feature in one.effects.first.tolist()} <= set(labels)
    for joint in result.joint:
        assert f"== {' + '.join(joint.names)}, circuits of one pole" in shown
    assert "Written:" in shown


def test_bounds_and_completeness_are_those_of_the_circuit(world, proved):
    out, shown = proved
    for proof in load_result(CircuitProofs, out).proofs:
        assert (proof.truncation.layer, proof.truncation.feature) == (proof.layer, proof.feature)
        assert proof.truncation.n_violations == 0
        assert proof.explained.n_edges == len(proof.edges)
        totals = (proof.explained.circuit_total, proof.explained.pairs_total)
        assert f"circuit {totals[0]:.2f}, all pairs of input features {totals[1]:.2f}" in shown


def test_what_several_tests_measure_agrees(proved):
    for one in load_result(CircuitProofs, proved[0]).proofs:
        assert one.exactness.differenced_correlation > 1 - 1e-6
        assert one.exactness.worst_error < 1e-4
        assert one.effects.measured.shape == (len(one.effects.kind), one.n_active)
        assert 2 <= one.n_active <= one.n_sites
        removed = one.places.site.mean
        assert one.complement.sets[0].removed.mean == pytest.approx(removed, abs=1e-5)
        assert one.circuit[0].effect.mean == pytest.approx(removed, abs=1e-5)
        assert next(dose for dose in one.doses if dose.factor == 0).effect.mean == pytest.approx(removed, abs=1e-5)
        assert one.nonsense.effect == pytest.approx(removed, abs=1e-4)
        assert {node.method for node in one.nodes} == {"zero", "mean", "resample"}
        assert [layer.layer for layer in one.later.layers] == list(range(one.layer + 1, 3))


def test_sites_are_triggers_of_the_stories_that_the_search_held_out(world, proved):
    result, content = load_result(CircuitProofs, proved[0]), document(world)
    tokens = QueryTokens.resolve(result.query, world["model"].tokenizer)
    sites = tokens.sites(world["held_out"], 40, 12)
    active, signs = {}, {circuit["name"]: circuit["evidence"]["sign"] for circuit in content["circuits"]}
    for one in result.proofs:
        interactions = world["layers"][one.layer]
        runs = Runs(world["model"], one.layer, sites, tokens)
        active[one.name] = interactions.sae_out.encode(runs.y)[:, one.feature] != 0
        here = runs.select(active[one.name])
        delta = -one.edges.contributions(interactions.sae_in.encode(here.x)).sum(1)
        change = delta.unsqueeze(1).float() * interactions.sae_out.W_dec[one.feature]
        assert one.places.site.mean == pytest.approx(here.effects(change.unsqueeze(0)).mean().item(), abs=1e-5)
        assert one.n_active == len(here)
    assert result.joint
    for joint in result.joint:
        assert len({signs[name] for name in joint.names}) == 1
        some = torch.stack([active[name] for name in joint.names])
        assert joint.together.n == int(some.any(0).sum()) > int(some.sum(1).min())


def test_one_circuit_can_be_asked_for_and_is_measured_alike(world, proved, tmp_path):
    name = document(world)["circuits"][1]["name"]
    options = [*world["options"], "--features", name, "--out", str(tmp_path / "out"), *SMALL]
    assert main(["prove", str(world["file"]), *options]) == 0
    proof, whole = (json.loads((out / "proof.json").read_text()) for out in (tmp_path / "out", proved[0]))
    assert proof["proofs"] == [whole["proofs"][1]]
    assert proof["joint"] == []


def test_asking_for_more_than_there_is_measures_what_there_is(world, tmp_path, capsys):
    name = document(world)["circuits"][0]["name"]
    options = [*world["options"], "--features", name, "--out", str(tmp_path / "out")]
    most = ["--n-edges", "500", "--n-controls", "40", "--n-exact", "1", "--n-draws", "1", "--n-nonsense", "1"]
    assert main(["prove", str(world["file"]), *options, *most]) == 0
    (proof,) = load_result(CircuitProofs, tmp_path / "out").proofs
    assert len(proof.edges) < 17 * 18 // 2
    assert len(proof.effects.kind) == 17 * 18 // 2  # every pair, once
    assert len({one.feature for one in proof.other_features}) < 19


def mistake(capsys, world, *options, file=None):
    """What the command says to something wrong; nothing is written, to stdout neither."""
    with as_users_see_it():
        try:
            code = main(["prove", str(file or world["file"]), *world["options"], *options])
        except SystemExit as done:
            code = done.code
    captured = capsys.readouterr()
    assert code == 2, captured.err
    assert captured.out == ""
    last = captured.err.splitlines()[-1]
    assert last.startswith("bilinear-circuits: error: ")
    assert "Traceback" not in captured.err
    return last


OPTIONS = {
    ("--features", "9/9"): "features must be circuits of the search",
    ("--n-edges", "0"): "n_edges must be a whole number of at least 1, got 0",
    ("--n-nonsense", "-3"): "n_nonsense must be a whole number of at least 1, got -3",
    ("--n-nonsense", "99999999999"): "n_nonsense must be at most 100,000, got 99,999,999,999",
    ("--n-draws", "99999999999"): "n_draws must be at most 1,000, got 99,999,999,999",
    ("--seed", "-1"): "seed must be between 0 and",
    ("--device", "cuda:9"): "device must be one that torch can use",
    ("--model", "ts-71m"): "Did you mean ts-17m?",
    ("--saes", "nowhere"): "got nowhere: no such folder",
    ("--corpus", "nowhere.txt"): "got nowhere.txt: no such file",
    ("--n-exact", "many"): "invalid int value: 'many'",
}


@pytest.mark.parametrize("options", OPTIONS)
def test_a_wrong_option_is_one_line(options, world, tmp_path, capsys):
    assert OPTIONS[options] in mistake(capsys, world, "--out", str(tmp_path / "out"), *options)
    assert not (tmp_path / "out").exists()


def test_another_model_other_dictionaries_and_a_file_as_folder_are_refused(world, tmp_path, capsys):
    out = ("--out", str(tmp_path / "out"))
    tiny_llama(seed=1).save_pretrained(tmp_path / "other")
    found = mistake(capsys, world, *out, "--model", str(tmp_path / "other"))
    assert "model must be the one the circuits were found in" in found
    assert "Pass --model and --saes as for circuits" in found
    (tmp_path / "saes").mkdir()
    found = mistake(capsys, world, *out, "--saes", str(tmp_path / "saes"))
    assert "saes must" in found
    (tmp_path / "file").write_text("")
    assert "is a file" in mistake(capsys, world, "--out", str(tmp_path / "file"))
    assert "got nowhere.json: no file" in mistake(capsys, world, *out, file=Path("nowhere.json"))
    assert not (tmp_path / "out").exists()


def changed(content, path, value):
    """A copy of a document with one place changed, or taken out."""
    content = copy.deepcopy(content)
    inner = content
    for key in path[:-1]:
        inner = inner[key]
    if value is None:
        del inner[path[-1]]
    else:
        inner[path[-1]] = value
    return content


FIRST = ("circuits", 0)
WRONG = [
    (("kind",), "feature profile", "circuit must be a 'circuit search' of version 2"),
    (("schema_version",), 3, "with kind 'circuit search' and version 3"),
    (("query",), None, "must hold the key query"),
    (("query",), [], "query of .* must be a mapping, got \\[\\]"),
    (("query", "triggers"), "not", "triggers must be a list of words, got 'not'"),
    (("query", "positive"), ["bad"], "positive and negative must not share words, got bad"),
    (("query", "trigers"), ["not"], "got 'trigers'. Did you mean triggers"),
    (("query", "triggers"), ["flabbergasted"], "got flabbergasted, which are not"),
    (("settings", "sites"), 0, "sites must be a whole number of at least 1, got 0"),
    (("settings", "sites"), "many", "sites of .* must be a whole number, got 'many'"),
    (("settings", "sits"), 3, "got 'sits'. Did you mean sites"),
    (("settings", "ranking_stories"), 500, "stories must be more than 504"),
    (("seed",), -1, "seed must be between 0 and"),
    (("seed",), True, "seed of .* must be a whole number, got True"),
    (("seed",), 1.5, "seed of .* must be a whole number, got 1.5"),
    (("circuits",), [], "circuits of .* must be one or more, each once, got none"),
    (("circuits",), {}, "circuits of .* must be a list"),
    (FIRST, 7, r"circuits\[0\] of .* must hold the key evidence, got 7"),
    ((*FIRST, "evidence", "layer"), None, "must hold the key layer"),
    ((*FIRST, "evidence", "layer"), "4", "layer of evidence in .* must be a whole number, got '4'"),
    ((*FIRST, "evidence", "layer"), 9, "layer must have dictionaries in .*, got 9"),
    ((*FIRST, "evidence", "layer"), 10**30, "layer must have dictionaries"),
    ((*FIRST, "evidence", "feature"), -1, "feature of evidence in .* must be at least 0, got -1"),
    ((*FIRST, "evidence", "feature"), 19, "feature must be between 0 and 18"),
    ((*FIRST, "evidence", "feature"), 10**30, "feature must be between 0 and 18"),
    ((*FIRST, "evidence", "sign"), 0, "sign in evidence in .* must be 1 or -1, got 0"),
    ((*FIRST, "profile"), None, "must hold the key profile"),
    ((*FIRST, "profile", "groups", "first"), None, "must hold the key first"),
    ((*FIRST, "profile", "groups", "first"), [3], "must hold the key feature, got 3"),
    ((*FIRST, "profile", "groups", "second"), [{"feature": 99}], "must be input features between 0 and 16, got 99"),
    ((*FIRST, "profile", "groups", "second"), [{"feature": 0.5}], "must be a whole number, got 0.5"),
    (("provenance",), None, "must hold the key provenance"),
    (
        ("provenance", "model", "files", "config.json"),
        "short",
        "config.json of files of model of .* must be a SHA-256",
    ),
    (("provenance", "model", "files", "config.json"), "0" * 64, "model must be the one the circuits were found in"),
    (("provenance", "dictionaries", 0, "files", "cfg.json"), "0" * 64, "in whose blocks.1.mlp.hook_in cfg.json differ"),
    (
        ("provenance", "dictionaries", 0, "name"),
        "blocks.7",
        "blocks.7 cfg.json, sae_weights.safetensors differ",
    ),
    (("provenance", "corpus", "n_stories"), 0, "n_stories of corpus of .* must be at least 1, got 0"),
    (("provenance", "config", "saes"), 3, "saes of config of .* must be a text, got 3"),
]


@pytest.mark.parametrize(("path", "value", "message"), WRONG, ids=lambda one: str(one)[:40])
def test_a_wrong_file_is_one_line(path, value, message, world, tmp_path, capsys):
    file = tmp_path / "wrong.json"
    file.write_text(json.dumps(changed(document(world), path, value)))
    assert re.search(message, mistake(capsys, world, "--out", str(tmp_path / "out"), file=file))
    assert [one.name for one in tmp_path.iterdir()] == ["wrong.json"]


TEXTS = ["", "[]", "null", "3", "{", '{"kind": "circuit search"}', "[" * 100_000, "\udcff", "9" * 10_000]


@pytest.mark.parametrize("text", TEXTS, ids=lambda text: text[:10])
def test_a_file_that_is_no_circuit_json_is_one_line(text, world, tmp_path, capsys):
    file = tmp_path / "wrong.json"
    file.write_bytes(text.encode("utf-8", "surrogateescape"))
    assert "circuit must be a" in mistake(capsys, world, "--out", str(tmp_path / "out"), file=file)


def places(content, path=()):
    """Every place in a document that the reader has a reason to look at."""
    yield path
    inner = content.items() if isinstance(content, dict) else enumerate(content) if isinstance(content, list) else ()
    for key, value in inner:
        yield from places(value, (*path, key))


def test_200_random_damages_are_read_or_refused_in_one_line(world, tmp_path):
    whole, generator = document(world), random.Random(0)
    for key in ("ranking", "decoder_cosine"):
        del whole[key]
    for circuit in whole["circuits"]:
        circuit["profile"] = {"groups": circuit["profile"]["groups"]}
        del circuit["proof"]
    every = [place for place in places(whole) if place]
    values = [None, 0, -1, 2.5, 10**25, "", "x", True, [], {}, [[]], {"feature": 3}, math.inf]
    file, messages = tmp_path / "wrong.json", []
    for _ in range(200):
        file.write_text(json.dumps(changed(whole, generator.choice(every), generator.choice(values))))
        with as_users_see_it():
            try:
                found = read_circuit_file(str(file))
            except ValueError as error:
                messages.append(str(error))
                continue
        assert all(isinstance(one, Target) for one in found.targets)
    assert 60 < len(messages) < 200
    assert all(str(file) in message or "must" in message for message in messages)
