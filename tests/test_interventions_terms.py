"""Every term of a form, against loops and against the ledger."""

from dataclasses import replace

import dense
import pytest
import torch
from helpers import assert_near, randn, random_interactions, refused

from bilinear_circuits.algebra.tensor import InteractionTensor
from bilinear_circuits.interactions.active import active_tokens
from bilinear_circuits.interactions.feature_interactions import FeatureInteractions
from bilinear_circuits.interventions import pairs_of, random_edges, terms_at, top_edges
from bilinear_circuits.interventions import terms as module
from bilinear_circuits.interventions.edges import write_direction
from bilinear_circuits.interventions.terms import coactivation

FEATURE = 4
BIASES = ("b_gate", "b_in", "b_out")


def by_name(terms):
    """Values by (site, first part, second part)."""
    pairs = list(zip(terms.first.tolist(), terms.second.tolist(), strict=True))
    return {
        (site, *pairs[pair]): value
        for site, pair, value in zip(terms.site.tolist(), terms.pair.tolist(), terms.value.tolist(), strict=True)
    }


def expected_terms(interactions, feature, x):
    """The polarised form between the parts of each input, as loops."""
    tensor = interactions.mlp.tensor
    u, dictionary = interactions.sae_out.W_enc[:, feature], interactions.sae_in
    B = dense.interaction_tensor(tensor.W_gate, tensor.W_in, tensor.W_out)
    Q = torch.einsum("o,oij->ij", u, B)
    linear = interactions.form(feature).linear
    d_sae, found = dictionary.d_sae, {}
    for site, row in enumerate(x):
        z = dictionary.encode(row)
        parts = {a: z[a] * dictionary.W_dec[a] for a in z.nonzero().squeeze(1).tolist()}
        parts[d_sae] = dictionary.b_dec
        parts[d_sae + 1] = row - sum(parts.values())
        for a in parts:
            for b in parts:
                if a <= b:
                    value = parts[a] @ Q @ parts[b] * (1 if a == b else 2)
                    if b == d_sae:
                        value = value + parts[a] @ linear
                    elif a == d_sae:
                        value = value + parts[b] @ linear
                    found[site, a, b] = value.item()
    return found


@pytest.mark.parametrize("biases", [(), BIASES])
@pytest.mark.parametrize("architecture", ["topk", "standard", "abstopk"])
def test_terms_are_the_products_of_all_parts(architecture, biases):
    interactions, _, _ = random_interactions(architecture, biases)
    x = randn(6, 5, seed=3)
    terms, expected = terms_at(interactions, FEATURE, x), expected_terms(interactions, FEATURE, x)
    found = by_name(terms)
    assert set(found) == set(expected)
    for key, value in expected.items():
        assert found[key] == pytest.approx(value, rel=1e-9, abs=1e-9), key
    ledger = interactions.ledger(x, FEATURE)
    assert_near(terms.sum(), ledger.total - ledger.constant)
    assert_near(terms.sum(terms.of_features), ledger.feature_feature)
    assert terms.of_features.tolist() == [second < 11 for second in terms.second.tolist()]


