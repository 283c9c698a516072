"""The verb `graph`, end to end on a tiny model."""

import json
import multiprocessing
import re

import pytest
from graph_schema import DETAIL, SCHEMA
from helpers import refused
from jsonschema import Draft7Validator
from planted import interactions_of, random_stories, save_between_dictionaries, tiny_llama, word_tokenizer

from bilinear_circuits.commands.graph import default_slug, details_name
from bilinear_circuits.commands.graph_folder import LIST, GraphFolder
from bilinear_circuits.prompts.accounts import prompt_tokens
from bilinear_circuits.prompts.attribution import attribute_prompt

TEXT = "the cat was not good and the zebra sat"


@pytest.fixture(scope="module")
def graph():
    model, ids = tiny_llama(), prompt_tokens(TEXT, word_tokenizer(), 32)
    return attribute_prompt(model, [interactions_of(model, 1)], [(1, feature) for feature in range(8)], ids)


@pytest.fixture(scope="module")
def options(tmp_path_factory):
    """What names a tiny model, its dictionaries and its stories."""
    root = tmp_path_factory.mktemp("graph")
    save_between_dictionaries(root, (1,))
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
    slug = f"{'-'.join(f'1-{one}' for one in active)}-the-cat-was-not-good-and-the-zebra-sat"
    assert {file.name for file in (tmp_path / "out").iterdir()} == {f"{slug}.json", LIST, "features", "neuronpedia"}
    document, shown = json.loads((tmp_path / f"out/{slug}.json").read_text()), capsys.readouterr().out
    Draft7Validator(SCHEMA).validate(document)
    metadata = document["metadata"]
    assert (metadata["slug"], metadata["prompt"], metadata["info"]["creator_name"]) == (slug, TEXT, "N. N.")
    upload = json.loads((tmp_path / f"out/neuronpedia/{slug}.json").read_text())
    Draft7Validator(SCHEMA).validate(upload)
    assert upload["nodes"] == document["nodes"]
    assert (upload["metadata"]["scan"], upload["metadata"]["feature_details"]) == (
        "tiny",
        {"neuronpedia_source_set": "saes"},
    )
    assert json.loads((tmp_path / "out" / LIST).read_text()) == {"graphs": [metadata]}
    assert metadata["transcoder_list"] == ["blocks.1.mlp.hook_in", "blocks.1.mlp.hook_out"]
    provenance = document["bilinear_circuits"]["provenance"]
    assert provenance["config"]["feature"] == active
    assert len(provenance["model"]["sha256"]) == 64
    chosen = [one for one in graph.attributions if one.layer == 1 and one.feature in active]
    assert len(document["qParams"]["pinnedIds"]) == len(chosen)
    assert "9 tokens: the cat was not good and the [UNK] sat" in shown
    for one in chosen:
        assert re.search(rf"^ +{one.position} \S+ +{one.activation:.3f} +{one.shares.sum():.3f} ", shown, re.MULTILINE)
    assert f"written: {tmp_path / 'out'}/{slug}.json, {len(document['nodes'])} nodes" in shown
    for file in (tmp_path / "out").rglob("*.json"):
        assert str(tmp_path) not in file.read_text()


def test_the_page_of_circuit_tracer_finds_the_details_of_every_feature_in_the_folder(options, verb, tmp_path):
    """Its server answers /data/... from the folder; the page asks for SCAN/FEATURE.json where the scan begins so."""
    assert (
        verb(*options, "--prompt", TEXT, "--layer", 1, "--feature", *range(8), "--out", tmp_path, "--slug", "one") == 0
    )
    document = json.loads((tmp_path / "one.json").read_text())
    scan = document["metadata"]["scan"]
    assert scan.startswith("./data/features/tiny-")
    asked = {node["feature"] for node in document["nodes"] if node["feature_type"] == "cross layer transcoder"}
    folder = tmp_path / scan.removeprefix("./data/")
    assert {int(file.stem) for file in folder.iterdir()} == asked
    assert all(Draft7Validator(DETAIL).is_valid(json.loads(file.read_text())) for file in folder.iterdir())
    d_sae_out, frequent = 19, 0
    for file in folder.iterdir():
        detail = json.loads(file.read_text())
        assert int(file.stem) == (1 + detail["index"]) * (2 + detail["index"]) // 2 + detail["index"]
        assert bool(detail["top_logits"]) == (detail["index"] < d_sae_out)
        examples = [one for band in detail["examples_quantiles"] for one in band["examples"]]
        assert bool(examples) == (detail["activation_frequency"] > 0)
        frequent += len(examples) > 6
        for one in examples:
            assert one["tokens_acts_list"][one["train_token_ind"]] != 0
            assert detail["act_min"] - 1e-4 <= min(one["tokens_acts_list"])
            assert max(one["tokens_acts_list"]) <= detail["act_max"] + 1e-4
    assert frequent


