"""`bilinear-circuits edit` on a tiny model: from circuits to a stock Llama folder, and every mistake in one line."""

import json
import re
import shutil

import pytest
import torch
import yaml
from planted import random_dictionary, random_stories, tiny_llama, word_tokenizer

from bilinear_circuits.cli import main
from bilinear_circuits.utilities.saving import load_result

LAYERS = (0, 2)
FILES = [
    "README.md",
    "config.json",
    "edit.json",
    "generation_config.json",
    "model.safetensors",
    "report.html",
    "result",
    "tokenizer.json",
    "tokenizer_config.json",
]
QUERY = {
    "name": "Tiny negation",
    "triggers": ["not", "never"],
    "positive": ["good", "nice"],
    "negative": ["bad", "sad"],
    "n_stories": 260,
    "settings": {
        "ranking_stories": 150, "loss_stories": 10, "loss_tokens": 16, "sites": 30, "site_position": 12,
        "shortlist": 4, "circuits": 1, "controls": 2,
    },
}  # fmt: skip


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """A tiny model, its dictionaries and stories on disk, and what `circuits` found in them."""

    root = tmp_path_factory.mktemp("edit")
    tiny_llama().save_pretrained(root / "tiny")
    word_tokenizer().save_pretrained(root / "tiny")
    for layer in LAYERS:
        for side, d_sae in (("in", 20), ("out", 60)):
            name = f"blocks.{layer}.mlp.hook_{side}"
            random_dictionary(12, d_sae, name, seed=d_sae + layer).save(root / "saes" / name)
    (root / "stories.txt").write_text("\n<|endoftext|>\n".join(random_stories(260)))
    (root / "query.yaml").write_text(yaml.safe_dump(QUERY))
    assert main(["circuits", str(root / "query.yaml"), *source(root), "--out", str(root / "found")]) == 0
    return root


def source(root):
    return ["--model", str(root / "tiny"), "--saes", str(root / "saes"), "--corpus", str(root / "stories.txt")]


def edit(world, out, *options, circuit=None):
    path = world / "found/circuit.json" if circuit is None else circuit
    try:
        return main(["edit", str(path), *source(world), "--out", str(out), *map(str, options)])
    except SystemExit as done:
        return done.code


def found(world):
    return json.loads((world / "found/circuit.json").read_text())


def names_of(world, sign):
    return [one["name"] for one in found(world)["ranking"] if one["sign"] == sign]


@pytest.fixture(scope="module")
def edited(world):
    """The folder of one edit: both poles, two features each, towards the positive one."""
    out = world / "edited"
    options = ("--pole", "negative", "--opposite", 2, "--n-features", 2, "--prediction-stories", 30)
    assert edit(world, out, *options) == 0
    return out


def test_the_folder_is_a_stock_llama_with_its_report(world, edited):
    assert sorted(path.name for path in edited.iterdir()) == FILES
    assert [path.name for path in world.iterdir() if path.name.startswith(".")] == []
    record = json.loads((edited / "edit.json").read_text())
    assert (record["kind"], record["schema_version"]) == ("circuit edit", 1)
    expected = dict.fromkeys(names_of(world, -1)[:2], 0.0) | dict.fromkeys(names_of(world, 1)[:2], 2.0)
    assert {one["name"]: one["factor"] for one in record["edits"]} == expected
    assert all(one["rank"] == len(one["eigenvalues"]) == 2 for one in record["edits"])
    assert record["query"]["triggers"] == ["not", "never"]
    assert (edited / "tokenizer.json").read_bytes() == (world / "tiny/tokenizer.json").read_bytes()
    made_with = record["provenance"]
    assert made_with["circuit"]["name"] == "circuit.json"
    assert all(len(made_with[name]["sha256"]) == 64 for name in ("circuit", "model", "edited_model", "corpus"))
    assert made_with["config"]["opposite"] == 2
    card = (edited / "README.md").read_text()
    assert card.startswith("---\nlibrary_name: transformers\n")
    assert f"{', '.join(names_of(world, -1)[:2])} removed" in card
    config = json.loads((edited / "config.json").read_text())
    assert config["intermediate_size"] == record["weights"]["d_mlp"] > 14
    assert [path.name for path in edited.glob("*.safetensors")] == ["model.safetensors"]


