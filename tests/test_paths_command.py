"""The verb `paths`, end to end on tiny models; pages of prompt graphs and heads, and graphs for viewers."""

import csv
import json
import re

import pytest
import torch
from graph_schema import SCHEMA
from helpers import refused
from jsonschema import Draft7Validator
from llamas import KINDS, random_dictionary, random_llama, saved_world, verb_on
from pages import check_hostile, check_page, page_of, read, rows_of, shown, words_of
from planted import word_tokenizer
from reports import HOSTILE, PROVENANCE

from bilinear_circuits.paths.account import AccountSettings, PathAccount, account_for
from bilinear_circuits.paths.heads import summarize_heads
from bilinear_circuits.paths.links import links_between
from bilinear_circuits.paths.pair_matrix import group_of
from bilinear_circuits.paths.run import FrozenRun
from bilinear_circuits.report.graph_draft import GraphSource
from bilinear_circuits.report.pages import heads_page, paths_page, why_page
from bilinear_circuits.report.path_graph import path_graph

PROMPT = "the cat was not good and the dog sat"
TOKENS = torch.tensor([1, 7, 4, 9, 21, 4, 13])


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    return saved_world(tmp_path_factory.mktemp("jane-doe"))


@pytest.fixture(scope="module")
def verb(world):
    return verb_on(world)


@pytest.fixture(scope="module")
def written(world, verb, tmp_path_factory):
    """A folder that `paths` wrote."""
    out = tmp_path_factory.mktemp("paths") / "out"
    assert verb("paths", "--prompt", PROMPT, "--target", "good", "--against", "bad", "--out", out) == 0
    return out


def run_of(kind, dictionaries=None):
    return FrozenRun(random_llama(kind), TOKENS, dtype=torch.float64, dictionaries=dictionaries)


def test_the_verb_writes_numbers_tables_a_page_and_graphs(written):
    names = {one.relative_to(written).as_posix() for one in written.rglob("*") if one.is_file()}
    slug = "paths-good-bad-the-cat-was-not-good-and-the-dog-sat"
    assert names == {
        "paths.json", "report.html", "result.json", "result.safetensors", "nodes.csv", "nodes.parquet", "pairs.csv",
        "pairs.parquet", "graphs/graph-metadata.json", f"graphs/{slug}.json", f"graphs/neuronpedia/{slug}.json",
    }  # fmt: skip
    document, account = read(written, "paths.json"), PathAccount.load(written)
    assert document["target"] == "logit of good - logit of bad"
    assert document["total"] == pytest.approx(account.total, rel=1e-6)
    assert max(abs(one - account.total) for one in document["cuts"]) < 1e-4
    assert document["effects"]["n_removable"] == 3 * 2 + 3
    with (written / "nodes.csv").open() as opened:
        rows = list(csv.DictReader(opened))
    assert len(rows) == account.n_nodes
    assert [float(row["flow"]) for row in rows] == pytest.approx(account.nodes.value.tolist(), rel=1e-5)
    head = next(row for row in rows if row["kind"] == "head" and row["source"] != row["position"])
    words = ["[BOS]", *PROMPT.split()]
    assert (head["token"], head["source_token"]) == (words[int(head["position"])], words[int(head["source"])])


def test_the_page_says_what_the_numbers_say(written):
    page, document = page_of(written), read(written, "paths.json")
    parsed, rows, text = check_page(page), rows_of(page), words_of(page)
    assert {"map", "nodes", "pairs", "degrees", "effects", "attention", "provenance", "glossary"} <= {
        attributes.get("id") for _, attributes in parsed.elements
    }
    assert f"Correlation {shown(document['effects']['correlation'], 2)}" in text
    assert f"slope {shown(document['effects']['slope'], 2)}" in text
    assert "The flow is an account, never a prediction" in text
    for node, flow in zip(document["nodes"]["node"][:30], document["nodes"]["flow"], strict=False):
        assert [node, shown(flow)] in [[row[0], row[-1]] for row in rows]
    effects = document["effects"]
    for name, *some in zip(*(effects[key] for key in ("removed", "flow", "predicted", "real")), strict=True):
        assert [name, *map(shown, some)] in rows
    for one in document["attention"]:
        assert f"head {one['layer']}.{one['head']}:" in text
    assert len([one for _, one in parsed.elements if "data-figure" in one]) == 2
    links = {one["href"] for tag, one in parsed.elements if tag == "a" and one["href"].startswith("#pairs-")}
    assert links == {f"#pairs-{one['node'].split()[1]}-{one['node'].split('@')[1]}" for one in document["pairs"]}


