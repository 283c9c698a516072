"""Wrong input is refused in one line that says what was got and what to do; pairs that exist are the graph's own."""

import itertools

import pytest
import torch
from helpers import refused
from llamas import random_dictionary, random_run, relative

from bilinear_circuits.paths.attention import AttentionHead
from bilinear_circuits.paths.checks import check_node, is_part
from bilinear_circuits.paths.nodes import Node
from bilinear_circuits.paths.removal import Pair, Removal

MLP, HERE = Node("mlp", 1, 3), Node("embedding", position=3)


@pytest.fixture(scope="module")
def run():
    return random_run("silu", n_pos=4, n_layers=3)


@pytest.fixture(scope="module")
def read():
    """A run with a dictionary in front of another layer and biases everywhere."""
    return random_run("biased", n_pos=4, n_layers=3, dictionaries={layer: random_dictionary(layer) for layer in (0, 1)})


def every_node(frozen):
    """All nodes that `check_node` passes, of all kinds."""
    layers, places, heads = range(frozen.n_layers), range(frozen.n_pos), range(frozen.n_heads)
    yield from (Node("embedding", position=t) for t in places)
    for layer, t in itertools.product(layers, places):
        yield from (Node("head", layer, t, h, k) for h in heads for k in (None, *range(t + 1)))
        yield from (Node(kind, layer, t) for kind in ("mlp", "constant"))
        yield Node("bias", layer, t, -1)
        if layer in frozen.dictionaries:
            yield from (Node(kind, layer, t) for kind in ("bias", "error"))
            yield from (Node("feature", layer, t, feature=a) for a in range(frozen.dictionaries[layer].d_sae))


@pytest.mark.parametrize("kind", ["silu", "biased", "gemma2", "mistral"])
@pytest.mark.parametrize("layers", [(), (0,)])
def test_parts_are_those_whose_pairs_the_graph_lists(kind, layers):
    run = random_run(kind, n_pos=5, dictionaries={layer: random_dictionary(layer) for layer in layers})
    nodes = [check_node(run.frozen, node) for node in every_node(run.frozen)]
    for at, t in ((0, 2), (1, 4)):
        node = Node("mlp", at, t)
        listed = {part for sources in (True, False) for part in run.graph(5, sources=sources).pairs(node, 1).parts}
        assert {part for part in nodes if is_part(run.frozen, node, part)} == listed


def test_pairs_of_features_and_errors_write_what_flows_through_them(read):
    graph = read.graph((5, 7))
    for node in (Node("feature", 1, 3, feature=int(read.frozen.active[1][3].nonzero()[0])), Node("error", 1, 3)):
        pairs = graph.pairs(node, 40)
        for a, b, value in zip(pairs.first.tolist(), pairs.second.tolist(), pairs.value.tolist(), strict=True):
            removal = Removal(read.frozen, ((Pair(node, pairs.parts[a], pairs.parts[b]),),))
            change = removal.change(1, mid=False)[0, 3]
            assert -change @ graph.flow.c_pre[2, 3] == pytest.approx(value, rel=1e-9, abs=1e-12)
        assert read.effect((5, 7), Pair(node, pairs.parts[0], pairs.parts[1])).real.shape == (1,)


def test_a_head_without_a_source_is_the_sum_of_its_messages(run):
    last = Node("mlp", 2, 3)
    whole = run.effect(7, Pair(last, Node("head", 1, 3, 2), HERE))
    parts = run.effect(7, [[Pair(last, Node("head", 1, 3, 2, k), HERE) for k in range(4)]])
    assert whole.real.item() == pytest.approx(parts.real.item(), rel=1e-9)


@pytest.mark.parametrize(
    "part",
    [
        Node("mlp", 2, 3),
        Node("head", 2, 3, 0, 1),
        MLP,
        Node("embedding", position=2),
        Node("mlp", 0, 2),
        Node("constant", 1, 3),
        Node("bias", 0, 3, -1),
    ],
    ids=repr,
)
def test_pairs_that_do_not_exist_are_refused(run, part):
    for ends in ((part, HERE), (HERE, part)):
        with refused(
            ValueError, rf"parts of a pair must be of the input of mlp 1 @3: .* to token 3 .*, got {part}\. graph"
        ):
            run.effect(7, [Pair(MLP, *ends)])


