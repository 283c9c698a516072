"""Single edges, ablations and doses on a tiny model, against loops and edited forward passes."""

import itertools
import math
from collections import Counter
from dataclasses import replace

import pytest
import torch
from helpers import randn
from planted import interactions_of, random_stories, tiny_llama, word_tokenizer

from bilinear_circuits.circuits.query import CircuitQuery, QueryTokens
from bilinear_circuits.data.stories import tokenize_stories
from bilinear_circuits.interactions.activity import collect_activity
from bilinear_circuits.interactions.feature_interactions import FeatureInteractions
from bilinear_circuits.interventions import (
    circuit_ablations,
    dose_response,
    edge_effects,
    edge_exactness,
    node_ablations,
    pairs_of,
    random_edges,
    terms_at,
    top_edges,
)
from bilinear_circuits.interventions.ablations import circuit_sum, replacement
from bilinear_circuits.interventions.edges import write_direction
from bilinear_circuits.interventions.predictions import final_scale, pole_direction
from bilinear_circuits.models.running import unembedding
from bilinear_circuits.runs import Runs
from bilinear_circuits.statistics.correlations import correlation, rank_correlation, slope

LAYER, FEATURE = 1, 7


def untied(interactions):
    """Dictionaries whose encoder rows are not their decoder rows, and have other norms."""
    sides = []
    for seed, side in enumerate((interactions.sae_in, interactions.sae_out)):
        noise = randn(*side.W_dec.shape, seed=seed, dtype=torch.float32)
        W_enc, b_enc = (1.6 * one for one in (side.W_enc, side.b_enc))
        sides.append(replace(side, W_enc=W_enc, b_enc=b_enc, W_dec=(0.8 + 0.4 * seed) * side.W_dec + 0.1 * noise))
    return FeatureInteractions(interactions.mlp, *sides)


class World:
    """A tiny model, one layer of it between random dictionaries, trigger sites and a corpus."""

    def __init__(self, layer=LAYER):
        self.model, tokenizer = tiny_llama(), word_tokenizer()
        self.tokens = QueryTokens.resolve(CircuitQuery("q", ("not",), ("good", "nice"), ("bad", "sad")), tokenizer)
        self.stories = tokenize_stories(random_stories(90), tokenizer, 32)
        self.interactions = untied(interactions_of(self.model, layer))
        self.sites = self.tokens.sites(self.stories[:60], 24, 12)
        self.runs = Runs(self.model, layer, self.sites, self.tokens)
        (self.corpus,) = collect_activity(self.model, [self.interactions], self.stories[60:])
        self.z = self.interactions.sae_in.encode(self.runs.x)
        self.layer = layer

    def effect(self, change):
        """Change of the pole difference at every site, row by row with a hook of our own."""
        out = []
        for ids, position, one in zip(self.sites.ids, self.sites.position.tolist(), change, strict=True):
            row = ids[: position + 1].unsqueeze(0)

            def add(module, args, output, one=one):
                output = output.clone()
                output[0, -1] += one
                return output

            with torch.no_grad():
                base = self.model(row).logits[0, -1]
                handle = self.model.model.layers[self.layer].mlp.register_forward_hook(add)
                moved = self.model(row).logits[0, -1] - base
                handle.remove()
            out.append((moved[self.tokens.positive].mean() - moved[self.tokens.negative].mean()).double())
        return torch.stack(out)


@pytest.fixture(scope="module")
def world():
    return World()


def close(actual, expected, tolerance=2e-4):
    torch.testing.assert_close(
        torch.as_tensor(actual).double(), torch.as_tensor(expected).double(), rtol=1e-3, atol=tolerance
    )


