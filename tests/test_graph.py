"""Attribution graphs in the published format: the format itself, sums of links, numbers, limits."""

import json
import math
from dataclasses import replace

import pytest
from graph_schema import SCHEMA
from helpers import refused
from jsonschema import Draft7Validator
from planted import interactions_of, tiny_llama, word_tokenizer

from bilinear_circuits.models.running import capture_mlp, run_logits
from bilinear_circuits.prompts.accounts import prompt_tokens
from bilinear_circuits.prompts.attribution import attribute_prompt
from bilinear_circuits.report.graph import GraphSource, graph_features, graph_payload
from bilinear_circuits.report.graph_features import neuronpedia_document
from bilinear_circuits.report.graph_ids import cantor_pair, shared_index

TEXT = "the cat was not good and the zebra sat"
FEATURES = [(layer, feature) for layer in (1, 2) for feature in range(8)]


@pytest.fixture(scope="module")
def model():
    return tiny_llama().double()


@pytest.fixture(scope="module")
def layers(model):
    return [interactions_of(model, layer) for layer in (1, 2)]


@pytest.fixture(scope="module")
def ids():
    return prompt_tokens(TEXT, word_tokenizer(), 32)


@pytest.fixture(scope="module")
def graph(model, layers, ids):
    return attribute_prompt(model, layers, FEATURES, ids, n_logits=4)


D_SAE_IN, D_SAE_OUT = 17, 19  # of the dictionaries of `interactions_of`
SCORED = ["cross layer transcoder", "lorsa", "mlp reconstruction error", "lorsa error", "embedding", "logit"]


def feature_of(node):
    """Layer, number and side of a feature's node, by its id."""
    layer, index, _ = map(int, node["node_id"].split("_"))
    return (layer, index, "out") if index < D_SAE_OUT else (layer, index - D_SAE_OUT, "in")


def features_in(document):
    return [node for node in document["nodes"] if node["feature_type"] == "cross layer transcoder"]


def document_of(graph, **limits):
    source = GraphSource(TEXT, "a-slug", "tiny", ("in", "out"), None, {"seed": 3})
    document = graph_payload(graph, source, word_tokenizer(), "{2} {0} {1} named".format, **limits)
    return json.loads(json.dumps(document, allow_nan=False))


@pytest.fixture(scope="module")
def document(graph):
    return document_of(graph)


def test_the_graph_is_of_the_published_format(document):
    Draft7Validator.check_schema(SCHEMA)
    Draft7Validator(SCHEMA).validate(document)


@pytest.mark.parametrize("key", ["node_id", "jsNodeId", "clerp", "layer"])
def test_the_check_of_the_format_can_fail(document, key):
    broken = json.loads(json.dumps(document))
    del broken["nodes"][3][key]
    assert not Draft7Validator(SCHEMA).is_valid(broken)


@pytest.mark.parametrize("max_links", [1, 80, 2000])
def test_links_into_a_feature_add_up_to_the_pre_activation_of_the_sae(max_links, graph, model, layers, ids):
    document = document_of(graph, max_links=max_links)
    captured = capture_mlp(model, ids.unsqueeze(0), [1, 2])
    checked = 0
    for node in features_in(document):
        layer, feature, side = feature_of(node)
        if side == "in":
            continue
        y = captured[layer].y[0, node["ctx_idx"]]
        expected = layers[layer - 1].sae_out.pre_activations(y)[feature].item()
        weights = [link["weight"] for link in document["links"] if link["target"] == node["node_id"]]
        assert math.fsum(weights) == pytest.approx(expected, rel=1e-12, abs=1e-13)
        checked += 1
    assert checked == len(graph.attributions)


def test_small_inputs_are_summed_into_one_node(graph):
    def count(document, number):
        return sum(node["feature"] == number for node in document["nodes"])

    few, all_ = document_of(graph, max_links=1), document_of(graph)
    assert count(all_, -3) == 0
    places = {(one.layer, one.position) for one in graph.attributions}
    assert count(few, -3) == count(few, -1) == count(few, -2) == len(places)
    sources = {link["source"] for link in few["links"] if link["target"] in few["qParams"]["pinnedIds"]}
    kinds = {node["feature_type"] for node in few["nodes"] if node["node_id"] in sources}
    assert kinds == {"cross layer transcoder", "mlp reconstruction error"}
    for limit in ("max_links", "max_pairs"):
        with refused(ValueError, f"{limit} must be at least 1, got 0"):
            document_of(graph, **{limit: 0})