@pytest.mark.parametrize(
    ("pair", "error", "message"),
    [
        (Pair(Node("head", 1, 3, 0), HERE, HERE), ValueError, "MLP, a feature or an error at a token.*got head 1.0 @3"),
        (Pair(HERE, HERE, HERE), ValueError, "to consist of pairs, got embedding @3"),
        (Pair(Node("bias", 1, 3, -1), HERE, HERE), ValueError, "to consist of pairs, got attention bias 1 @3"),
        (Pair(Node("mlp", 1), HERE, HERE), ValueError, "position of a node must be given"),
        (Pair(Node("feature", 1, 3, feature=2), HERE, HERE), ValueError, "layer with a dictionary"),
        (Pair(MLP, HERE, "mlp 0 @3"), TypeError, "node must be a Node.*got a str"),
        (
            Pair(MLP, Node("head", 1, 3, 0), Node("head", 1, 3, 0, 2)),
            ValueError,
            "must not contain one another.*sources",
        ),
        (Pair(MLP, HERE, Node("mlp", 7, 3)), ValueError, "layer of a node must be between 0 and 2, got 7"),
    ],
)
def test_pairs_of_other_nodes_are_refused(run, pair, error, message):
    with refused(error, message):
        run.effect(7, [pair])


def test_pairs_of_inactive_features_and_of_the_mlp_behind_them_are_refused(read):
    inactive = int((~read.frozen.active[0][3]).nonzero()[0])
    for part in (Node("feature", 0, 3, feature=inactive), Node("mlp", 0, 3)):
        with refused(ValueError, "parts of a pair must be of the input of error 1 @3"):
            read.effect(7, Pair(Node("error", 1, 3), part, HERE))


@pytest.mark.parametrize(
    ("node", "error", "message"),
    [
        (Node("mpl", 1, 3), ValueError, "kind of a node must be one of embedding, head, mlp, .*, got 'mpl'"),
        (Node(["mlp"], 1, 3), ValueError, "kind of a node must be one of"),
        ("mlp 1 @3", TypeError, r"node must be a Node, such as Node\('mlp', 3, 5\).*got a str"),
        (("mlp", 1, 3), TypeError, "got a tuple"),
        (Node("head", 1, 3), ValueError, "head of a node must be given.*Name each head"),
        (Node("head", 2, 1, 0, 3), ValueError, "source of a node must not come after its position.*got 3 after 1"),
        (Node("head", None, 1, 0), ValueError, "layer of a node must be given"),
        (Node("mlp", 1, "3"), TypeError, "position of a node must be an int, got '3' of type str"),
        (Node("mlp", True, 3), TypeError, "layer of a node must be an int, got True of type bool"),
        (Node("mlp", 1, 3.0), TypeError, "got 3.0 of type float"),
        (Node("mlp", 1, -1), ValueError, "position of a node must be between 0 and 3, got -1"),
        (Node("mlp", 1, 3, 2), ValueError, "head of a node must be left out for the kind 'mlp'"),
        (Node("embedding", 0, 3), ValueError, "layer of a node must be left out for the kind 'embedding'"),
        (Node("bias", 1, 3), ValueError, "layer with a dictionary"),
        (Node("bias", 1, 3, 0), ValueError, "head of a bias must be -1"),
        (Node("error", 1, 3), ValueError, "layer with a dictionary"),
        (Node("constant", 1, 3), ValueError, "node must be"),
    ],
    ids=repr,
)
def test_nodes_that_do_not_exist_are_refused_alike_everywhere(run, node, error, message):
    graph = run.graph(7)
    calls = (
        graph.value,
        graph.inflows,
        graph.outflows,
        graph.pairs,
        lambda one: run.effect(7, [Node("mlp", 0), [one]]),
    )
    for call in calls if isinstance(node, Node) else calls[:4]:
        with refused(error, message):
            call(node)