@torch.no_grad()
def test_the_numbers_are_those_of_the_model_on_disk(world, edited):
    """Once more from the two folders alone: transformers, the tokenizer, and the sites of the search."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    from bilinear_circuits.circuits import SearchSettings
    from bilinear_circuits.circuits.query import CircuitQuery, QueryTokens
    from bilinear_circuits.circuits.search import story_parts
    from bilinear_circuits.data.corpora import read_stories

    tokenizer = AutoTokenizer.from_pretrained(edited)
    before, after = (AutoModelForCausalLM.from_pretrained(path) for path in (world / "tiny", edited))
    query = CircuitQuery(**{key: QUERY[key] for key in ("name", "triggers", "positive", "negative")})
    tokens, settings = QueryTokens.resolve(query, tokenizer), SearchSettings(**QUERY["settings"])
    stories = read_stories(str(world / "stories.txt"), 260)
    _, losses, proofs = story_parts(stories, tokenizer, settings, 32, 0)
    sites = tokens.sites(proofs, settings.sites, settings.site_position)
    at = torch.arange(len(sites)), sites.position
    differences = []
    for model in (before, after):
        logits = model(sites.ids).logits[at]
        differences.append((logits[:, 6:8].mean(1) - logits[:, 8:10].mean(1)).double())
    record = json.loads((edited / "edit.json").read_text())
    change = (differences[1] - differences[0]).mean().item()
    assert abs(change) > 1e-3
    assert record["effect_all_sites"]["mean"] == pytest.approx(change, abs=1e-6)
    assert record["effect_all_sites"]["n"] == len(sites)
    # The stories compared are those of the loss and then those of the proof, cut alike.
    n_tokens = int(losses.mask.sum()) + int(proofs.mask[:20, : losses.ids.shape[1]].sum())
    assert record["overall"]["n_tokens"] == n_tokens
    total = [0.0, 0.0]
    for ids, mask in [*zip(losses.ids, losses.mask, strict=True), *zip(proofs.ids[:20], proofs.mask[:20], strict=True)]:
        row = ids[: min(losses.ids.shape[1], int(mask.sum()) + 1)].unsqueeze(0)
        for index, model in enumerate((before, after)):
            logits = model(row).logits[0, :-1]
            total[index] += torch.nn.functional.cross_entropy(logits, row[0, 1:], reduction="sum").item()
    assert record["overall"]["ce_before"] == pytest.approx(total[0] / n_tokens, rel=1e-5)
    assert record["overall"]["ce_after"] == pytest.approx(total[1] / n_tokens, rel=1e-5)


def test_the_result_loads_with_the_edits_themselves(edited):
    from bilinear_circuits.surgery import EditReport

    report = load_result(EditReport, edited / "result")
    record = json.loads((edited / "edit.json").read_text())
    assert [one.name for one in report.edits] == [one["name"] for one in record["edits"]]
    assert report.effect.mean == pytest.approx(record["effect"]["mean"], rel=1e-6)
    assert report.edits[0].spectrum.eigenvectors.shape == (12, 2)
    assert report.weights.form_error < 1e-6


def test_an_earlier_edit_is_replaced_whole_and_the_default_is_one_pole(world, edited, tmp_path, capsys):
    out = tmp_path / "again"
    shutil.copytree(edited, out)
    (out / "left-over.txt").write_text("x")
    assert edit(world, out, "--rank", 12, "--factor", -1, "--prediction-stories", 12) == 0
    assert sorted(path.name for path in out.iterdir()) == FILES
    best = found(world)["ranking"][0]["sign"]
    circuits = [one["name"] for one in found(world)["circuits"] if one["evidence"]["sign"] == best]
    record = json.loads((out / "edit.json").read_text())
    assert [(one["name"], one["factor"], one["rank"]) for one in record["edits"]] == [(circuits[0], -1.0, 12)]
    shown = capsys.readouterr().out
    assert shown.startswith(f"Tiny negation: {circuits[0]} inverted, rank 12\n")
    means = [record[name]["mean"] for name in ("effect", "effect_all_sites")]
    row = next(line for line in shown.splitlines() if line.startswith("  edited model "))
    assert [float(mean) for mean in re.findall(r"(\S+) \[", row)] == pytest.approx(means, abs=6e-4)
    assert record["ranks"][-1]["effect"]["mean"] == pytest.approx(record["predicted"]["mean"], abs=1e-5)


def test_features_named_are_edited_and_a_second_run_gives_the_same_weights(world, tmp_path):
    name = names_of(world, 1)[1]
    for out in ("one", "two"):
        assert edit(world, tmp_path / out, "--features", name, "--factor", 0.5, "--prediction-stories", 12) == 0
    records = [json.loads((tmp_path / out / "edit.json").read_text()) for out in ("one", "two")]
    assert [(one["name"], one["factor"]) for one in records[0]["edits"]] == [(name, 0.5)]
    assert records[0]["provenance"]["edited_model"] == records[1]["provenance"]["edited_model"]
    for key in ("effect", "overall", "controls", "ranks"):
        assert records[0][key] == records[1][key]


MISTAKES = {
    ("--rank", "0"): "rank must be at least 1, got 0.",
    ("--rank", "13"): "rank must be between 1 and d_in=12, got 13.",
    ("--rank", "x"): "argument --rank: invalid int value: 'x'",
    ("--factor", "nan"): "factor must be a finite number, got nan.",
    ("--opposite", "inf"): "opposite must be a finite number, got inf.",
    ("--factor", "1e30"): "factor must be between -1,000,000 and 1,000,000, got 1e+30: the weights would leave",
    ("--opposite=-1e7",): "opposite must be between -1,000,000 and 1,000,000, got -1e+07",
    ("--factor", "1"): "factor must change a form of ",
    ("--features", "9/1"): "features must be of the ranking of ",
    ("--features", "4-143"): "features must be written as layer/feature, such as 4/143, got '4-143'.",
    ("--features", "0/1", "--n-features", "2"): "features and n_features must not be given together",
    ("--n-features", "0"): "n_features must be at least 1, got 0.",
    ("--n-stories", "0"): "n_stories must be at least 1, got 0.",
    ("--n-stories", "100"): "stories must be more than 160",
    ("--prediction-stories", "-3"): "prediction_stories must be at least 1, got -3.",
    ("--pole", "both"): "argument --pole: invalid choice: 'both'",
    ("--seed", "-1"): "seed must be between 0",
    ("--model", "ts-17m"): "model must be the one the circuits were found in",
    ("--model", "nowhere"): "got nowhere.",
    ("--saes", "ts-17m"): "saes must be the dictionaries the circuits were found with",
    ("--saes", "nowhere"): "got nowhere: no such folder.",
    ("--corpus", "nowhere.txt"): "got nowhere.txt: no such file.",
    ("--device", "cuda:77"): "device must be one that torch can use",
    ("--bogus",): "unrecognized arguments: --bogus",
}


@pytest.mark.parametrize("options", MISTAKES, ids=" ".join)
def test_a_mistake_is_one_line_and_leaves_nothing(options, world, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    refused(capsys, edit(world, "out", *options), MISTAKES[options])
    assert list(tmp_path.iterdir()) == []


def refused(capsys, code, message):
    captured = capsys.readouterr()
    assert code == 2, captured.err
    assert captured.out == ""
    line = captured.err.splitlines()[-1]
    assert line.startswith("bilinear-circuits: error: ")
    assert message in line


def without(*path):
    """Take one key out of the document."""

    def change(document):
        for key in path[:-1]:
            document = document[key]
        del document[path[-1]]

    return change


def put(value, *path):
    """Put another value into the document."""

    def change(document):
        for key in path[:-1]:
            document = document[key]
        document[path[-1]] = value

    return change


DAMAGES = {
    "no circuits": (without("circuits"), "must hold the key circuits"),
    "empty circuits": (put([], "circuits"), "must be one or more, each once, got none"),
    "circuits of another kind": (put("4/143", "circuits"), "circuits of"),
    "no ranking": (without("ranking"), "must hold the key ranking"),
    "a ranking of numbers": (put([3], "ranking"), "ranking[0] of"),
    "a feature as text": (put("7", "ranking", 0, "feature"), "must be a whole number, got '7'"),
    "a negative layer": (put(-1, "ranking", 0, "layer"), "must be at least 0, got -1"),
    "a sign of zero": (put(0, "ranking", 0, "sign"), "must be 1 or -1, got 0"),
    "a sign of true": (put(True, "ranking", 0, "sign"), "must be a whole number, got True"),
    "a feature out of range": (put(60, "circuits", 0, "evidence", "feature"), "feature must be between 0 and 59"),
    "a layer without dictionaries": (put(1, "circuits", 0, "evidence", "layer"), "layer must have dictionaries in"),
    "no query": (without("query"), "must hold the key query"),
    "no triggers": (put([], "query", "triggers"), "triggers must hold at least one word"),
    "an unknown word": (put(["zebra"], "query", "positive"), "got zebra, which are not"),
    "an unknown setting": (put(3, "settings", "sits"), "got 'sits'. Did you mean sites?"),
    "no provenance": (without("provenance"), "must hold the key provenance"),
    "another model": (
        put("0" * 64, "provenance", "model", "files", "config.json"),
        "model must be the one the circuits were found in",
    ),
    "a short hash": (put("12ab", "provenance", "model", "files", "config.json"), "must be a SHA-256"),
    "another kind": (put("feature profile", "kind"), "with kind 'feature profile'"),
    "another version": (put(3, "schema_version"), "and version 3"),
    "a seed as text": (put("0", "seed"), "seed of"),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_circuit_file_is_one_line_and_leaves_nothing(damage, world, tmp_path, monkeypatch, capsys):
    change, message = DAMAGES[damage]
    document = found(world)
    # One pole's circuit alone, so that the one changed is the one edited.
    document["circuits"] = [one for one in document["circuits"] if one["evidence"]["sign"] == 1]
    change(document)
    (tmp_path / "circuit.json").write_text(json.dumps(document))
    monkeypatch.chdir(tmp_path)
    code = edit(world, "out", "--pole", "positive", circuit=tmp_path / "circuit.json")
    refused(capsys, code, message)
    assert [path.name for path in tmp_path.iterdir()] == ["circuit.json"]


@pytest.mark.parametrize("text", ["", "{", "[]", "null", "3", "[" * 100_000, "\x00"])
def test_what_is_no_circuit_file_is_refused(text, world, tmp_path, capsys):
    (tmp_path / "circuit.json").write_text(text)
    refused(capsys, edit(world, tmp_path / "out", circuit=tmp_path / "circuit.json"), "circuit must be a")
    refused(capsys, edit(world, tmp_path / "out", circuit=tmp_path / "none.json"), "none.json: no file")
    refused(capsys, edit(world, tmp_path / "out", circuit=tmp_path), "circuit must be a")


def test_folders_that_hold_something_else_are_refused_and_kept(world, tmp_path, capsys):
    other = tmp_path / "other"
    other.mkdir()
    (other / "thesis.txt").write_text("precious")
    refused(capsys, edit(world, other), "out must be new, empty or an earlier edit")
    (other / "edit.json").write_text('{"kind": "video edit"}')
    refused(capsys, edit(world, other), "out must be new, empty or an earlier edit")
    assert (other / "thesis.txt").read_text() == "precious"
    refused(capsys, edit(world, other / "thesis.txt"), "thesis.txt is a file")
    refused(capsys, edit(world, world / "tiny"), "out must be another folder than the model")


def test_an_error_after_saving_leaves_an_earlier_edit_as_it_was(world, edited, tmp_path, capsys):
    out = tmp_path / "kept"
    shutil.copytree(edited, out)
    before = {path.name: path.read_bytes() for path in out.iterdir() if path.is_file()}
    stories = tmp_path / "stories.txt"
    stories.write_text("\n<|endoftext|>\n".join(["the cat ran home ."] * 200))
    arguments = ["edit", str(world / "found/circuit.json"), *source(world)[:-1], str(stories), "--out", str(out)]
    assert main(arguments) == 2
    assert "must hold triggers" in capsys.readouterr().err
    assert {path.name: path.read_bytes() for path in out.iterdir() if path.is_file()} == before
    assert sorted(path.name for path in tmp_path.iterdir()) == ["kept", "stories.txt"]
