"""The verb `graph`, end to end on a tiny model."""

import json
import re

import pytest
import torch
from graph_schema import SCHEMA
from jsonschema import Draft7Validator
from planted import interactions_of, random_stories, tiny_llama, word_tokenizer

from bilinear_circuits.attribution import attribute_prompt
from bilinear_circuits.prompts import prompt_tokens

TEXT = "the cat was not good and the zebra sat"


@pytest.fixture(scope="module")
def graph():
    model, ids = tiny_llama(), prompt_tokens(TEXT, word_tokenizer(), 32)
    return attribute_prompt(model, [interactions_of(model, 1)], [(1, feature) for feature in range(8)], ids)


@pytest.fixture(scope="module")
def options(tmp_path_factory):
    """What names a tiny model, its dictionaries and its stories."""
    from sae.folders import write_dictionary

    root = tmp_path_factory.mktemp("graph")
    single = tiny_llama()
    single.save_pretrained(root / "tiny")
    word_tokenizer().save_pretrained(root / "tiny")
    one = interactions_of(single, 1)
    for dictionary in (one.sae_in, one.sae_out):
        write_dictionary(dictionary, root / "saes" / dictionary.hook_name, {}, torch.float32)
    (root / "stories.txt").write_text("\n<|endoftext|>\n".join(random_stories(40)))
    names = {"model": "tiny", "saes": "saes", "corpus": "stories.txt"}
    return [text for key, name in names.items() for text in (f"--{key}", str(root / name))]


@pytest.fixture(scope="module")
def verb():
    from bilinear_circuits.cli import main

    return lambda *arguments: main(["graph", *map(str, arguments)])


def test_the_verb_writes_and_prints_a_graph(options, verb, graph, tmp_path, capsys):
    active = sorted({one.feature for one in graph.attributions if one.layer == 1})[:3]
    asked = [*options, "--prompt", TEXT, "--layer", 1, "--creator", "N. N.", "--out", tmp_path / "out"]
    assert verb(*asked, "--feature", *active[:2], "--feature", active[2]) == 0
    assert [file.name for file in (tmp_path / "out").iterdir()] == ["graph.json"]
    document, shown = json.loads((tmp_path / "out/graph.json").read_text()), capsys.readouterr().out
    Draft7Validator(SCHEMA).validate(document)
    metadata = document["metadata"]
    assert metadata["slug"] == f"{'-'.join(f'1-{one}' for one in active)}-the-cat-was-not-good-and-the-zebra-sat"[:60]
    assert (metadata["prompt"], metadata["scan"], metadata["info"]["creator_name"]) == (TEXT, "tiny", "N. N.")
    assert metadata["transcoder_list"] == ["blocks.1.mlp.hook_in", "blocks.1.mlp.hook_out"]
    provenance = document["bilinear_circuits"]["provenance"]
    assert provenance["config"]["feature"] == active
    assert len(provenance["model"]["sha256"]) == 64
    chosen = [one for one in graph.attributions if one.layer == 1 and one.feature in active]
    assert len(document["qParams"]["pinnedIds"]) == len(chosen)
    assert "9 tokens: the cat was not good and the [UNK] sat" in shown
    for one in chosen:
        assert re.search(rf"^ +{one.position} \S+ +{one.activation:.3f} +{one.shares.sum():.3f} ", shown, re.MULTILINE)
    assert f"written: {tmp_path / 'out'}/graph.json, {len(document['nodes'])} nodes" in shown


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (["--prompt", " "], "prompt must hold at least one token, got ' '"),
        (["--prompt", "cat " * 40], "prompt must have at most 31 tokens"),
        (["--feature", "99"], "feature must be between 0 and 18"),
        (["--layer", "2"], "layer must have dictionaries"),
        (["--slug", "A b"], "slug must be made of a-z, 0-9 and single dashes, got 'A b'"),
        (["--max-links", "0"], "max_links must be at least 1, got 0"),
    ],
)
def test_a_mistake_of_the_verb_is_one_line_and_leaves_nothing(change, message, options, verb, tmp_path, capsys):
    asked = [*options, "--prompt", TEXT, "--layer", 1, "--feature", 3, "--out", tmp_path / "out", *change]
    if change[0] == "--feature":
        asked = [*options, "--prompt", TEXT, "--layer", 1, "--out", tmp_path / "out", *change]
    assert verb(*asked) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert message in captured.err.splitlines()[-1]
    assert not (tmp_path / "out").exists()
