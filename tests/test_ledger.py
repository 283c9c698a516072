import dense as oracle
import pytest
import torch
from helpers import (
    D_IN,
    D_SAE_OUT,
    INFERENCE_ARCHITECTURES,
    assert_near,
    randn,
    random_interactions,
    refused,
    weights_of,
)

from bilinear_circuits.interactions.feature_interactions import FeatureInteractions
from bilinear_circuits.interactions.ledger import account

BIAS_SETS = pytest.mark.parametrize("biases", [(), ("b_gate", "b_in", "b_out"), ("b_in",)], ids=len)
PRODUCTS = ("feature_feature", "feature_bias", "feature_error", "bias_bias", "bias_error", "error_error")
LINEAR = ("feature_linear", "bias_linear", "error_linear")


def true_pre_activation(x, interactions, sae_out, feature):
    """(MLP(x) - b_dec) . w + b_enc, from the layer's formula and the SAE's own parameters."""
    y = oracle.layer(x, *weights_of(interactions.mlp.tensor))
    return ((y - sae_out.b_dec) @ sae_out.W_enc[:, feature] + sae_out.b_enc[feature]).item()


@BIAS_SETS
@pytest.mark.parametrize("feature", [0, 4, D_SAE_OUT - 1])
def test_every_term_equals_the_loops(biases, feature):
    interactions, sae_in, sae_out = random_interactions("topk", biases)
    for x in 2 * randn(3, D_IN, seed=60):
        pre = (x - sae_in.b_dec) @ sae_in.W_enc + sae_in.b_enc
        expected = oracle.ledger(
            x,
            oracle.encode(pre, "topk", k=4),
            sae_in.W_dec,
            sae_in.b_dec,
            weights_of(interactions.mlp.tensor),
            sae_out.W_enc[:, feature],
            (sae_out.b_enc[feature] - sae_out.b_dec @ sae_out.W_enc[:, feature]).item(),
        )
        terms = interactions.ledger(x, feature).terms
        assert set(terms) == set(expected)
        for name, value in expected.items():
            assert_near(terms[name], value)


@BIAS_SETS
@pytest.mark.parametrize("architecture", INFERENCE_ARCHITECTURES)
def test_terms_sum_to_the_true_pre_activation(architecture, biases):
    interactions, _, sae_out = random_interactions(architecture, biases)
    x = 2 * randn(5, D_IN, seed=60)
    for feature in range(D_SAE_OUT):
        expected = [true_pre_activation(row, interactions, sae_out, feature) for row in x]
        assert_near(interactions.ledger(x, feature).total, torch.tensor(expected, dtype=torch.float64))


def test_a_batch_holds_the_ledgers_of_its_rows():
    interactions, _, _ = random_interactions(biases=("b_gate", "b_out"))
    x = randn(2, 3, D_IN, seed=60)
    batch = interactions.ledger(x, 2)
    assert batch.total.shape == (2, 3)
    for name, value in batch.terms.items():
        assert_near(value[1, 2], interactions.ledger(x[1, 2], 2).terms[name])


def test_without_biases_of_the_layer_there_are_no_linear_terms():
    ledger = random_interactions()[0].ledger(randn(4, D_IN, seed=60), 0)
    assert all((ledger.terms[name] == 0).all() for name in LINEAR)
    assert all((ledger.terms[name] != 0).all() for name in PRODUCTS)


def test_what_the_dictionary_reconstructs_leaves_no_error():
    interactions, _, _ = random_interactions()
    z, bias = randn(4, 11, seed=60), interactions.sae_in.b_dec
    features = z @ interactions.sae_in.W_dec
    exact = account(interactions.form(1), features + bias, features, bias, torch.ones(4, dtype=torch.bool))
    for term in (exact.feature_error, exact.bias_error, exact.error_error):
        assert term.abs().max() < 1e-10
    assert_near(exact.feature_feature, interactions.matrix(1)(z))
    assert_near(exact.total, interactions.form(1)(features + bias))


@pytest.mark.parametrize("architecture", ["topk", "abstopk", "jumprelu"])
def test_completeness_is_the_share_of_the_pairs_where_the_feature_is_active(architecture):
    interactions, _, sae_out = random_interactions(architecture)
    x = randn(40, D_IN, seed=60)
    ledger = interactions.ledger(x, 0)
    active = sae_out.encode(interactions.mlp.tensor(x))[:, 0] != 0
    assert 0 < active.sum() < len(x)
    assert_near(ledger.completeness[active], (ledger.feature_feature / ledger.total)[active])
    assert ledger.completeness[~active].isnan().all()
    assert "active" not in ledger.terms


@pytest.mark.parametrize("architecture", ["topk", "abstopk", "jumprelu"])
def test_pair_contributions_sum_to_the_feature_pairs(architecture):
    interactions, _, _ = random_interactions(architecture)
    for x in 2 * randn(4, D_IN, seed=60):
        pairs = interactions.pair_contributions(x, 3)
        assert_near(pairs.contributions.sum(), interactions.ledger(x, 3).feature_feature)
        assert (pairs.first <= pairs.second).all()
        assert (pairs.contributions.abs().diff() <= 0).all()


def test_pair_contributions_equal_the_loops():
    interactions, sae_in, sae_out = random_interactions("topk")
    x = 2 * randn(D_IN, seed=60)
    tensor = oracle.interaction_tensor(*weights_of(interactions.mlp.tensor)[:3])
    Q = torch.einsum("o,oij->ij", sae_out.W_enc[:, 3], tensor)
    T = oracle.feature_matrix(Q, sae_in.W_dec)
    z = oracle.encode((x - sae_in.b_dec) @ sae_in.W_enc + sae_in.b_enc, "topk", k=4)
    active = z.nonzero().squeeze(1).tolist()
    pairs = interactions.pair_contributions(x, 3)
    names = list(zip(pairs.first.tolist(), pairs.second.tolist(), strict=True))
    assert sorted(names) == [(a, b) for a in active for b in active if a <= b]
    for (a, b), weight, contribution in zip(names, pairs.weights, pairs.contributions, strict=True):
        coefficient = T[a, b].item() * (1 if a == b else 2)
        assert_near(weight, coefficient)
        assert_near(contribution, coefficient * z[a].item() * z[b].item())


def test_an_input_with_no_active_feature_has_no_pair():
    interactions, sae_in, _ = random_interactions("jumprelu")
    with torch.no_grad():
        sae_in.threshold.fill_(1e6)
    silent = FeatureInteractions(interactions.mlp, sae_in, interactions.sae_out)
    assert len(silent.pair_contributions(randn(D_IN), 0).contributions) == 0
    assert silent.ledger(randn(D_IN), 0).feature_feature.item() == 0


def test_inputs_of_the_wrong_width_are_refused():
    interactions, _, _ = random_interactions()
    with refused(ValueError, r"x must end in d_in=5 entries, got shape \(2, 4\)"):
        interactions.ledger(randn(2, 4), 0)
    with refused(ValueError, r"x must be one row of d_in=5 entries, got \(2, 5\)"):
        interactions.pair_contributions(randn(2, 5), 0)


@pytest.mark.parametrize("feature", [-1, D_SAE_OUT])
@pytest.mark.parametrize("method", ["ledger", "pair_contributions"])
def test_features_out_of_range_are_refused(method, feature):
    with refused(ValueError, rf"feature must be between 0 and 8, .* got {feature}"):
        getattr(random_interactions()[0], method)(randn(D_IN), feature)