def test_sums_means_and_choices_are_those_of_the_table():
    interactions, _, _ = random_interactions("topk")
    x = randn(7, 5, seed=5)
    terms = terms_at(interactions, FEATURE, x)
    table = torch.zeros(7, len(terms.first), dtype=torch.float64)
    table[terms.site, terms.pair] = terms.value
    assert (table == 0).any()  # not every pair is active everywhere
    share = torch.rand(len(terms.first), dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    assert_near(terms.sum(share), table @ share)
    assert_near(terms.mean, table.mean(0))
    assert_near(terms.mean_magnitude, table.abs().mean(0))
    some = terms.of_features.nonzero().squeeze(1)[[3, 0]]
    edges = pairs_of(interactions.matrix(FEATURE), terms.second[some], terms.first[some])  # in either order
    assert terms.among(edges).nonzero().squeeze(1).tolist() == sorted(some.tolist())
    assert_near(edges.contributions(interactions.sae_in.encode(x)), table[:, some])
    part = terms.second[some[0]]
    held = [part in pair for pair in zip(terms.first, terms.second, strict=True)]
    assert terms.holding(part.view(1)).tolist() == held


def test_edges_have_the_coefficients_of_the_dense_matrix_and_come_once():
    interactions, _, _ = random_interactions()
    T = interactions.matrix(FEATURE).to_dense()
    edges = pairs_of(interactions.matrix(FEATURE), torch.tensor([7, 2, 2, 5]), torch.tensor([2, 7, 2, 1]))
    assert list(zip(edges.first.tolist(), edges.second.tolist(), strict=True)) == [(2, 7), (2, 2), (1, 5)]
    assert_near(edges.weight, torch.stack([2 * T[2, 7], T[2, 2], 2 * T[1, 5]]))
    assert len(edges) == 3


def test_the_top_edges_have_the_largest_mean_contribution():
    interactions, _, _ = random_interactions()
    x = randn(9, 5, seed=8)
    z, T = interactions.sae_in.encode(x), interactions.matrix(FEATURE).to_dense()
    size = {
        (a, b): (z[:, a] * z[:, b] * T[a, b] * (1 if a == b else 2)).abs().mean().item()
        for a in range(11)
        for b in range(a, 11)
    }
    top = top_edges(interactions, FEATURE, x, 5)
    assert list(zip(top.first.tolist(), top.second.tolist(), strict=True)) == sorted(size, key=lambda p: -size[p])[:5]
    present = {pair for pair, value in size.items() if value > 0}
    assert len(top_edges(interactions, FEATURE, x, 500)) == len(present)
    drawn = [random_edges(interactions, FEATURE, x, 6, torch.Generator().manual_seed(seed)) for seed in (0, 0, 1)]
    pairs = [set(zip(one.first.tolist(), one.second.tolist(), strict=True)) for one in drawn]
    assert pairs[0] == pairs[1] != pairs[2]
    assert all(len(one) == 6 and one <= present for one in pairs)


def rescaled(interactions, gate, order):
    """The same layer with gauge factors and another order of neurons, and scaled dictionaries."""
    tensor = interactions.mlp.tensor
    other = InteractionTensor(
        (tensor.W_gate * gate)[:, order], (tensor.W_in / (2 * gate))[:, order], (2 * tensor.W_out)[order]
    )
    scale_in, scale_out = torch.linspace(0.5, 3, 11).double(), torch.linspace(2, 0.1, 9).double()
    sides = []
    for side, scale in ((interactions.sae_in, scale_in), (interactions.sae_out, scale_out)):
        sides.append(
            replace(side, W_enc=side.W_enc * scale, b_enc=side.b_enc * scale, W_dec=side.W_dec / scale.unsqueeze(1))
        )
    return FeatureInteractions(replace(interactions.mlp, tensor=other), *sides), scale_out


def test_terms_and_what_is_written_do_not_change_with_gauge_order_or_scale():
    interactions, _, _ = random_interactions("standard")
    x = randn(4, 5, seed=2)
    gate = torch.tensor([1.0, -2, 0.5, 3, -0.1, 7, 1.5]).double()
    other, scale_out = rescaled(interactions, gate, torch.tensor([3, 1, 6, 0, 2, 5, 4]))
    here, there = terms_at(interactions, FEATURE, x), terms_at(other, FEATURE, x)
    assert here.first.equal(there.first)
    # The pre-activation is in units of the output dictionary; what is written along a row of it is not.
    assert_near(there.value, here.value * scale_out[FEATURE])
    for along in ("decoder", "encoder"):
        unit, scaled = (write_direction(one, FEATURE, along) for one in (interactions, other))
        assert_near(scaled * scale_out[FEATURE], unit)


def test_columns_and_coactivation_are_those_of_the_dense_activations():
    interactions, _, _ = random_interactions()
    x = randn(20, 5, seed=6)
    z = interactions.sae_in.encode(x)
    active = active_tokens(interactions.sae_in, x)
    assert_near(active.columns(torch.tensor([4, 0, 9]), 20), z[:, [4, 0, 9]])
    edges = pairs_of(interactions.matrix(FEATURE), torch.tensor([0, 3, 4]), torch.tensor([5, 3, 10]))
    assert_near(coactivation(active, edges, 20), (z[:, edges.first] * z[:, edges.second]).mean(0))


def test_too_many_terms_and_unknown_features_are_refused(monkeypatch):
    interactions, _, _ = random_interactions()
    with refused(ValueError, "feature must be between 0 and 8, one of the output dictionary dictionary, got 9"):
        terms_at(interactions, 9, randn(2, 5))
    monkeypatch.setattr(module, "_MOST_TERMS", 10)
    with refused(ValueError, "x must have at most 10 terms, got .* at 2 inputs. Give fewer inputs"):
        terms_at(interactions, FEATURE, randn(2, 5))