def test_single_edges_are_exact_on_the_pre_activation(world):
    terms = terms_at(world.interactions, FEATURE, world.runs.x)
    pairs = terms.of_features
    edges = pairs_of(world.interactions.matrix(FEATURE), terms.first[pairs], terms.second[pairs])
    assert (edges.first == edges.second).any()
    generator = torch.Generator().manual_seed(0)
    exact = edge_exactness(world.runs, world.interactions, FEATURE, edges, 80, generator)
    assert len(exact.predicted) == 80
    assert len({*zip(exact.edge.tolist(), exact.site.tolist(), strict=True)}) == 80
    T = world.interactions.matrix(FEATURE).to_dense()
    for edge, site, predicted in zip(exact.edge.tolist(), exact.site.tolist(), exact.predicted.tolist(), strict=True):
        a, b = int(edges.first[edge]), int(edges.second[edge])
        expected = (1 if a == b else 2) * T[a, b] * world.z[site, a] * world.z[site, b]
        assert predicted == pytest.approx(-expected.item(), rel=1e-4, abs=1e-6)
    assert exact.differenced_correlation > 1 - 1e-9
    assert exact.written_correlation > 1 - 1e-9
    assert exact.worst_error < 1e-5
    assert slope(exact.predicted, exact.differenced) == pytest.approx(1, abs=1e-5)
    row, column = world.interactions.sae_out.W_dec[FEATURE], world.interactions.sae_out.W_enc[:, FEATURE]
    assert exact.decoder_gain == pytest.approx((row @ column).item())
    together = {*zip(edges.first.tolist(), edges.second.tolist(), strict=True)}
    apart = next(pair for pair in itertools.combinations(range(17), 2) if pair not in together)
    nowhere = pairs_of(world.interactions.matrix(FEATURE), *torch.tensor(apart).unsqueeze(1))
    with pytest.raises(ValueError, match="edges must be active at one site or more"):
        edge_exactness(world.runs, world.interactions, FEATURE, nowhere, 80, generator)


def test_a_pair_is_not_exact_in_a_layer_with_a_gate(world):
    """The second difference would show it if the layer were not bilinear."""
    gated = tiny_llama(act="silu")
    runs = Runs(gated, LAYER, world.sites, world.tokens)
    top = top_edges(world.interactions, FEATURE, runs.x, 20)
    exact = edge_exactness(runs, world.interactions, FEATURE, top, 60, torch.Generator().manual_seed(0))
    assert exact.differenced_correlation < 0.99
    assert exact.worst_error > 0.1


def test_what_is_written_moves_the_pre_activation_as_said(world):
    column = world.interactions.sae_out.W_enc[:, FEATURE]
    decoder, encoder = (write_direction(world.interactions, FEATURE, along) for along in ("decoder", "encoder"))
    close(decoder, world.interactions.sae_out.W_dec[FEATURE])
    assert (encoder @ column).item() == pytest.approx(1, rel=1e-6)
    # The smallest: any other direction with the same effect is this one plus something orthogonal to it.
    other = decoder / (decoder @ column)
    assert other.norm() > 1.01 * encoder.norm()
    assert ((other - encoder) @ encoder).abs() < 1e-5
    with pytest.raises(ValueError, match="feature must be between 0 and 18"):
        write_direction(world.interactions, 19)


@pytest.fixture(scope="module")
def effects(world):
    x = world.runs.x
    samples = {
        "contribution": top_edges(world.interactions, FEATURE, x, 6),
        "weight": pairs_of(world.interactions.matrix(FEATURE), *torch.tensor([[0, 3, 1], [0, 9, 16]])),
        "random": random_edges(world.interactions, FEATURE, x, 8, torch.Generator().manual_seed(1)),
    }
    directions, scale = unembedding(world.model), final_scale(world.runs)
    return samples, edge_effects(world.runs, world.interactions, FEATURE, samples, world.corpus, directions, scale)


def test_the_effect_of_every_edge_is_that_of_an_edited_run(world, effects):
    samples, found = effects
    row = world.interactions.sae_out.W_dec[FEATURE]
    pairs = list(zip(found.first.tolist(), found.second.tolist(), strict=True))
    assert len(set(pairs)) == len(pairs)
    for kind, edges in samples.items():
        assert {*zip(edges.first.tolist(), edges.second.tolist(), strict=True)} <= set(pairs)
        assert kind in found.kind
    for index in (0, 3, 6, 8, len(pairs) - 1):
        a, b = pairs[index]
        term = found.weight[index] * world.z[:, a] * world.z[:, b]
        assert found.n_active[index] == int((term != 0).sum())
        close(found.contribution[index], term.mean(), 1e-6)
        close(found.measured[index], world.effect(-term.unsqueeze(1).float() * row))
        close(found.coactivation[index], (_corpus_z(world)[:, a] * _corpus_z(world)[:, b]).mean(), 1e-6)
    assert found.measured.abs().max() > 0.01


def _corpus_z(world):
    return world.interactions.sae_in.encode(world.corpus.x)