def test_ids_are_unique_and_links_join_nodes(document):
    nodes = {node["node_id"]: node for node in document["nodes"]}
    assert len(nodes) == len(document["nodes"])
    assert len({node["jsNodeId"] for node in document["nodes"]}) == len(nodes)
    assert {link[end] for link in document["links"] for end in ("source", "target")} <= set(nodes)
    assert set(document["qParams"]["pinnedIds"]) <= set(nodes)
    ends = {
        (nodes[link["source"]]["feature_type"], nodes[link["target"]]["feature_type"]) for link in document["links"]
    }
    assert not any("embedding" in pair for pair in ends)
    positions = [(nodes[link["source"]], nodes[link["target"]]) for link in document["links"]]
    assert all(source["ctx_idx"] == target["ctx_idx"] for source, target in positions)


def test_no_node_is_of_a_type_that_neuronpedia_scores_as_a_logit(graph):
    """Types without a place in the order of its scores come after the logits and are taken for them."""
    document = document_of(graph, max_links=1)
    assert {node["feature_type"] for node in document["nodes"]} <= set(SCORED)
    order = sorted(document["nodes"], key=lambda node: SCORED.index(node["feature_type"]))
    assert [node["feature_type"] for node in order[-4:]] == ["logit"] * 4
    assert all(node["layer"] in ("1", "2", "4", "E") for node in document["nodes"])


@pytest.mark.parametrize("max_links", [1, 2000])
def test_each_link_says_what_the_removal_of_its_source_does(max_links, graph, model, layers, ids):
    """Against the form itself, at an input from which the source was taken out."""
    document = document_of(graph, max_links=max_links)
    x = {layer: found.x[0] for layer, found in capture_mlp(model, ids.unsqueeze(0), [1, 2]).items()}
    nodes = {node["node_id"]: node for node in document["nodes"]}
    checked = set()
    for link in document["links"]:
        source, target = nodes[link["source"]], nodes[link["target"]]
        if target["feature_type"] == "logit":
            assert link["removal"] == -link["weight"]
            continue
        layer, feature, _ = feature_of(target)
        one, row = layers[layer - 1], x[layer][target["ctx_idx"]]
        z, form = one.sae_in.encode(row), one.form(feature)
        shown = [feature_of(nodes[other["source"]])[1] for other in document["links"]
                 if other["target"] == link["target"] and nodes[other["source"]]["feature"] >= 0]  # fmt: skip
        rest = z.clone()
        rest[shown] = 0
        part = {
            -1: row - one.sae_in.decode(z),
            -2: one.sae_in.b_dec,
            -3: rest @ one.sae_in.W_dec,
        }.get(source["feature"])
        if part is None:
            number = feature_of(source)[1]
            part = z[number] * one.sae_in.W_dec[number]
            self_pair = form.matrix(part).item()
            assert link["removal"] == pytest.approx(-(2 * link["weight"] - self_pair), rel=1e-9, abs=1e-12)
        assert link["removal"] == pytest.approx((form(row - part) - form(row)).item(), rel=1e-9, abs=1e-10)
        checked.add(min(source["feature"], 0))
    assert checked == ({0, -1, -2, -3} if max_links == 1 else {0, -1, -2})


def test_logits_without_a_link_are_left_out_and_it_is_said(model, layers, ids, graph):
    last = {one.name for one in graph.attributions if one.direct is not None}
    silent = [(1, f) for f in range(D_SAE_OUT) if f"1/{f}" not in last]
    found = attribute_prompt(model, layers, silent, ids, n_logits=4)
    found = replace(found, attributions=tuple(one for one in found.attributions if one.direct is None))
    document = document_of(found)
    assert not [node for node in document["nodes"] if node["feature_type"] == "logit"]
    assert "Next tokens are left out" in document["metadata"]["info"]["description"]
    assert "Next tokens are left out" not in document_of(graph)["metadata"]["info"]["description"]


def test_the_upload_is_the_same_graph_under_the_names_of_neuronpedia(document):
    upload = neuronpedia_document(document, "tiny", "saes")
    Draft7Validator(SCHEMA).validate(upload)
    assert upload["metadata"]["scan"] == "tiny"
    assert upload["metadata"]["feature_details"] == {"neuronpedia_source_set": "saes"}
    assert {key: upload[key] for key in upload if key != "metadata"} == {
        key: document[key] for key in document if key != "metadata"
    }


@pytest.mark.parametrize("max_links", [1, 2000])
def test_the_features_named_are_those_with_a_node(max_links, graph):
    nodes = features_in(document_of(graph, max_links=max_links))
    named = graph_features(graph, max_links)
    assert len(set(named)) == len(named)
    assert set(named) == {feature_of(node) for node in nodes}


