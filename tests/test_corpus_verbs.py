"""Corpora through real verbs: the same stories in another file, or found in another way, give the same results."""

import csv
import json
import shutil
import sys

import pytest
import torch
import yaml
from planted import random_dictionary, random_stories, tiny_llama, word_tokenizer
from safetensors.torch import load_file

from bilinear_circuits.cli import main

LAYER = 1
QUERY = {
    "name": "Tiny negation",
    "triggers": ["not", "never"],
    "positive": ["good", "nice"],
    "negative": ["bad", "sad"],
    "n_stories": 120,
    "settings": {
        "ranking_stories": 70, "loss_stories": 10, "loss_tokens": 16, "sites": 20, "site_position": 12,
        "shortlist": 3, "circuits": 1, "controls": 2, "baseline": 8,
    },
}  # fmt: skip
TRAIN = {
    "name": "tiny",
    "valid_share": 0.2,
    "vocab_size": 64,
    "model": {"d_model": 16, "n_layers": 1, "n_heads": 2, "d_mlp": 24, "context": 24},
    "optim": {"epochs": 1, "batch_rows": 8, "lr": 0.01, "evaluations": 1},
}
TRAIN_SAE = {
    "name": "tiny", "layers": [LAYER], "sae": {"k": 3}, "tokens": 1000, "batch_tokens": 64, "buffer_rows": 16,
    "context": 16, "model_rows": 32, "dead_window": 20, "norm_batches": 1, "checkpoints": 2, "save_dtype": "float32",
}  # fmt: skip
FORMS = {
    "lines": ("lines.txt", {"separator": "line"}),
    "blank": ("blank.txt", {"separator": "blank-line"}),
    "csv": ("rows.csv", {"column": "story"}),
    "parquet": ("rows.parquet", {"column": "story"}),
}
form = pytest.mark.parametrize("name", ["lines", pytest.param("csv", marks=pytest.mark.slow)])


def stories(seed=0):
    # Long and varied enough for what training leaves out as corrupt or the same.
    return [f"{story} the cat sat at home and ran ." for story in random_stories(120, seed)]


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """A tiny model, its dictionaries, and the same stories in every form, of which the first has marks."""
    import pandas

    root = tmp_path_factory.mktemp("corpora")
    tiny_llama(n_layers=2).save_pretrained(root / "tiny")
    word_tokenizer().save_pretrained(root / "tiny")
    for side, d_sae in (("in", 20), ("out", 40)):
        hook = f"blocks.{LAYER}.mlp.hook_{side}"
        random_dictionary(12, d_sae, hook, seed=d_sae).save(root / "saes" / hook)
    (root / "marks.txt").write_text("\n<|endoftext|>\n".join(stories()))
    (root / "lines.txt").write_text("\n".join(stories()) + "\n")
    (root / "blank.txt").write_text("\n\n".join(stories()))
    pairs = zip(stories(), stories(seed=1), strict=True)
    (root / "both.txt").write_text("\n\n".join(f"{a}\n{b}" for a, b in pairs))  # stories can be found in two ways
    table = pandas.DataFrame({"text": stories(seed=1), "story": stories()})
    table.to_csv(root / "rows.csv")
    table.to_parquet(root / "rows.parquet")
    return root


def options(settings):
    return [text for key, value in settings.items() for text in (f"--{key}", value)]


def run(verb, world, out, corpus, settings, *others):
    source = ["--model", str(world / "tiny"), "--saes", str(world / "saes"), "--corpus", str(world / corpus)]
    return main([verb, *map(str, others), *source, *options(settings), "--out", str(out)])


def query(world, path, **change):
    path.write_text(yaml.safe_dump(QUERY | change))
    return path


def search_of(out):
    """What a search found, without what says how it was made."""
    found = json.loads((out / "circuit.json").read_text())
    source = found.pop("provenance")["corpus"]
    return found, {key: source[key] for key in ("name", "separator", "column")}


@pytest.fixture(scope="module")
def searched(world):
    """The circuits found in the text with marks."""
    assert run("circuits", world, world / "found", "marks.txt", {}, query(world, world / "query.yaml")) == 0
    return world / "found"


@form
def test_circuits_are_those_of_the_marked_text_and_say_how_stories_were_found(name, world, searched, tmp_path):
    corpus, settings = FORMS[name]
    assert run("circuits", world, tmp_path / "out", corpus, settings, world / "query.yaml") == 0
    found, source = search_of(tmp_path / "out")
    assert found == search_of(searched)[0]
    assert source == {"name": corpus, "separator": None, "column": None} | settings