def test_the_direct_path_is_the_weights_over_the_scale(world, effects):
    _, found = effects
    row, U = world.interactions.sae_out.W_dec[FEATURE].double(), unembedding(world.model).double()
    logits = row @ U
    poles = (logits[6] + logits[7] - logits[8] - logits[9]) / 2
    scale = final_scale(world.runs)
    for index in range(len(found.first)):
        term = found.weight[index] * world.z[:, found.first[index]].double() * world.z[:, found.second[index]].double()
        close(found.predicted[index], -term * poles / scale, 1e-6)
    close(pole_direction(U, world.tokens) @ row, poles, 1e-9)
    active = found.measured != 0
    assert found.effect_correlation == pytest.approx(correlation(found.predicted[active], found.measured[active]))
    damage = found.measured.abs().mean(1)
    contributions = torch.stack(
        [w * world.z[:, a] * world.z[:, b] for w, a, b in zip(found.weight, found.first, found.second, strict=True)]
    )
    expected = {
        "weight": found.weight.abs(),
        "weight x coactivation": found.weight.abs() * found.coactivation,
        "contribution": contributions.abs().mean(1),
        "predicted": found.predicted.abs().mean(1),
    }
    assert found.rank_correlations == pytest.approx(
        {k: rank_correlation(v, damage) for k, v in expected.items()}, abs=1e-3
    )


def test_the_direct_path_is_all_there_is_after_the_last_layer():
    """There the prediction differs from the measurement by the change of the final norm's scale alone."""
    world = World(layer=2)
    top = top_edges(world.interactions, FEATURE, world.runs.x, 8)
    scale, U = final_scale(world.runs), unembedding(world.model)
    found = edge_effects(world.runs, world.interactions, FEATURE, {"contribution": top}, world.corpus, U, scale)
    base = world.runs.logits.double()
    row = world.interactions.sae_out.W_dec[FEATURE].double()
    step = -top.contributions(world.z)[:, 0]
    moved = world.runs.changed_logits((step.unsqueeze(1) * row).float()).double()
    # Logits times scale move by exactly the direct path; the new scale is read off one logit and checked on the rest.
    direct = step.unsqueeze(1) * (row @ U.double())
    ratio = (moved * (base * scale.unsqueeze(1) + direct)).sum(1) / moved.square().sum(1)
    torch.testing.assert_close(moved * ratio.unsqueeze(1), base * scale.unsqueeze(1) + direct, rtol=1e-4, atol=1e-4)
    assert found.effect_correlation > 0.8
    assert (found.logit_correlation[found.n_active > 0] > 0.5).all()


def test_logits_are_compared_over_the_vocabulary(world, effects):
    _, found = effects
    row, U = world.interactions.sae_out.W_dec[FEATURE], unembedding(world.model).double()
    index = 0
    term = found.weight[index] * world.z[:, found.first[index]] * world.z[:, found.second[index]]
    moved = world.runs.changed_logits(-term.unsqueeze(1).float() * row).double() - world.runs.logits.double()
    predicted = -(term / final_scale(world.runs)).unsqueeze(1) * (row.double() @ U)
    active = term != 0
    expected = correlation(*(one[active] - one[active].mean(1, keepdim=True) for one in (predicted, moved)))
    assert found.logit_correlation[index].item() == pytest.approx(expected, abs=1e-4)


# Ablations and doses.


def test_an_input_feature_out_of_the_form_is_all_its_terms(world):
    terms = terms_at(world.interactions, FEATURE, world.runs.x)
    counts = Counter(terms.first[terms.of_features].tolist())
    nodes = {"one": [counts.most_common(1)[0][0]], "two": [a for a, _ in counts.most_common(3)[1:]]}
    found = node_ablations(world.runs, world.interactions, FEATURE, nodes, world.corpus, seed=0)
    assert [(one.name, one.method) for one in found] == list(itertools.product(nodes, ("zero", "mean", "resample")))
    row = world.interactions.sae_out.W_dec[FEATURE]
    for one in found:
        if one.method != "zero":
            continue
        held = terms.sum(terms.holding(torch.tensor(one.features)))
        close(one.form.mean, world.effect(-held.unsqueeze(1).float() * row).mean())
        assert abs(one.form.mean) > 1e-3


