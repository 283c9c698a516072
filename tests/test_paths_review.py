"""Prompt graphs of features, and removals that overlap: what must add up, and what is taken away once."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from helpers import refused
from llamas import random_dictionary, random_llama, random_run

from bilinear_circuits.paths.attention import AttentionHead
from bilinear_circuits.paths.nodes import Node
from bilinear_circuits.paths.removal import Pair
from bilinear_circuits.paths.weights import read_weights
from bilinear_circuits.utilities.feature import Feature


@pytest.fixture(scope="module")
def run():
    return random_run("bilinear", 6, dictionaries={0: random_dictionary(0), 1: random_dictionary(1)})


@pytest.mark.parametrize("position", [2, 5])
def test_flow_out_of_the_mlp_that_a_feature_reads_ends_in_the_feature(run, position):
    graph, node = run.graph(Feature(1, 3), position), Node("mlp", 1, position)
    found = graph.outflows(node)
    assert [one.kind for one in found.nodes] == ["constant"]
    assert found.total == pytest.approx(graph.value(node), rel=1e-9)


def test_the_edge_into_a_feature_is_one_of_all_edges(run):
    graph, node = run.graph(Feature(1, 3), 5), Node("mlp", 1, 5)
    into = [edge for edge in graph.edges(1.0).named(run.frozen, 10**6) if edge[1].kind == "constant"]
    assert into == [(node, Node("constant", position=5), pytest.approx(graph.value(node)))]
    assert [
        edge for edge in run.graph(7).edges(1.0).named(run.frozen, 10**6) if edge[1] == into[0][1] and edge[0] == node
    ] == []


def test_pairs_of_the_mlp_that_a_feature_reads_are_refused(run):
    node = Node("mlp", 1, 5)
    pairs = run.graph(Feature(1, 3), 5).pairs(node, 1)
    pair = Pair(node, pairs.parts[pairs.first[0]], pairs.parts[pairs.second[0]])
    with refused(ValueError, "remove must hold no pairs of the MLP that the target feature reads, got mlp 1 @5"):
        run.effect(Feature(1, 3), pair, 5)
    assert run.effect(7, pair).real.abs() > 0


def test_a_part_is_taken_away_once(run):
    feature = next(node for node in run.graph(7).nodes().nodes if node.kind == "feature" and node.layer == 0)
    mlp, embedding = Node("mlp", 0, feature.position), Node("embedding", position=feature.position)
    other = next(node for node in run.graph(7).pairs(mlp, 1).parts if node.kind == "head")
    pair, turned = Pair(mlp, embedding, other), Pair(mlp, other, embedding)
    for once, twice in ((feature, [feature, feature]), (pair, [pair, turned])):
        assert run.effect(7, [[once]]).real.equal(run.effect(7, [twice]).real)
    for part in (feature, pair):
        for whole in (mlp, Node("mlp", 0)):
            with refused(ValueError, "remove must hold each part once, got .* beside the whole MLP of layer 0"):
                run.effect(7, [[whole, part]])


def test_a_pruned_graph_of_a_feature_has_no_logits(run):
    pruned = run.graph(Feature(0, 2), 5).prune(1.0)
    assert pruned.value == pytest.approx(pruned.full, rel=1e-9)
    assert pruned.logits is None
    assert pruned.keeps_argmax is None
    assert pruned.kl != pruned.kl


def test_a_head_that_writes_nothing_is_composed_with_nothing():
    model = random_llama("silu")
    with torch.no_grad():
        model.model.layers[0].self_attn.o_proj.weight.zero_()
    weights = read_weights(model)
    silent, later = AttentionHead.of(weights, 0, 0), AttentionHead.of(weights, 1, 0)
    assert [later.composition(silent, by) for by in "QKV"] == [0, 0, 0]
    assert silent.read_by_mlp(weights.layers[1]) == (0, 0)
    assert silent.copying_score() == 0.5


def test_layers_without_rotary_embeddings_are_refused():
    model = random_llama("silu")
    model.model.layers[1].self_attn.use_rope = 0
    with refused(ValueError, "rotary embeddings in every layer.*none in layer 1"):
        read_weights(model)


@pytest.mark.slow
def test_links_of_a_graph_stand_in_one_order_in_every_process():
    """Nodes are texts and numbers, whose sets are in another order in every process."""
    code = (
        "import sys; sys.path.insert(0, 'tests'); import hashlib, json; from test_paths_command import *\n"
        "graph = run_of('bilinear').graph(5)\n"
        "made = path_graph(graph, GraphSource('a', 'a', '.'), str)\n"
        "print(hashlib.sha256(json.dumps(made['links']).encode()).hexdigest())"
    )
    root = Path(__file__).parents[1]
    found = set()
    for seed in ("1", "2"):
        environment = os.environ | {"PYTHONHASHSEED": seed, "OMP_NUM_THREADS": "1"}
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=root, env=environment)
        assert done.returncode == 0, done.stderr
        found.add(done.stdout)
    assert len(found) == 1