def test_what_is_printed_holds_the_account_and_what_it_does_not_predict(verb, capsys):
    assert verb("paths", "--prompt", PROMPT, "--position", 4) == 0
    said = capsys.readouterr().out
    assert "10 tokens: [BOS] the cat was not" in said
    assert re.search(r"target: logit of \S+ at not @4: [+-]\d", said)
    assert re.search(r"sum over each of 7 cuts: the same, within \d\.\de-0[5-9]", said)
    assert re.search(r"removing 9 of 9 heads and MLPs: r [+-]\d\.\d\d, slope [+-]", said)
    assert "no prediction" in said


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--target", "zebra dog"], "target must be a single token of the model's vocabulary, got 'zebra dog'"),
        (["--against", "bad"], "target must be given with against"),
        (["--target", "bad", "--against", "bad"], "against must be another token than target, got 'bad'"),
        (["--feature", "1/3", "--target", "bad"], "target must not be given with feature"),
        (["--feature", "1/3"], "--saes must be given for"),
        (["--layers", "1"], "--saes must be given for"),
        (["--feature", "x"], "features must be written as layer/feature"),
        (["--position", "10"], "position must be below 10, the prompt's tokens, got 10"),
        (["--n-pairs", "0"], "n_pairs must be at least 1, got 0"),
        (["--device", "nowhere"], "device must be one that torch can use"),
    ],
)
def test_what_cannot_be_explained_is_refused_in_one_line(arguments, message, verb, capsys):
    assert verb("paths", "--prompt", PROMPT, *arguments) == 2
    assert message in capsys.readouterr().err.splitlines()[-1]


def test_features_of_dictionaries_are_nodes_and_targets(world, verb, tmp_path):
    saes = ["--saes", world / "saes"]
    assert verb("paths", *saes, "--layers", 1, "--prompt", PROMPT, "--out", tmp_path / "nodes") == 0
    kinds = {one.split()[0] for one in read(tmp_path / "nodes", "paths.json")["nodes"]["node"]}
    assert {"feature", "error", "bias", "mlp", "head", "embedding"} <= kinds
    assert verb("paths", *saes, "--feature", "1/3", "--prompt", PROMPT, "--out", tmp_path / "target") == 0
    document = read(tmp_path / "target", "paths.json")
    assert document["target"] == "feature 1/3"
    assert len(document["cuts"]) == 4
    (graph,) = [one for one in (tmp_path / "target/graphs").glob("*.json") if one.name != "graph-metadata.json"]
    content = json.loads(graph.read_text())
    assert content["qParams"]["clickedId"] == "1_3_9"
    assert not [node for node in content["nodes"] if node["feature_type"] == "logit"]
    check_page(page_of(tmp_path / "target"))


