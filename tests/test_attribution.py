"""Attributions: against Shapley values by brute force, the ledger, and what removing a feature does."""

import itertools
import math

import helpers
import pytest
import torch
from helpers import assert_near, linear_activation, refused, tiny_hooked_transformer
from planted import interactions_of, tiny_llama, word_tokenizer

from bilinear_circuits.models.running import capture_mlp, final_norm_scale, hooked, run_logits, unembedding
from bilinear_circuits.paths.run import FrozenRun
from bilinear_circuits.prompts.accounts import prompt_tokens
from bilinear_circuits.prompts.attribution import attribute_prompt
from bilinear_circuits.runs.downstream import Downstream
from bilinear_circuits.utilities.feature import Feature

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


def shapley(value, n):
    """Shapley values of n players, from the value of all coalitions."""
    coalitions = itertools.chain.from_iterable(itertools.combinations(range(n), size) for size in range(n + 1))
    worth = {one: value(one) for one in map(frozenset, coalitions)}
    found = [0.0] * n
    for player in range(n):
        for size in range(n):
            weight = math.factorial(size) * math.factorial(n - size - 1) / math.factorial(n)
            for others in itertools.combinations([one for one in range(n) if one != player], size):
                found[player] += weight * (worth[frozenset({*others, player})] - worth[frozenset(others)])
    return found


def test_a_graph_of_a_whole_prompt_ends_in_the_same_shares(model, layers, graph, ids):
    """One layer is the last step of a graph: its cotangent, read with decoder rows, gives the shares."""
    for one in graph.attributions:
        layer = layers[one.layer - 1]
        run = FrozenRun(model, ids, dictionaries={one.layer: layer.sae_out})
        flow = run.graph(Feature(one.layer, one.feature), one.position).flow
        scale, weight = run.frozen.s2[one.layer, one.position], model.model.layers[one.layer].post_attention_layernorm
        cotangent = flow.c_mid[one.layer, one.position] * scale / weight.weight
        rows = one.values.double().unsqueeze(1) * layer.sae_in.W_dec[one.inputs].double()
        assert_near(rows @ cotangent, one.shares, 1e-6)
        assert flow.total == pytest.approx(one.pre_activation, rel=1e-6)


@pytest.mark.parametrize("mlp_bias", [False, True])
def test_shares_are_shapley_values_of_the_parts_of_the_input(mlp_bias):
    model = helpers.tiny_llama(mlp_bias=mlp_bias).double()
    one = interactions_of(model, 1)
    ids = torch.tensor([1, 4, 5, 6, 7, 8])
    found = attribute_prompt(model, [one], [(1, feature) for feature in range(4)], ids).attributions
    assert len(found) > 1
    x = capture_mlp(model, ids.unsqueeze(0), [1])[1].x[0]
    for part in found:
        form, rows = one.form(part.feature), one.sae_in.W_dec[part.inputs] * part.values.unsqueeze(1)
        error = x[part.position] - rows.sum(0) - one.sae_in.b_dec
        players = torch.stack([*rows, one.sae_in.b_dec, error])
        zero = form(torch.zeros_like(error)).item()

        def value(chosen, form=form, players=players, zero=zero):
            return form(players[sorted(chosen)].sum(0)).item() - zero

        *shares, bias, missed = shapley(value, len(players))
        assert_near(part.shares, shares)
        assert part.bias == pytest.approx(bias + zero, abs=1e-9)
        assert part.error == pytest.approx(missed, abs=1e-9)


def test_shares_are_pairs_and_cross_terms_split_in_half(graph):
    for one in graph.attributions:
        halves = dict.fromkeys(one.inputs.tolist(), 0.0)
        pairs = zip(
            *(column.tolist() for column in (one.pairs.first, one.pairs.second, one.pairs.contributions)), strict=True
        )
        for first, second, contribution in pairs:
            halves[first] += contribution / 2
            halves[second] += contribution / 2  # a self-pair gets both
        ledger = one.ledger
        cross = (ledger.feature_bias + ledger.feature_error) / 2
        assert_near(one.shares.sum(), sum(halves.values()) + cross)
        error = ledger.error_error + (ledger.feature_error + ledger.bias_error) / 2
        bias = ledger.bias_bias + ledger.constant + (ledger.feature_bias + ledger.bias_error) / 2
        assert_near(error, one.error)
        assert_near(bias, one.bias)


def test_every_active_token_but_bos_is_attributed(graph, model, layers, ids):
    captured = capture_mlp(model, ids.unsqueeze(0), [1, 2])
    expected = [
        (layer, feature, position)
        for layer, feature in FEATURES
        for position in range(1, len(ids))
        if layers[layer - 1].sae_out.encode(captured[layer].y[0, position])[feature] != 0
    ]
    assert [(one.layer, one.feature, one.position) for one in graph.attributions] == expected
    for one in graph.attributions:
        y = captured[one.layer].y[0, one.position]
        assert one.activation == pytest.approx(layers[one.layer - 1].sae_out.encode(y)[one.feature].item(), rel=1e-9)


def test_the_direct_effect_of_the_last_layer_is_what_its_removal_does(graph, model, layers, ids):
    """With the final norm's scale held fixed: read off the residual stream, which is rescaled by hand."""
    run = Downstream(model, ids.unsqueeze(0), 2)
    scale = final_norm_scale(model, run.residual[0, -1])
    logits = run_logits(model, ids.unsqueeze(0))[0, -1]
    assert_near(run.residual[0, -1] @ unembedding(model) / scale, logits.detach(), 1e-6)  # its norm rounds to float32
    for one in graph.attributions:
        if one.layer == 2 and one.position == len(ids) - 1:
            row = one.activation * layers[1].sae_out.W_dec[one.feature]
            lost = run.residual[0, -1] @ unembedding(model) / scale
            lost = lost - (run.residual[0, -1] - row) @ unembedding(model) / scale
            assert_near(one.direct, lost[graph.logit_ids])
    assert {one.direct is None for one in graph.attributions if one.position < len(ids) - 1} == {True}
    assert sum(one.direct is not None for one in graph.attributions) > 1


@pytest.mark.parametrize("normalization", ["RMS", "LN", None])
def test_the_scale_of_the_final_norm_is_read_off_the_module(normalization):
    with linear_activation():
        model = tiny_hooked_transformer(normalization)
        seen = []
        with hooked([(model.blocks[-1], lambda module, args, output: seen.append(output[0, -1].detach()))]):
            model(torch.tensor([[1, 4, 5, 6]]))
    (row,) = seen
    centred = row - row.mean() if normalization == "LN" else row
    expected = 1.0 if normalization is None else (centred.square().mean() + model.cfg.eps).sqrt().item()
    assert final_norm_scale(model, row).item() == pytest.approx(expected, rel=1e-5)


def test_features_active_nowhere_are_refused(model, layers, ids):
    captured = capture_mlp(model, ids.unsqueeze(0), [1])[1].y[0, 1:]
    silent = (layers[0].sae_out.encode(captured) == 0).all(0).nonzero()[0].item()
    with refused(
        ValueError, rf"features must be active at one token of the prompt or more, got 1/{silent}, active at none"
    ):
        attribute_prompt(model, layers, [(1, silent)], ids)
    with refused(ValueError, "n_logits must be at least 1, got 0"):
        attribute_prompt(model, layers, FEATURES, ids, n_logits=0)
