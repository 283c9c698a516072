"""Flow of a prompt's graph: sums over cuts, flows into and out of nodes, pairs, mass, against oracles."""

import itertools

import pytest
import torch
from helpers import refused
from llamas import KINDS, random_dictionary, random_llama, random_prompt, random_run, relative

from bilinear_circuits.circuits.query import QueryTokens
from bilinear_circuits.paths.attention import AttentionHead
from bilinear_circuits.paths.degrees import frozen_pass
from bilinear_circuits.paths.nodes import Node, residual_parts
from bilinear_circuits.paths.prune import _unravel
from bilinear_circuits.paths.run import FrozenRun
from bilinear_circuits.paths.target import read_target
from bilinear_circuits.utilities.feature import Feature
from bilinear_circuits.utilities.saving import load_result, save_result

EXACT = 1e-9


def check_graph(graph, nodes=None):
    """The total at every cut; inflow, outflow and flow equal at every node."""
    cuts = graph.flow.cuts
    scale = max(abs(graph.total), graph.nodes().value.abs().max().item())
    assert (cuts - graph.total).abs().max() < EXACT * scale
    for node in nodes or graph.nodes().nodes:
        value = graph.value(node)
        assert abs(graph.outflows(node).total - value) < EXACT * scale, node
        if node.kind in ("head", "mlp", "feature", "error"):
            assert abs(graph.inflows(node).total - value) < EXACT * scale, node
        if node.kind in ("mlp", "feature", "error") and graph.frozen.weights.layers[node.layer].W_in is not None:
            pairs = graph.pairs(node, 3)
            assert abs(pairs.total + pairs.constant - value) < EXACT * scale, node