@pytest.mark.parametrize("kind", KINDS)
def test_an_account_adds_up_in_every_kind_of_model(kind):
    run = run_of(kind)
    graph = run.graph((5, 9))
    account = account_for(run, graph, AccountSettings(n_nodes=50, n_matrices=3, n_pairs=4, n_removed=7, n_why=2))
    assert account.worst_cut < 1e-9 * max(1, abs(account.total))
    assert len(account.nodes.nodes) == min(50, account.n_nodes)
    assert len(account.effects.removed) == 7
    assert bool(account.matrices) == (kind != "ungated")
    for one in account.matrices:
        assert one.matrix.sum().item() + one.constant == pytest.approx(one.value, abs=1e-9)
        every = graph.pairs(one.node, one.n_pairs)
        for first, second in ((0, 0), (1, 0), (len(one.groups) - 1, 1)):
            wanted = {one.groups[first], one.groups[second]}
            same = [
                value
                for a, b, value in zip(every.first.tolist(), every.second.tolist(), every.value.tolist(), strict=True)
                if {group_of(every.parts[a]), group_of(every.parts[b])} == wanted
            ]
            assert one.matrix[first, second].item() == pytest.approx(sum(same), abs=1e-9)
    for name, flow in zip(account.effects.removed, account.flows.tolist(), strict=True):
        own = [value for node, value in zip(graph.nodes().nodes, graph.nodes().value.tolist(), strict=True)
               if str(node._replace(position=None, source=None)) == name]  # fmt: skip
        assert flow == pytest.approx(sum(own), abs=1e-9)
    if not any(one.b_O.any() or one.b_V.any() or one.b_out.any() or one.b_gate.any()
               for one in run.frozen.weights.layers):  # fmt: skip
        torch.testing.assert_close(account.map.residual.sum(1), torch.full((5,), account.total, dtype=torch.float64))


@pytest.mark.parametrize("sources", [True, False])
@pytest.mark.parametrize("kind", ["biased", "ungated", "gemma2", "mistral"])
def test_flows_between_nodes_are_those_of_single_nodes(kind, sources):
    run = run_of(kind, {0: random_dictionary(0).to(torch.float64)})
    graph = run.graph(5, position=5, sources=sources)
    nodes = graph.nodes().nodes
    found = {}
    for link in links_between(graph, nodes):
        found[link.source, link.target] = link.flow
    assert len(found) > 200
    n_checked = 0
    for node in nodes:
        if node.kind in ("head", "mlp", "feature", "error"):
            inflows = graph.inflows(node)
            for source, flow in zip(inflows.nodes, inflows.value.tolist(), strict=True):
                if source.kind != "constant" and source in nodes:
                    assert found.pop((source, node), 0.0) == pytest.approx(flow, abs=1e-10)
                    n_checked += 1
    assert n_checked > 200
    assert {target for _, target in found} == {None}  # all others go into the target
    assert sum(found.values()) == pytest.approx(graph.total - graph.flow.constant)


@pytest.mark.parametrize("sources", [True, False])
@pytest.mark.parametrize("kind", ["bilinear", "silu", "biased", "gemma2"])
def test_links_of_a_graph_add_up_to_the_flow_of_every_node(kind, sources):
    dictionaries = {0: random_dictionary(0).to(torch.float64)}
    run = run_of(kind, dictionaries)
    graph = run.graph(5, sources=sources)
    ledgers = [run.why(1, 2, 6, 3)]
    source = GraphSource("a prompt", "slug", "./data/x", ("one",), provenance=PROVENANCE)
    document = path_graph(graph, source, str, ledgers, 40)
    Draft7Validator(SCHEMA).validate(document)
    nodes = {node["node_id"]: node for node in document["nodes"]}
    assert len(nodes) == len(document["nodes"])
    assert len({(one["layer"], one["feature"], one["ctx_idx"]) for one in document["nodes"]}) == len(nodes)
    into = dict.fromkeys(nodes, 0.0)
    for link in document["links"]:
        assert link["source"] in nodes
        into[link["target"]] += link["weight"]
    target = document["qParams"]["clickedId"]
    assert into[target] == pytest.approx(graph.total - graph.flow.constant, abs=1e-9)
    fed = [name for name, node in nodes.items() if "flow" in node and into[name]]
    assert len(fed) > 20
    for name in fed:
        assert into[name] == pytest.approx(nodes[name]["flow"], abs=1e-9)