@form
def test_features_are_those_of_the_marked_text(name, world, tmp_path):
    asked = ("--layer", LAYER, "--side", "out", "--feature", 3, "--n-stories", 120)
    assert run("features", world, tmp_path / "marks", "marks.txt", {}, *asked) == 0
    corpus, settings = FORMS[name]
    assert run("features", world, tmp_path / "out", corpus, settings, *asked) == 0
    tables = [(tmp_path / one / f"layer-{LAYER}-out/features.csv").read_text() for one in ("marks", "out")]
    (row,) = csv.DictReader(tables[0].splitlines())
    assert (row["feature"], row["state"]) == ("3", "dense")
    assert tables[0] == tables[1]


@form
def test_coactive_interactions_are_those_of_the_marked_text(name, world, tmp_path):
    asked = ("--layer", LAYER, "--k", 20, "--coactive", "--n-stories", 120)
    assert run("interactions", world, tmp_path / "marks", "marks.txt", {}, *asked) == 0
    corpus, settings = FORMS[name]
    assert run("interactions", world, tmp_path / "out", corpus, settings, *asked) == 0
    first, second = (load_file(tmp_path / one / "interactions.safetensors") for one in ("marks", "out"))
    assert set(first) == set(second)
    assert all(torch.equal(first[key], second[key]) for key in first)
    assert json.loads((tmp_path / "out/interactions.json").read_text())["provenance"]["corpus"]["n_stories"] == 120


@form
def test_details_of_a_graph_are_those_of_the_marked_text(name, world, tmp_path):
    asked = ["--prompt", "the cat was not good", "--layer", LAYER, "--slug", "one", "--n-stories", 120]
    asked += [text for feature in range(8) for text in ("--feature", feature)]
    assert run("graph", world, tmp_path / "marks", "marks.txt", {}, *asked) == 0
    corpus, settings = FORMS[name]
    assert run("graph", world, tmp_path / "out", corpus, settings, *asked) == 0
    known = [
        {file.name: json.loads(file.read_text()) for file in (tmp_path / one).glob("features/*/*.json")}
        for one in ("marks", "out")
    ]
    assert known[0]
    assert known[0] == known[1]


@form
@pytest.mark.slow
def test_a_training_is_that_of_the_marked_text(name, world, tmp_path):
    def trained(corpus, out, settings=None, **keys):
        recipe = tmp_path / "recipe.yaml"
        recipe.write_text(yaml.safe_dump(TRAIN | {"corpus": str(world / corpus)} | keys))
        arguments = [str(recipe), *options(settings or {}), "--out", str(tmp_path / out), "--device", "cpu"]
        assert main(["train", *arguments]) == 0
        record = json.loads((tmp_path / out / "training.json").read_text())
        return record["data_sha256"], record["result"]["valid_loss"]

    corpus, settings = FORMS[name]
    marked = trained("marks.txt", "marks")
    assert trained(corpus, "options", settings) == marked
    assert trained(corpus, "keys", **settings) == marked


@form
def test_dictionaries_are_those_of_the_marked_text(name, world, tmp_path):
    def trained(corpus, out, settings=None, **keys):
        recipe = tmp_path / "recipe.yaml"
        content = TRAIN_SAE | {"model": str(world / "tiny"), "corpus": str(world / corpus)} | keys
        recipe.write_text(yaml.safe_dump(content))
        assert main(["train-sae", str(recipe), *options(settings or {}), "--out", str(tmp_path / out)]) == 0
        return load_file(tmp_path / out / f"blocks.{LAYER}.mlp.hook_in/sae_weights.safetensors")

    corpus, settings = FORMS[name]
    marked = trained("marks.txt", "marks")
    for other in (trained(corpus, "options", settings), trained(corpus, "keys", **settings)):
        assert all(torch.equal(marked[key], other[key]) for key in marked)


@pytest.mark.parametrize("name", ["csv", *(pytest.param(one, marks=pytest.mark.slow) for one in FORMS if one != "csv")])
def test_a_query_says_how_its_stories_are_found_and_an_option_replaces_it(name, world, searched, tmp_path):
    corpus, settings = FORMS[name]
    asked = query(world, tmp_path / "query.yaml", corpus=str(world / corpus), **settings)
    source = ["--model", str(world / "tiny"), "--saes", str(world / "saes")]
    assert main(["circuits", str(asked), *source, "--out", str(tmp_path / "out")]) == 0
    assert search_of(tmp_path / "out")[0] == search_of(searched)[0]
    wrong = query(world, tmp_path / "wrong.yaml", corpus=str(world / corpus), **dict.fromkeys(settings, "nothing"))
    assert main(["circuits", str(wrong), *source, "--out", str(tmp_path / "wrong")]) == 2
    assert main(["circuits", str(wrong), *source, *options(settings), "--out", str(tmp_path / "wrong")]) == 0


