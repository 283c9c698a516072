"""Names of features: fixed once and stored with their dictionary, or given; the same in every verb."""

import json
import shutil

import pytest
from helpers import refused
from verbs import asked, write_world

from bilinear_circuits.cli import main
from bilinear_circuits.dictionaries.dictionary import Dictionary
from bilinear_circuits.dictionaries.names import FILE, read_names

SLOW = [pytest.param(verb, marks=pytest.mark.slow) for verb in ("explore", "prove")]


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    root = tmp_path_factory.mktemp("names")
    made = write_world(root)
    assert main(["names", *made["PLACE"], "--n-stories", "100"]) == 0
    assert main(asked("circuits", made, root / "found")) == 0
    return root, made


def names_of(world, layer, side):
    return read_names(world[0] / f"saes/blocks.{layer}.mlp.hook_{side}", 10**6)


def test_names_are_stored_with_each_dictionary_and_loaded_with_it(world):
    for layer in (1, 2):
        for side in ("in", "out"):
            folder = world[0] / f"saes/blocks.{layer}.mlp.hook_{side}"
            dictionary, names = Dictionary.load(folder), names_of(world, layer, side)
            assert dict(dictionary.names) == names
            assert 3 < len(names) <= dictionary.d_sae
            assert all(1 <= len(name.split(" \u00b7 ")) <= 3 for name in names.values())
            source = json.loads((folder / FILE).read_text())["provenance"]
            assert (source["corpus"]["name"], source["corpus"]["n_stories"]) == ("stories.txt", 100)


def test_a_feature_has_its_stored_name_whatever_stories_are_read(world, tmp_path, capsys):
    """Twenty stories would give other names; circuit.json, graph, report, inspect and prove have the stored ones."""
    made, few = world[1], ["--n-stories", "20"]
    stored = names_of(world, 1, "in")
    assert main(["inspect", *made["PLACE"], "--layer", "1", "--feature", "3", *few, "--out", str(tmp_path / "i")]) == 0
    listed = json.loads((tmp_path / "i/feature.json").read_text())["profile"]["groups"]
    shown = {one["feature"]: one["label"] for one in (*listed["first"], *listed["second"])}
    assert shown
    assert shown == {feature: stored[feature] for feature in shown}
    assert main([*asked("graph", made, tmp_path / "g"), *few]) == 0
    (graph,) = (one for one in (tmp_path / "g").glob("*.json") if one.name != "graph-metadata.json")
    text = graph.read_text()
    assert any(name in text for name in stored.values())
    report = [
        "features",
        *made["PLACE"],
        "--layer",
        "1",
        "--feature",
        "0",
        "1",
        "2",
        *few,
        "--out",
        str(tmp_path / "f"),
    ]
    assert main(report) == 0
    rows = (tmp_path / "f/layer-1-in/features.csv").read_text()
    assert all(stored[feature].split(" \u00b7 ")[0] in rows for feature in (0, 1, 2) if feature in stored)
    found = json.loads((world[0] / "found/circuit.json").read_text())
    for circuit in found["circuits"]:
        own = names_of(world, circuit["evidence"]["layer"], "in")
        for one in circuit["profile"]["groups"]["first"]:
            assert one["label"] == own[one["feature"]]


def test_a_killed_naming_goes_on_and_names_of_other_weights_are_refused(world, tmp_path, capsys):
    root, places = world
    saes = tmp_path / "saes"
    shutil.copytree(root / "saes", saes)
    line = [
        "names",
        "--model",
        places["MODEL"],
        "--saes",
        str(saes),
        "--corpus",
        places["CORPUS"],
        "--n-stories",
        "100",
    ]
    whole = {one.parent.name: json.loads(one.read_text())["names"] for one in saes.glob(f"*/{FILE}")}
    (saes / "blocks.2.mlp.hook_in" / FILE).unlink()  # as a kill after the first layer would have left it
    (saes / "blocks.2.mlp.hook_out" / FILE).unlink()
    assert main(line) == 0
    assert {one.parent.name: json.loads(one.read_text())["names"] for one in saes.glob(f"*/{FILE}")} == whole
    shutil.copy(saes / "blocks.2.mlp.hook_in" / FILE, saes / "blocks.1.mlp.hook_in" / FILE)
    capsys.readouterr()
    assert main(["lowrank", *line[1:], "--layers", "1"]) == 2
    assert "whose names were made of other weights. Remove it." in capsys.readouterr().err