def test_pairs_of_scores_stand_at_their_heads(written):
    (file,) = (written / "graphs").glob("paths-*.json")
    document = json.loads(file.read_text())
    Draft7Validator(SCHEMA).validate(document)
    assert str(written) not in file.read_text()
    known = {one["node_id"] for one in document["nodes"]} | set(document["qk_only_nodes"])
    traced = [one for one in document["nodes"] if "qk_tracing_results" in one]
    ledgers = PathAccount.load(written).ledgers
    assert len(traced) == len(ledgers)
    for one in traced:
        assert one["feature_type"] == "lorsa error"
        found = one["qk_tracing_results"]
        assert set(found) == {
            "pair_wise_contributors", "top_q_marginal_contributors", "top_k_marginal_contributors"
        }  # fmt: skip
        assert all(len(row) == 3 and {row[0], row[1]} <= known for row in found["pair_wise_contributors"])
        ledger = next(
            each for each in ledgers if one["clerp"].startswith(
                f"head {each.layer}.{each.head} {each.key_pos}->{each.query_pos}:")
        )  # fmt: skip
        assert [row[2] for row in found["pair_wise_contributors"]] == pytest.approx([v for *_, v in ledger.top(10)])
        largest = ledger.by_query().abs().max().item()
        assert abs(found["top_q_marginal_contributors"][0][1]) == pytest.approx(largest)


def test_a_second_prompt_joins_the_graphs_and_replaces_the_report(written, verb):
    assert verb("paths", "--prompt", "the dog ran home", "--out", written) == 0
    assert read(written, "paths.json")["prompt"] == "the dog ran home"
    assert len(read(written / "graphs", "graph-metadata.json")["graphs"]) == 2
    assert verb("paths", "--prompt", PROMPT, "--target", "good", "--against", "bad", "--out", written) == 0
    assert len(read(written / "graphs", "graph-metadata.json")["graphs"]) == 2


def test_hostile_tokens_stay_text():
    tokens = torch.arange(len(HOSTILE)) + 4
    run = FrozenRun(random_llama("bilinear"), tokens)
    texts = dict(zip(tokens.tolist(), HOSTILE, strict=True))
    account = account_for(run, run.graph((5, 4)))
    check_hostile(paths_page(account, texts.__getitem__, PROVENANCE))
    table = summarize_heads(run.frozen.weights, [(0, 1)], tokens, 3, 40)
    check_page(heads_page(table, HOSTILE, PROVENANCE))
    check_hostile(why_page(run.why(1, 0, 6, 2), HOSTILE, PROVENANCE))


def test_results_show_themselves_and_come_back(tmp_path):
    run = run_of("silu")
    account = account_for(run, run.graph(5))
    table = summarize_heads(run.frozen.weights, [(0, 0), (1, 2)], torch.arange(9), 4)
    for result, kinds in ((account, ("effects", "degrees")), (table, ("distance",))):
        assert "<table" in result._repr_html_()
        for kind in kinds:
            assert result.plot(kind).data
        result.save(tmp_path)
        again = type(result).load(tmp_path)
        assert again.to_pandas().equals(result.to_pandas())


def test_the_likelier_spelling_of_a_token_is_the_target():
    from bilinear_circuits.commands.paths import token_of

    tokenizer = word_tokenizer()
    logits = torch.zeros(20)
    good = tokenizer.convert_tokens_to_ids("good")
    assert token_of("target", "good", tokenizer, logits) == good
    with refused(ValueError, "against must be a single token of the model's vocabulary, got 'zebra'"):
        token_of("against", "zebra", tokenizer, logits)


def test_long_prompts_show_the_tokens_with_most_flow():
    from bilinear_circuits.report.flow_map import flow_picture

    run = run_of("bilinear")
    graph = run.graph(5, position=3)
    account = account_for(run, graph)
    picture = flow_picture(account.map, 3, list("abcdefg"), {(0, 3): "there"}, n_tokens=2)
    assert picture.left_out == 5
    assert len(picture.columns) == 2
    assert 3 in [position for *_, position in picture.columns]
    assert "there" in [shape.link for shape in picture.shapes]
    assert all(shape.width >= 0.7 for shape in picture.shapes)