@torch.no_grad()
def test_an_input_feature_out_of_the_layer_is_the_model_on_another_input(world):
    nodes, W_dec = {"two": [3, 8]}, world.interactions.sae_in.W_dec
    found = {one.method: one for one in node_ablations(world.runs, world.interactions, FEATURE, nodes, world.corpus, 5)}
    mean = _corpus_z(world)[:, [3, 8]].mean(0)
    mlp = world.model.model.layers[LAYER].mlp
    for method, value in (("zero", torch.zeros(2)), ("mean", mean)):
        x = world.runs.x + (value - world.z[:, [3, 8]]) @ W_dec[[3, 8]]
        close(found[method].layer.mean, world.effect(mlp(x) - world.runs.y).mean())
        row, form = world.interactions.sae_out.W_dec[FEATURE], world.interactions.form(FEATURE)
        close(found[method].form.mean, world.effect((form(x) - form(world.runs.x)).unsqueeze(1) * row).mean())
    assert found["resample"].layer.mean != found["mean"].layer.mean


def test_what_stands_in_place_of_a_value():
    values = torch.arange(12.0).view(4, 3).double()
    generator = torch.Generator().manual_seed(0)
    assert (replacement(values, 5, "zero", generator) == torch.zeros(5, 3)).all()
    close(replacement(values, 5, "mean", generator), values.mean(0).expand(5, 3))
    drawn = replacement(values, 400, "resample", generator)
    # Whole rows, so that features keep their company, and every token alike.
    rows = Counter(map(tuple, drawn.tolist()))
    assert set(rows) == set(map(tuple, values.tolist()))
    assert max(rows.values()) < 150


@pytest.fixture(scope="module")
def circuit(world):
    return top_edges(world.interactions, FEATURE, world.runs.x, 6)


def test_doses_scale_the_terms_of_the_circuit(world, circuit):
    factors = (-1.0, 0.0, 0.5, 1.0, 2.0)
    doses = dose_response(world.runs, world.interactions, FEATURE, circuit, factors, seed=0)
    total = sum(
        w * world.z[:, a].double() * world.z[:, b].double()
        for w, a, b in zip(circuit.weight, circuit.first, circuit.second, strict=True)
    )
    close(circuit_sum(world.runs, world.interactions, circuit), total, 1e-6)
    row = world.interactions.sae_out.W_dec[FEATURE]
    for factor, dose in zip(factors, doses, strict=True):
        assert dose.factor == factor
        expected = world.effect(((factor - 1) * total).unsqueeze(1).float() * row)
        close(dose.effect.mean, expected.mean())
        assert dose.effect.n == len(world.runs)
        if factor != 1:
            assert dose.effect.low < dose.effect.mean < dose.effect.high
    assert doses[3].effect.mean == 0
    assert abs(doses[1].effect.mean) > 1e-3


def test_the_circuit_is_replaced_by_zero_the_mean_or_another_token(world, circuit):
    found = {
        one.method: one.effect.mean
        for one in circuit_ablations(world.runs, world.interactions, FEATURE, circuit, world.corpus, 3)
    }
    row = world.interactions.sae_out.W_dec[FEATURE]
    total, elsewhere = circuit.contributions(world.z).sum(1), circuit.contributions(_corpus_z(world)).sum(1)
    close(found["zero"], world.effect(-total.unsqueeze(1).float() * row).mean())
    close(found["mean"], world.effect((elsewhere.mean() - total).unsqueeze(1).float() * row).mean())
    drawn = elsewhere[torch.randint(len(elsewhere), (len(total),), generator=torch.Generator().manual_seed(3))]
    close(found["resample"], world.effect((drawn - total).unsqueeze(1).float() * row).mean())
    assert len({round(one, 5) for one in found.values()}) == 3


# Correlations.


def test_equal_values_share_the_mean_of_their_ranks():
    values = torch.tensor([3.0, 1.0, 3.0, -2.0, 3.0, 1.0])
    by_hand = torch.tensor([5, 2.5, 5, 1, 5, 2.5])
    other = torch.tensor([1.0, 2, 3, 4, 5, 6])
    assert rank_correlation(values, other) == pytest.approx(correlation(by_hand, other))


def test_rank_correlation_is_that_of_pairs_in_order():
    x = torch.tensor([1.0, 2, 3, 4, 5])
    assert rank_correlation(x, x.exp()) == pytest.approx(1)
    assert rank_correlation(x, -x) == pytest.approx(-1)
    # By hand: 1 - 6 sum d^2 / (n (n^2 - 1)) with d = 1, -1, 2, -1, -1.
    assert rank_correlation(x, torch.tensor([2.0, 1, 5, 3, 4])) == pytest.approx(1 - 6 * 8 / 120)
    assert math.isnan(rank_correlation(x, torch.ones(5)))
    assert math.isnan(correlation(x[:1], x[:1]))
    assert slope(x, -2 * x) == pytest.approx(-2)
    assert math.isnan(slope(0 * x, x))