def test_a_second_graph_is_added_and_the_same_one_replaced(options, verb, graph, tmp_path):
    asked = [*options, "--layer", 1, "--out", tmp_path, "--feature", *range(8)]
    (tmp_path / LIST).write_text(json.dumps({"graphs": [{"slug": "theirs", "scan": "x"}], "kept": 1}))
    (tmp_path / "theirs.json").write_text("{}")
    assert verb(*asked, "--prompt", TEXT, "--slug", "first") == 0
    once = {file: file.read_bytes() for file in tmp_path.rglob("*.json")}
    assert verb(*asked, "--prompt", "the cat was good", "--slug", "second") == 0
    assert verb(*asked, "--prompt", TEXT, "--slug", "first") == 0
    listed = json.loads((tmp_path / LIST).read_text())
    assert listed["kept"] == 1
    assert listed["graphs"][0] == {"slug": "theirs", "scan": "x"}
    assert sorted(one["slug"] for one in listed["graphs"]) == ["first", "second", "theirs"]
    assert (tmp_path / "theirs.json").read_text() == "{}"
    for file, before in once.items():
        if file.parent.name.startswith("tiny-"):
            assert file.read_bytes() == before


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        (LIST, '{"graphs": [', "graph-metadata.json must be a JSON file"),
        (LIST, '{"graphs": {}}', 'graph-metadata.json must hold a list "graphs" of entries with a slug'),
        (LIST, '{"graphs": [{"prompt": "a"}]}', 'graph-metadata.json must hold a list "graphs" of entries with a slug'),
        (LIST, '{"graphs": [{"slug": "mine"}]}', "got mine, which is a graph of another program there"),
        ("mine.json", '{"metadata": {"slug": "mine"}}', "got mine, which is a graph of another program there"),
        ("mine.json", "[]", "mine.json must be a JSON object"),
        ("features", "", "out must not hold a file where a folder is made"),
    ],
)
def test_a_folder_that_cannot_take_the_graph_is_refused_before_the_work(name, content, message, tmp_path, verb, capsys):
    """The model does not exist, which would be said next."""
    (tmp_path / name).write_text(content)
    asked = ["--prompt", TEXT, "--layer", 4, "--feature", 3, "--slug", "mine", "--out", tmp_path]
    assert verb(*asked, "--device", "nowhere") == 2
    assert message in capsys.readouterr().err.splitlines()[-1]
    assert [(file.name, file.read_text()) for file in tmp_path.iterdir()] == [(name, content)]


def test_the_slug_of_another_prompt_is_refused(tmp_path):
    metadata = {"slug": "a", "prompt": "one", "info": {"generator": {"name": "us"}}}
    GraphFolder(tmp_path, "a", "us").write("one", {"metadata": metadata}, {})
    GraphFolder(tmp_path, "a", "us").check("one")
    with refused(ValueError, r"slug must be new in .*, or that of the same prompt, got a, .* the prompt 'one' there"):
        GraphFolder(tmp_path, "a", "us").check("two")


def write_many(folder, name, n):
    for index in range(n):
        slug = f"{name}-{index}"
        metadata = {"slug": slug, "prompt": slug, "info": {"generator": {"name": "us"}}}
        GraphFolder(folder, slug, "us").write(
            slug, {"metadata": metadata}, {f"features/x/{slug}.json": {"index": index}}
        )


def test_runs_that_write_at_once_wait_for_each_other(tmp_path):
    context = multiprocessing.get_context("fork")
    writers = [context.Process(target=write_many, args=(tmp_path / "out", name, 20)) for name in ("a", "b", "c")]
    for one in writers:
        one.start()
    for one in writers:
        one.join()
    assert [one.exitcode for one in writers] == [0, 0, 0]
    listed = json.loads((tmp_path / "out" / LIST).read_text())["graphs"]
    assert {one["slug"] for one in listed} == {f"{name}-{index}" for name in "abc" for index in range(20)}
    assert len(listed) == 60
    assert [one.name for one in tmp_path.iterdir()] == ["out"]


def test_a_write_that_fails_leaves_what_was_there(tmp_path):
    write_many(tmp_path / "out", "a", 1)
    before = {file: file.read_bytes() for file in tmp_path.rglob("*") if file.is_file()}
    metadata = {"slug": "b", "prompt": "b"}
    with pytest.raises(ValueError, match="not JSON compliant"):
        GraphFolder(tmp_path / "out", "b", "us").write(
            "b", {"metadata": metadata}, {"features/x/9.json": {"x": float("nan")}}
        )
    assert {file: file.read_bytes() for file in tmp_path.rglob("*") if file.is_file()} == before
    with pytest.raises(ValueError, match="not JSON compliant"):
        GraphFolder(tmp_path / "new", "b", "us").write("b", {"metadata": metadata, "x": float("nan")}, {})
    assert [one.name for one in tmp_path.iterdir()] == ["out"]


def test_a_slug_that_is_cut_stays_another_for_other_features_and_prompts():
    prompts = ["a " * 40, "a " * 41]
    features = [[(1, number) for number in range(first, first + 20)] for first in (3, 4)]
    slugs = {default_slug(some, prompt) for some in (*features, [(1, 2)]) for prompt in prompts}
    assert len(slugs) == 6
    assert all(len(one) <= 60 and re.fullmatch("[a-z0-9]+(-[a-z0-9]+)*", one) for one in slugs)
    assert default_slug([(4, 143)], "She could not.") == "4-143-she-could-not"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (["--prompt", " "], "prompt must hold at least one token, got ' '"),
        (["--prompt", "cat " * 40], "prompt must have at most 31 tokens"),
        (["--feature", "99"], "feature must be between 0 and 18"),
        (["--layer", "2"], "layer must have dictionaries"),
        (["--slug", "A b"], "slug must be made of a-z, 0-9 and single dashes, got 'A b'"),
        (["--slug", "a" * 201], "slug must be at most 200 characters long, got 201."),
        (["--slug", "graph-metadata"], "slug must not be graph-metadata"),
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


def test_details_are_named_by_all_that_decides_the_stories():
    corpus = {"sha256": "c", "n_stories": 5, "separator": None, "column": None}
    source = {"model": {"sha256": "a"}, "dictionaries": [{"sha256": "b"}], "corpus": corpus}
    names = {
        details_name("m", source | {"corpus": corpus | change})
        for change in ({}, {"separator": "line"}, {"column": "story"}, {"n_stories": 6})
    }
    assert len(names) == 4
