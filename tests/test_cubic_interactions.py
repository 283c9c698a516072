"""Triples of input features: against sums over all neurons and orders, at unequal sizes."""

import itertools

import pytest
import torch
from helpers import assert_near, randn, refused, tiny_llama
from planted import random_dictionary

from bilinear_circuits.interactions import cubic_interactions
from bilinear_circuits.interactions.cubic_interactions import CubicInteractions
from bilinear_circuits.models.gated_mlp import GatedMLP

D, F, LAYER, FEATURE = 12, 7, 1, 4


@pytest.fixture(scope="module", params=[False, True], ids=["bare", "biased"])
def model(request):
    return tiny_llama("silu", mlp_bias=request.param)


@pytest.fixture(scope="module")
def cubic(model):
    gated = GatedMLP.from_model(model, LAYER).to(torch.float64)
    sides = (
        random_dictionary(D, F, f"blocks.{LAYER}.mlp.hook_in", seed=5),
        random_dictionary(D, 9, f"blocks.{LAYER}.mlp.hook_out", seed=6),
    )
    return CubicInteractions(gated.cubic(2 * randn(2000, D, seed=3)), *(one.to(torch.float64) for one in sides))


def coefficients_by_hand(cubic):
    """Coefficient of z_a z_b z_c of every unordered triple, by loops over its orders."""
    weights, c2 = cubic.mlp.tensor.weights, cubic.mlp.tensor.coefficients[:, 2]
    w = weights.W_out @ cubic.sae_out.W_enc[:, FEATURE] * c2
    G, U = cubic.sae_in.W_dec @ weights.W_gate, cubic.sae_in.W_dec @ weights.W_in
    found = {}
    for triple in itertools.combinations_with_replacement(range(F), 3):
        orders = set(itertools.permutations(triple))
        found[triple] = sum((w * G[a] * G[b] * U[c]).sum().item() for a, b, c in orders)
    return found


@pytest.mark.parametrize("entries", [1, 1 << 22])
@pytest.mark.parametrize("k", [1, 6, 500])
def test_the_largest_triples_are_those_of_all(cubic, k, entries, monkeypatch):
    monkeypatch.setattr(cubic_interactions, "_ENTRIES", entries)
    expected = coefficients_by_hand(cubic)
    best = sorted(expected, key=lambda one: -abs(expected[one]))[:k]
    found = cubic.top_triples(FEATURE, k)
    assert [tuple(row) for row in found.features.tolist()] == best
    assert_near(found.value, torch.tensor([expected[one] for one in best], dtype=torch.double), 1e-10)


def test_triples_of_an_input_add_up_to_the_third_order(cubic, model):
    x = randn(D, seed=9)
    found, ledger = cubic.triples(FEATURE, x), cubic.ledger(x, FEATURE)
    if not model.config.mlp_bias:
        assert found.value.sum().item() == pytest.approx(ledger.third.item(), rel=1e-9)
    z = cubic.sae_in.encode(x.unsqueeze(0))[0]
    expected = coefficients_by_hand(cubic)
    of_features = found.features.amax(1) < F
    for triple, value in zip(found.features[of_features].tolist(), found.value[of_features].tolist(), strict=True):
        product = z[triple].prod().item()
        assert value == pytest.approx(expected[tuple(sorted(triple))] * product, rel=1e-8, abs=1e-12)
    n = int((z != 0).sum())
    assert int(of_features.sum()) == n * (n + 1) * (n + 2) // 6
    few = cubic.triples(FEATURE, x, n_active=2)
    assert few.value.sum().item() == pytest.approx(found.value.sum().item(), rel=1e-9)
    kept = set(few.features[few.features < F].tolist())
    assert kept == set(z.abs().topk(2).indices.tolist())
    assert found.table()["first"] == found.features[:, 0].tolist()


def test_the_ledger_by_orders_sums_to_the_model(cubic, model):
    x = randn(5, D, seed=10)
    mlp = model.model.layers[LAYER].mlp.double()
    true = mlp(x).detach() @ cubic.sae_out.W_enc[:, FEATURE] + cubic.sae_out.b_enc[FEATURE]
    mlp.float()
    ledger = cubic.ledger(x, FEATURE)
    assert_near(ledger.total, true, 1e-9)
    assert set(ledger.terms) == {"first", "second", "third", "constant", "gate_remainder"}
    assert ledger.gate_remainder.abs().max() < ledger.second.abs().max()


def test_the_local_form_is_that_of_the_gates_there(cubic, model):
    x = randn(1, D, seed=12)
    local = cubic.matrix(FEATURE, at=x).to_dense()
    weights, (_, c1, c2) = cubic.mlp.tensor.weights, cubic.mlp.tensor.coefficients.unbind(1)
    g = x[0] @ weights.W_gate + (0 if weights.b_gate is None else weights.b_gate)
    w = weights.W_out @ cubic.sae_out.W_enc[:, FEATURE]
    Q = torch.einsum("m,im,jm->ij", w * (c1 + c2 * g), weights.W_gate, weights.W_in)
    expected = cubic.sae_in.W_dec @ (Q + Q.T) / 2 @ cubic.sae_in.W_dec.T
    assert_near(local, expected, 1e-10)
    if not model.config.mlp_bias:
        ledger = cubic.ledger(x[0], FEATURE)
        assert (x[0] @ Q @ x[0]).item() == pytest.approx((ledger.second + ledger.third).item(), rel=1e-9)


def test_marginals_are_sums_over_the_third_place(cubic):
    z = randn(F, seed=13)
    expected = torch.zeros(F, F, dtype=torch.double)
    table = coefficients_by_hand(cubic)
    for a, b, c in itertools.product(range(F), repeat=3):
        triple = tuple(sorted((a, b, c)))
        expected[a, b] += table[triple] / len(set(itertools.permutations(triple))) * z[c]
    assert_near(cubic.marginal(FEATURE, z), expected, 1e-10)


def test_what_does_not_exist_is_refused(cubic):
    for call in (lambda: cubic.top_triples(9), lambda: cubic.ledger(randn(1, D), -1)):
        with refused(ValueError, "feature must be between 0 and 8"):
            call()
    with refused(ValueError, r"x must be one row of d_in entries, got 2"):
        cubic.triples(0, randn(2, D))
    with refused(ValueError, "inputs must be one row or more of d_in=12 entries"):
        cubic.matrix(0, at=randn(2, D + 1))
    with refused(ValueError, r"z must have d_sae_in=7 entries, got shape \(3,\)"):
        cubic.marginal(0, randn(3))
    with refused(TypeError, "mlp must be a CubicMLP, got a InteractionTensor"):
        CubicInteractions(cubic.mlp.tensor.weights, None, None)