def test_feature_numbers_are_cantor_pairs_of_layer_and_number(document):
    sides = (("in", D_SAE_IN), ("out", D_SAE_OUT))
    shared = [shared_index(feature, side, D_SAE_OUT) for side, d_sae in sides for feature in range(d_sae)]
    assert sorted(shared) == list(range(D_SAE_IN + D_SAE_OUT))
    pairs = [(layer, index) for layer in range(12) for index in shared]
    assert len({cantor_pair(*pair) for pair in pairs}) == len(pairs)
    seen = set()
    for node in features_in(document):
        number = node["feature"]
        diagonal = (math.isqrt(8 * number + 1) - 1) // 2
        index = number - diagonal * (diagonal + 1) // 2
        assert node["node_id"] == f"{diagonal - index}_{index}_{node['ctx_idx']}"
        layer, feature, side = feature_of(node)
        assert node["layer"] == str(layer) == str(diagonal - index)
        assert node["clerp"] == f"{side} {layer}/{feature}: {side} {layer} {feature} named"
        seen.add(side)
    assert seen == {"in", "out"}


def test_logits_hold_their_probability_where_viewers_read_it(document, model, ids):
    expected = run_logits(model, ids.unsqueeze(0))[0, -1].detach().softmax(-1)
    logits = [node for node in document["nodes"] if node["feature_type"] == "logit"]
    assert [node["is_target_logit"] for node in logits] == [True, False, False, False]
    for node in logits:
        read = float(node["clerp"].split("(p=")[1].split(")")[0])
        assert read == pytest.approx(expected[node["feature"]].item(), abs=5e-4)
        assert node["token_prob"] == pytest.approx(expected[node["feature"]].item(), rel=1e-9)
        assert node["layer"] == "4"  # three layers, and one free
        assert node["ctx_idx"] == len(ids) - 1
    assert {node["jsNodeId"] for node in logits} == {f"L_{node['feature']}-0" for node in logits}


def test_embeddings_are_the_tokens_of_the_prompt(document, ids):
    embeddings = [node for node in document["nodes"] if node["feature_type"] == "embedding"]
    assert [node["node_id"] for node in embeddings] == [f"E_{one}_{place}" for place, one in enumerate(ids.tolist())]
    assert document["metadata"]["prompt_tokens"] == ["[BOS]", *TEXT.replace("zebra", "[UNK]").split()]
    assert document["metadata"]["node_threshold"] == 1


def test_influence_is_the_cumulated_share_of_what_feeds_features(document):
    fed, weight = {}, {}
    kinds = {node["node_id"]: node["feature_type"] for node in document["nodes"]}
    into = [link for link in document["links"] if kinds[link["target"]] != "logit"]
    for link in into:
        fed[link["target"]] = fed.get(link["target"], 0) + abs(link["weight"])
    for link in into:
        weight[link["source"]] = weight.get(link["source"], 0) + abs(link["weight"]) / fed[link["target"]]
    influence = {node["node_id"]: node["influence"] for node in document["nodes"]}
    assert {one for one, value in influence.items() if value is not None} == set(weight)
    for node_id, value in weight.items():
        above = sum(other for other in weight.values() if other >= value)
        assert influence[node_id] == pytest.approx(above / sum(weight.values()), abs=1e-5)


def test_pairs_stand_beside_the_graph(graph):
    document = document_of(graph, max_pairs=2 * len(graph.attributions))
    ours = document["bilinear_circuits"]
    assert ours["provenance"] == {"seed": 3}
    assert [one["node_id"] for one in ours["targets"]] == document["qParams"]["pinnedIds"]
    for one, target in zip(graph.attributions, ours["targets"], strict=True):
        assert len(target["pairs"]) == min(2, target["n_pairs"])
        listed = sum(dict(zip(ours["pair_columns"], pair, strict=True))["contribution"] for pair in target["pairs"])
        assert listed + target["rest"] == pytest.approx(target["terms"]["feature_feature"], abs=1e-5)
        assert sum(target["terms"].values()) == pytest.approx(one.pre_activation, rel=1e-9)
        assert target["completeness"] == pytest.approx(one.ledger.completeness.item(), rel=1e-6)


def test_a_token_cannot_hide_its_probability(graph):
    class Tokenizer:
        def convert_ids_to_tokens(self, token_id):
            return "(p=9)</script>"

    document = graph_payload(graph, GraphSource("", "s", "m"), Tokenizer(), lambda *_: "")
    (clerp, *_) = [node["clerp"] for node in document["nodes"] if node["feature_type"] == "logit"]
    assert float(clerp.split("(p=")[1].split(")")[0]) < 1