@pytest.mark.slow
@form
def test_circuits_are_reopened_without_saying_again_how_stories_are_found(name, world, tmp_path, capsys):
    corpus, settings = FORMS[name]
    assert run("circuits", world, tmp_path / "found", corpus, settings, world / "query.yaml") == 0
    circuit = tmp_path / "found/circuit.json"
    capsys.readouterr()
    small = ("--n-exact", 4, "--n-draws", 1, "--n-controls", 2, "--n-nonsense", 10, "--n-edges", 4)
    assert run("prove", world, tmp_path / "proof", corpus, {}, circuit, *small) == 0
    assert run("edit", world, tmp_path / "edit", corpus, {}, circuit, "--prediction-stories", 10) == 0
    (tmp_path / "prompts.yaml").write_text('prompts: ["the cat was not good"]')
    short = ("--n-members", 4, "--n-examples", 0, "--prompts", tmp_path / "prompts.yaml", "--n-stories", 120)
    assert run("explore", world, tmp_path / "explorer", corpus, {}, circuit, *short) == 0
    assert "other stories" not in capsys.readouterr().err
    shutil.copy(world / corpus, tmp_path / f"copy-{corpus}")  # the same text by another name
    copy = str(tmp_path / f"copy-{corpus}")
    assert run("explore", world, tmp_path / "again", copy, {}, circuit, *short) == 0
    expected = {"separator": None, "column": None} | settings
    for file in ("proof/proof.json", "edit/edit.json", "explorer/explorer.json", "again/explorer.json"):
        source = json.loads((tmp_path / file).read_text())["provenance"]["corpus"]
        assert {key: source[key] for key in expected} == expected, file


def test_options_replace_what_circuits_say_of_their_corpus(world, searched, tmp_path, capsys):
    asked = query(world, tmp_path / "query.yaml")
    assert run("circuits", world, tmp_path / "found", "both.txt", {"separator": "blank-line"}, asked) == 0
    capsys.readouterr()
    circuit = tmp_path / "found/circuit.json"
    assert run("edit", world, tmp_path / "edit", "both.txt", {"separator": "line"}, circuit) == 0
    assert "other stories than those of the search" in capsys.readouterr().err


def killed(*arguments, **named):
    raise KeyboardInterrupt


def resumed(world, tmp_path, verb, corpus, settings):
    """Give a verb's command; its exit code."""
    asked = {
        "interactions": ("--layer", LAYER, "--k", 5, "--coactive", "--n-stories", 60),
        "features": ("--layer", LAYER, "--side", "out", "--feature", 3, "--n-stories", 60),
        "train": (tmp_path / "recipe.yaml",),
        "train-sae": (tmp_path / "recipe.yaml",),
    }[verb]
    if not verb.startswith("train"):
        return run(verb, world, tmp_path / "out", corpus, settings, *asked)
    recipe = TRAIN if verb == "train" else TRAIN_SAE | {"model": str(world / "tiny")}
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(recipe | {"corpus": str(world / corpus)} | settings))
    return main([verb, *map(str, asked), "--out", str(tmp_path / "out")])


STARTS = {
    "interactions": "bilinear_circuits.interactions.activity.collect_activity",
    "features": "sae.commands.report_run.ReportRun.report",
    "train": "bilinear_circuits.training.language_model.train_model",
    "train-sae": "sae.train.train_dictionaries",
}
OTHERS = {
    "separator": ("both.txt", {"separator": "blank-line"}, {"separator": "line"}),
    "column": ("rows.csv", {"column": "story"}, {"column": "text"}),
}


@pytest.mark.parametrize("setting", OTHERS)
@pytest.mark.parametrize("verb", STARTS)
@pytest.mark.slow
def test_a_run_on_stories_found_in_another_way_is_not_gone_on_with(verb, setting, world, tmp_path, monkeypatch, capsys):
    corpus, settings, other = OTHERS[setting]
    with monkeypatch.context() as patch:
        patch.setattr(STARTS[verb], killed)
        with pytest.raises(SystemExit, match="130"):
            sys.exit(resumed(world, tmp_path, verb, corpus, settings))
    assert list(tmp_path.glob("out/**/run.json"))
    capsys.readouterr()
    assert resumed(world, tmp_path, verb, corpus, other) == 2
    assert f"where {setting} differ. Remove it" in capsys.readouterr().err
    assert resumed(world, tmp_path, verb, corpus, settings) == 0