def test_features_must_be_named_and_exist(read):
    for feature, error, message in (
        (None, ValueError, "feature of a node must be given"),
        (99, ValueError, "0 and 14"),
    ):
        with refused(error, message):
            read.graph(7).value(Node("feature", 0, 3, feature=feature))


@pytest.mark.parametrize("remove", ["mlp 1", 7, [7], [["mlp", 1]], {"mlp": 1}, [torch.tensor(1)], None])
def test_removals_of_other_types_are_refused(run, remove):
    with refused(
        TypeError, r"remove must hold nodes, pairs, or sequences of them .*Node\('mlp', 3\).*, got .* of type"
    ):
        run.effect(7, remove)


def test_one_node_or_pair_is_one_removal(run):
    for one in (Node("mlp", 1), Pair(MLP, HERE, HERE)):
        assert torch.equal(run.effect(7, one).real, run.effect(7, [one]).real)


@pytest.mark.parametrize("number", [2.5, "3", None, True, torch.tensor(1.5)], ids=repr)
def test_counts_that_are_no_whole_numbers_are_refused_by_their_name(run, number):
    graph, head = run.graph(7), AttentionHead.of(run.frozen.weights, 1, 0)
    E = run.frozen.weights.W_E
    ways = {
        "layer": (graph.cut, lambda n: run.why(n, 0, 1, 1), lambda n: AttentionHead.of(run.frozen.weights, n, 0)),
        "k": (
            lambda k: graph.pairs(MLP, k),
            lambda k: graph.edges(0.5).named(run.frozen, k),
            lambda k: run.why(1, 0, 2, 1).top(k),
            lambda k: head.ov(E, E).top(k),
            lambda k: head.qk(E, E).top(k, 3),
        ),
        "key_pos": (lambda n: run.why(1, 0, 2, n),),
        "distance": (head.qk(E, E).at, lambda n: head.composition(AttentionHead.of(run.frozen.weights, 0, 0), "Q", n)),
    }
    if number is not None:
        ways |= {
            "max_degree": (lambda n: run.degrees(7, max_degree=n),),
            "n_nodes": (lambda n: run.integrated_gradients(7, n_nodes=n),),
        }
        ways["k"] += (graph.nodes,)
    for name, calls in ways.items():
        for call in calls:
            with refused(TypeError, f"{name} must be an int, got .* of type"):
                call(number)


@pytest.mark.parametrize("q", ["half", None, True, 0, 1.5, -1, float("nan")])
def test_shares_that_are_none_are_refused(run, q):
    graph = run.graph(7)
    for call in (graph.mass, graph.edges, graph.prune):
        with refused((TypeError, ValueError), "q must be a (number|share above 0 and at most 1), got"):
            call(q)


def test_directions_are_read_in_the_precision_of_the_weights(run):
    head, E = AttentionHead.of(run.frozen.weights, 1, 0), run.frozen.weights.W_E
    assert E.dtype == torch.float64
    assert relative(head.ov(E.float(), E).matrix(), head.ov(E, E).matrix()) < 1e-6
    assert relative(head.qk(E.float(), E.half()).keys, head.qk(E, E).keys) < 1e-3
    assert head.qk(E, E.float()).keys.dtype == torch.complex128
    for rows, error, message in (
        (E[:, :5], ValueError, r"directions must be rows of d_model=12 numbers, got shape \(30, 5\)"),
        (E[0], ValueError, r"got shape \(12,\)"),
        (E.tolist(), TypeError, "directions must be a Tensor, got a list"),
        (E / 0, ValueError, "directions must be finite"),
    ):
        with refused(error, message):
            head.ov(rows, E)
        with refused(error, message):
            head.qk(E, rows)
    with refused(ValueError, "by must be 'Q', 'K' or 'V', got 'q'"):
        head.composition(AttentionHead.of(run.frozen.weights, 0, 0), "q")
    with refused(ValueError, "mid must be False for the last cut"):
        run.graph(7).cut(3, mid=True)
