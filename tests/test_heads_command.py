"""The verb `heads`, end to end on tiny models, and its page."""

import csv
import re

import pytest
import torch
from helpers import refused
from llamas import random_llama, saved_world, verb_on
from pages import check_page, page_of, read, rows_of, shown

from bilinear_circuits.paths.heads import summarize_heads
from bilinear_circuits.paths.weights import read_weights

PROMPT = "the cat was not good and the dog sat"


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    return saved_world(tmp_path_factory.mktemp("jane-doe"))


@pytest.fixture(scope="module")
def verb(world):
    return verb_on(world)


def test_heads_of_a_model_are_what_their_weights_say(verb, tmp_path, capsys):
    assert verb("heads", "--n-distances", 5, "--k", 2, "--out", tmp_path) == 0
    assert re.search(r"^2\.1 .* with [01]\.[01]", capsys.readouterr().out, re.MULTILINE)
    document, page = read(tmp_path, "heads.json"), page_of(tmp_path)
    assert len(document["heads"]) == 6
    assert document["n_tokens"] == 16
    rows = rows_of(page)
    check_page(page)
    for one in document["heads"]:
        name = f"{one['layer']}.{one['head']}"
        row = next(row for row in rows if row[0] == name and len(row) == 8)
        assert row[1] == f"{100 * one['copying']:#.3g} %".replace("100. %", "100 %")
        assert len(one["composition"]) == (3 if one["layer"] else 0)
        for each in one["composition"]:
            assert f"{each['value']:.3f} with {each['layer']}.{each['head']}" in row
        for look in one["looks"]:
            assert [name, look["query"], look["key"], str(look["distance"]), shown(look["score"], 2)] in rows
    with (tmp_path / "heads.csv").open() as opened:
        assert [float(row["copying"]) for row in csv.DictReader(opened)] == pytest.approx(
            [one["copying"] for one in document["heads"]]
        )


def test_the_table_of_heads_agrees_with_dense_matrices():
    weights = read_weights(random_llama("silu"), torch.float64)
    ids = torch.arange(3, 20)
    table = summarize_heads(weights, [(1, 3)], ids, n_distances=4, k=3)
    (one,) = table.heads
    rms = (weights.W_E.square().mean(1, keepdim=True) + weights.eps).sqrt()
    E, layer = weights.W_E / rms, weights.layers[1]
    moved = E[ids] @ layer.W_V[1] @ layer.W_O[3] @ weights.W_U[:, ids]
    assert one.moves.value.abs().tolist() == pytest.approx(moved.abs().flatten().sort().values[-3:].flip(0).tolist())
    scores = (E[ids] @ layer.W_Q[3]) @ (E[ids] @ layer.W_K[1]).T * weights.scaling
    assert one.by_distance[0].item() == pytest.approx(scores.mean().item())
    centred = scores - scores.mean(1, keepdim=True)
    assert one.spread == pytest.approx(centred.square().mean().sqrt().item())
    at_once = one.curves[one.looks.distance == 0, 0] if (one.looks.distance == 0).any() else centred.new_zeros(0)
    assert all(value <= centred.max() + 1e-9 for value in at_once)
    assert one.looks.score[0] >= centred.max() - 1e-9
    assert {each.by for each in one.compositions} == {"Q", "K", "V"}
    with refused(ValueError, "token_ids must name at least one token"):
        summarize_heads(weights, [(0, 0)], ids[:0])


def test_why_a_head_looks_is_printed_and_written(verb, tmp_path, capsys):
    asked = ["--layer", 2, "--head", 1, "--prompt", PROMPT]
    assert verb("heads", *asked, "--query-pos", 6, "--key-pos", 2, "--out", tmp_path) == 0
    said, document = capsys.readouterr().out, read(tmp_path, "heads.json")
    assert "head 2.1: and @6 looks at cat @2" in said
    assert f"log-odds against the mean key {document['log_odds']:+.3f}" in said
    page = page_of(tmp_path)
    check_page(page)
    for terms in zip(*document["terms"].values(), strict=True):
        bare = [re.sub(" @\\d+$", "", text) for text in terms[:2]]
        if terms in [*zip(*document["terms"].values(), strict=True)][:20]:
            assert [*bare, shown(terms[2])] in rows_of(page)
    assert verb("heads", *asked) == 0


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--head", "1"], "layer must be given with head"),
        (["--layer", "3"], "layer must be below 3, got 3"),
        (["--layer", "1", "--head", "2"], "head must be below 2, got 2"),
        (["--prompt", "the cat"], "layer and head must be given with prompt"),
        (["--key-pos", "1"], "prompt must be given with key_pos"),
        (["--prompt", "the cat", "--layer", "1", "--head", "0", "--query-pos", "3"], "query_pos must be below 3"),
        (["--prompt", "the cat", "--layer", "1", "--head", "0", "--query-pos", "0", "--key-pos", "1"], "seen by the"),
        (["--n-tokens", "0"], "n_tokens must be at least 1"),
    ],
)
def test_heads_that_are_not_there_are_refused(arguments, message, verb, capsys):
    assert verb("heads", *arguments) == 2
    assert message in capsys.readouterr().err.splitlines()[-1]