@pytest.mark.parametrize("kind", KINDS)
def test_sums_are_exact_at_every_cut_and_node(kind):
    check_graph(random_run(kind, n_pos=4).graph((7, 12)))


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(20))
@pytest.mark.parametrize("kind", KINDS)
def test_sums_are_exact_in_two_hundred_models(kind, seed):
    heads = ((2, 1), (4, 2), (3, 3))[seed % 3]
    run = random_run(kind, n_pos=3 + seed % 4, seed=seed, n_layers=1 + seed % 4, n_heads=heads[0], n_groups=heads[1])
    graph = run.graph({5: 1.0, 8: -0.5, 9: 2.0}, position=-1 - seed % 2, sources=seed % 2 == 0)
    nodes = graph.nodes().nodes
    check_graph(graph, nodes[:: 1 + len(nodes) // 40])


@pytest.mark.parametrize("kind", ["silu", "biased", "gemma2"])
def test_features_and_errors_are_nodes_with_inflows_too(kind):
    dictionaries = {layer: random_dictionary(layer) for layer in (0, 1)}
    run = random_run(kind, n_pos=3, dictionaries=dictionaries)
    graph = run.graph(5)
    assert {node.kind for node in graph.nodes().nodes} >= {"embedding", "head", "feature", "error", "bias"}
    check_graph(graph)
    whole = random_run(kind, n_pos=3).graph(5)
    for t in range(3):
        parts = [node for node in graph.nodes().nodes if node.layer == 0 and node.position == t and node.head is None]
        assert sum(map(graph.value, parts)) == pytest.approx(whole.value(Node("mlp", 0, t)), abs=1e-10)


def test_a_feature_is_a_target():
    run = random_run("silu", n_pos=4, dictionaries={1: random_dictionary(1)}, n_layers=3)
    graph = run.graph(Feature(1, 3), position=2)
    dictionary, y = run.frozen.dictionaries[1], run.frozen.mlp_out[1, 2]
    assert graph.total == pytest.approx(dictionary.pre_activations(y)[3].item())
    check_graph(graph, [node for node in graph.nodes().nodes if (node.layer or 0) < 1])
    assert max(node.layer or 0 for node in graph.nodes().nodes) == 1


def test_targets_of_logits_are_the_models():
    model, tokens = random_llama("gemma2"), random_prompt(5)
    run = FrozenRun(model, tokens, torch.float64)
    with torch.no_grad():
        logits = model(tokens.unsqueeze(0)).logits[0, 3].double()
    poles = QueryTokens(torch.tensor([1]), torch.tensor([4, 5]), torch.tensor([6]), ())
    expected = {9: logits[9], (9, 3): logits[9] - logits[3], poles: logits[[4, 5]].mean() - logits[6]}
    for asked, value in expected.items():
        graph = run.graph(asked, position=3)
        assert graph.total == pytest.approx(value.item(), rel=1e-4)
        assert read_target(graph.target, run.logits[3]).item() == pytest.approx(graph.total, rel=1e-12)


@pytest.mark.filterwarnings("ignore:`torch.jit.script` is deprecated:DeprecationWarning")
@pytest.mark.parametrize("kind", ["silu", "biased", "gemma2", "bilinear"])
def test_the_hessian_of_the_frozen_target_is_twice_the_pair_matrix(kind):
    """At the last MLP, whose output the target reads as it is: pairs of parts are a^T H b."""
    run = random_run(kind, n_pos=3)
    frozen, graph, t = run.frozen, run.graph((7, 12)), 2
    one = frozen.weights.layers[1]

    def value(x):
        gates, inputs = x / frozen.s2[1, t] @ one.W_gate + one.b_gate, x / frozen.s2[1, t] @ one.W_in + one.b_in
        return (frozen.sigma[1, t] * gates * inputs) @ one.W_out @ graph.flow.c_mlp[1, t]

    hessian = torch.func.hessian(value)(frozen.resid_mid[1, t])
    parts = residual_parts(frozen, 1, True)
    names, here = parts.at(t)
    rows = parts.rows[here] * parts.weight[t, here].unsqueeze(1)
    expected = rows @ hessian @ rows.T
    pairs = graph.pairs(Node("mlp", 1, t), 10**6)
    assert pairs.parts[: len(names)] == names
    for a, b, found in zip(pairs.first.tolist(), pairs.second.tolist(), pairs.value.tolist(), strict=True):
        if max(a, b) < len(names):
            wanted = expected[a, b].item() / (2 if a == b else 1)
            assert found == pytest.approx(wanted, abs=1e-10 * expected.abs().max().item())


def paths(frozen, graph):
    """Flow of every embedding by enumeration of all paths: products of halves of Jacobians, one for every choice."""
    totals = torch.zeros(frozen.n_pos, dtype=torch.float64)
    n_layers, n_heads = frozen.n_layers, frozen.n_heads
    choices = [None, *itertools.product(range(n_heads), range(frozen.n_pos))]

    def through(layer, c, t):
        """The ends before a block of every way through it: (cotangent, token)."""
        one = frozen.weights.layers[layer]
        w = frozen.sigma[layer, t] * (one.W_out @ c)
        into = [c]
        for W, partner in ((one.W_gate, frozen.inputs[layer, t]), (one.W_in, frozen.gates[layer, t])):
            into.append(0.5 * W @ (w * partner) / frozen.s2[layer, t])
        for mid in into:
            for choice in choices:
                if choice is None:
                    yield mid, t
                    continue
                head, k = choice
                W_V, W_O = one.W_V[head // one.group], one.W_O[head]
                yield W_V @ (W_O @ mid) * frozen.patterns[layer, head, t, k] / frozen.s1[layer, k], k

    def walk(layer, c, t):
        if layer < 0:
            totals[t] += frozen.embedded[t] @ c
            return
        for end, k in through(layer, c, t):
            walk(layer - 1, end, k)

    walk(n_layers - 1, graph.flow.c_pre[-1, graph.target.position], graph.target.position)
    return totals


def test_flows_are_sums_over_all_paths():
    run = random_run("silu", n_pos=3, n_layers=2, n_heads=2, n_groups=2)
    graph = run.graph(5)
    expected = paths(run.frozen, graph)
    assert relative(graph.flow.embeddings, expected) < EXACT
    assert expected.sum().item() == pytest.approx(graph.total, rel=1e-9)


@pytest.mark.parametrize("sources", [True, False])
def test_mass_is_the_smallest_set_and_a_full_one_changes_nothing(sources):
    graph = random_run("biased", n_pos=4).graph(5, sources=sources)
    reached = [(0, 0), (0, 1), (0, 2), (0, 3), (1, 3)]  # of the last MLP, the target sees its own token alone
    all_values = torch.cat([graph.pairs(Node("mlp", layer, t), 10**6).value for layer, t in reached])
    size = all_values.abs().sort(descending=True).values
    kept = graph.mass(0.9)
    assert kept.n_pairs == sum(graph.pairs(Node("mlp", layer, t)).n_pairs for layer, t in reached)
    n = int((size.cumsum(0) < 0.9 * size.sum()).sum()) + 1
    assert len(kept.value) == n
    assert relative(kept.value.abs(), size[:n]) < EXACT
    assert kept.share_of_mass >= 0.9
    mlp, first, second, value = kept.named(graph.frozen, 3)[2]
    pairs = graph.pairs(mlp, 10**6)
    ends = [(pairs.parts[a], pairs.parts[b]) for a, b in zip(pairs.first, pairs.second, strict=True)]
    assert pairs.value[ends.index((first, second))].item() == pytest.approx(value)
    whole = graph.prune(1.0)
    assert whole.share == pytest.approx(1, rel=1e-9)
    assert whole.kl == pytest.approx(0, abs=1e-12)
    assert whole.keeps_argmax


@pytest.mark.parametrize("sources", [True, False])
@pytest.mark.parametrize("kind", ["silu", "biased", "gemma2"])
def test_edges_are_the_inflows_of_all_nodes(kind, sources):
    graph = random_run(kind, n_pos=3, dictionaries={0: random_dictionary(0)}).graph(5, sources=sources)
    every = graph.edges(1.0)
    into = {}
    for part, reader, value in every.named(graph.frozen, 10**6):
        into.setdefault(reader, {})[part] = value
    assert len(into) > 20
    for reader, flows in into.items():
        if reader.kind == "constant":
            assert sum(flows.values()) == pytest.approx(graph.total - graph.flow.constant)
            continue
        expected = graph.inflows(reader)
        expected = dict(zip(expected.nodes, expected.value.tolist(), strict=True))
        assert flows == pytest.approx({node: expected[node] for node in flows}, abs=1e-12)
        left = [value for node, value in expected.items() if node not in flows and node.kind != "constant"]
        assert left == pytest.approx([0.0] * len(left))
    some = graph.edges(0.5)
    size = every.value.abs()
    assert len(some.value) == int((size.cumsum(0) < 0.5 * size.sum()).sum()) + 1


@pytest.mark.parametrize("n", [1, 2, 7, 5000])
def test_entries_of_a_triangle_are_found_again(n):
    at = torch.arange(n).flip(0)[:3]
    rows = torch.cat([at, torch.arange(n)[:3]]).unique()
    start = rows * n - rows * (rows - 1) // 2
    for shift in (torch.zeros_like(rows), n - 1 - rows):
        first, second = _unravel(start + shift, torch.full_like(rows, n))
        assert first.equal(rows)
        assert second.equal(rows + shift)


def test_a_pruned_run_is_the_frozen_model_without_the_other_pairs():
    """One layer: the pairs left out are missing in the value, and nothing else is."""
    graph = random_run("silu", n_pos=4, n_layers=1).graph(5)
    kept = graph.mass(0.5)
    pruned = graph.prune(0.5)
    assert pruned.value == pytest.approx(graph.total - kept.total + kept.value.sum().item(), rel=1e-9)


def test_blocks_of_rows_find_the_same_pairs(monkeypatch):
    from bilinear_circuits.algebra import halves

    graph, node = random_run("biased", n_pos=4).graph(5), Node("mlp", 1, 3)
    whole = graph.pairs(node, 7)
    monkeypatch.setattr(halves, "_BLOCK", 50)
    parts = graph.pairs(node, 7)
    assert parts.first.equal(whole.first)
    assert parts.second.equal(whole.second)
    assert parts.total == pytest.approx(whole.total)
    assert parts.mass == pytest.approx(whole.mass)


def test_what_is_too_large_is_refused_with_a_way_out(monkeypatch):
    from bilinear_circuits.paths import pairs, prune

    graph = random_run(n_pos=4).graph(5)
    monkeypatch.setattr(prune, "MOST_PAIRS", 10)
    with refused(ValueError, "Make the graph with sources=False"):
        graph.mass()
    monkeypatch.setattr(pairs, "_MOST_PROJECTED", 10)
    with refused(ValueError, "pass sources=False"):
        graph.pairs(Node("mlp", 1, 3))


def test_what_does_not_exist_is_refused():
    run = random_run("ungated", n_pos=3)
    graph = run.graph(5)
    for call, message in (
        (lambda: graph.pairs(Node("mlp", 1, 2)), "must have a gate"),
        (lambda: graph.value(Node("mlp", 2, 2)), "layer of a node must be between 0 and 1, got 2"),
        (lambda: graph.inflows(Node("embedding", position=1)), "node must be a head"),
        (lambda: graph.value(Node("feature", 1, 1, feature=3)), "layer with a dictionary"),
        (lambda: graph.cut(3), "layer must be between 0 and 2"),
        (lambda: graph.mass(0), "q must be a share"),
        (lambda: run.graph(30), "target must name tokens between 0 and 29"),
        (lambda: run.graph((4, 4)), "got 4 twice"),
        (lambda: run.graph(5, position=3), "position must be one of the prompt's 3 tokens"),
        (lambda: run.graph(Feature(1, 2)), "feature of the run's dictionaries"),
    ):
        with refused(ValueError, message):
            call()
    assert "frozen" in repr(graph)
    assert frozen_pass(run.frozen, run.frozen.embedded.unsqueeze(0))[2].shape == (1, 3, 12)


def test_results_are_tables_and_frames_and_come_back_from_disk(tmp_path):
    run = random_run("silu", n_pos=4)
    graph, head = run.graph(5), AttentionHead.of(run.frozen.weights, 1, 2)
    E = run.frozen.weights.W_E
    found = [
        graph.nodes(5),
        graph.pairs(Node("mlp", 1, 3), 4),
        graph.mass(0.2),
        graph.edges(0.2),
        run.effect(5, [Node("mlp", 0), Node("head", 1, head=2)]),
        run.degrees(5),
        run.integrated_gradients(5),
        run.why(1, 2, 3, 1),
        head.qk(E, E).top(4, 5),
        head.ov(E, E).top(3),
    ]
    for at, result in enumerate(found):
        frame = result.to_pandas()
        assert len(frame) == len(next(iter(result.table().values()))) > 0
        assert type(result).__name__ in result._repr_html_()
        save_result(result, tmp_path / str(at))
        again = load_result(type(result), tmp_path / str(at))
        assert again.table() == result.table()
    assert load_result(type(found[0]), tmp_path / "0").nodes == found[0].nodes