def test_a_feature_named_twice_is_refused(world, tmp_path, capsys):
    (tmp_path / "labels.yaml").write_text("out: {1/3: x, 3: y}")
    line = ["inspect", *world[1]["PLACE"], "--layer", "1", "--feature", "3", "--labels", str(tmp_path / "labels.yaml")]
    assert main(line) == 2
    assert "labels must name each feature once, got 1/3 twice" in capsys.readouterr().err


def test_names_are_not_replaced_unless_asked(world, capsys):
    before = names_of(world, 1, "in")
    assert main(["names", *world[1]["PLACE"], "--n-stories", "30"]) == 2
    assert "hook_in has a names.json already" in capsys.readouterr().err
    assert names_of(world, 1, "in") == before


@pytest.mark.parametrize("verb", ["circuits", "inspect", "features", "graph", *SLOW])
def test_labels_go_before_stored_names_in_every_verb_that_names_features(verb, world, tmp_path, capsys):
    labels = tmp_path / "labels.yaml"
    every = {f"{layer}/{feature}": f"mine{feature}" for layer in (1, 2) for feature in range(17)}
    labels.write_text(json.dumps({"in": every, "out": {"1/3": "my output"}}))
    line = [*asked(verb, world[1], tmp_path / "out"), "--labels", str(labels)]
    assert main(line) == 0
    texts = [
        one.read_text(encoding="utf-8") for one in (tmp_path / "out").rglob("*") if one.suffix in (".json", ".html")
    ]
    assert any("mine1" in text for text in (*texts, capsys.readouterr().out))


WRONG = {
    "out: {x: a}": "names must map feature numbers to texts, got 'x': 'a'",
    "out: {3: [a]}": "names must map feature numbers to texts, got 3: ['a']",
    "out: {3: ''}": "names must map feature numbers to texts",
    "out: [a]": "labels must map features to names, got ['a']",
    "3: a": "labels must hold the keys in and out, got 3",
    "out: {1/x: a}": "names must map feature numbers to texts, got 'x': 'a'",
    "out: {a/1: a}": "labels must be of layer/feature, such as 1/12, got 'a/1'",
    "out: {400: a}": "names must be of features between 0 and 18, got 400 in out of",
}


@pytest.mark.parametrize("text", WRONG)
def test_labels_that_are_none_are_one_line(text, world, tmp_path, capsys):
    (tmp_path / "labels.yaml").write_text(text)
    line = ["inspect", *world[1]["PLACE"], "--layer", "1", "--feature", "3", "--labels", str(tmp_path / "labels.yaml")]
    assert main(line) == 2
    assert WRONG[text] in capsys.readouterr().err


def test_several_layers_need_the_layer_of_a_feature(world, tmp_path, capsys):
    (tmp_path / "labels.yaml").write_text("out: {3: a}")
    line = [*asked("circuits", world[1], tmp_path / "out"), "--labels", str(tmp_path / "labels.yaml")]
    assert main(line) == 2
    assert "labels must be of layer/feature, such as 1/12, got 3" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("null", "names.json must be a JSON object"),
        ('{"kind": "x"}', "names.json must be 'feature names' of version 1"),
        ('{"kind": "feature names", "schema_version": 1, "names": {"99": "a"}}', "between 0 and 16, got 99"),
        ('{"kind": "feature names", "schema_version": 1, "names": {"-1": "a"}}', "got '-1': 'a'"),
    ],
)
def test_a_damaged_file_of_names_is_refused(text, message, world, tmp_path):
    shutil.copytree(world[0] / "saes/blocks.1.mlp.hook_in", tmp_path / "sae")
    (tmp_path / "sae" / FILE).write_text(text)
    with refused(ValueError, message):
        Dictionary.load(tmp_path / "sae")
