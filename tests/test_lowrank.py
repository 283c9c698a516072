import dense as oracle
import numpy as np
import pytest
import torch
from helpers import (
    D_IN,
    D_SAE_OUT,
    HOOK_IN,
    HOOK_OUT,
    assert_near,
    randn,
    random_interactions,
    random_sae,
    random_tensor,
    refused,
    weights_of,
)

import bilinear_circuits.interactions.low_rank as lowrank_module
from bilinear_circuits.interactions.active import active_tokens
from bilinear_circuits.interactions.feature_interactions import FeatureInteractions
from bilinear_circuits.interactions.low_rank import LowRankCorrelation, low_rank_correlation
from bilinear_circuits.models.bilinear_mlp import BilinearMLP
from bilinear_circuits.statistics.correlations import pearson
from bilinear_circuits.sweep import leading_spectra

BIASES = ("b_gate", "b_in", "b_out")
BIAS_SETS = pytest.mark.parametrize("biases", [(), BIASES], ids=len)


def corpus(n=300):
    return randn(n, D_IN, seed=70)


def correlations(interactions, **arguments):
    return low_rank_correlation(interactions, corpus(), ranks=[1, 2], **arguments)


def activations(interactions, sae_out, x):
    """ReLU activations of the output SAE, from the formulas."""
    y = torch.stack([oracle.layer(row, *weights_of(interactions.mlp.tensor)) for row in x])
    return ((y - sae_out.b_dec) @ sae_out.W_enc + sae_out.b_enc).relu().detach()


@BIAS_SETS
@pytest.mark.parametrize("rank", [1, 2, 4])
def test_correlation_equals_a_route_through_numpy(biases, rank):
    interactions, _, sae_out = random_interactions(biases=biases)
    x = corpus()
    z = activations(interactions, sae_out, x)
    found = low_rank_correlation(interactions, x, ranks=[rank])
    W_gate, W_in, W_out, b_gate, b_in, _ = weights_of(interactions.mlp.tensor)
    dense = oracle.interaction_tensor(W_gate, W_in, W_out)
    for feature in range(D_SAE_OUT):
        u = sae_out.W_enc[:, feature].detach()
        values, vectors = np.linalg.eigh(torch.einsum("o,oij->ij", u, dense).numpy())
        chosen = np.argsort(-np.abs(values))[:rank]
        active = (z[:, feature] > 0).numpy()
        rows = x.numpy()[active]
        predicted = sum(values[i] * (rows @ vectors[:, i]) ** 2 for i in chosen)
        if biases:
            c = (W_out @ u).numpy()
            predicted = predicted + rows @ (W_gate.numpy() @ (c * b_in.numpy()) + W_in.numpy() @ (c * b_gate.numpy()))
        expected = np.corrcoef(predicted, z[:, feature].numpy()[active])[0, 1]
        assert found.n_active[feature] == active.sum()
        assert found.correlation[feature, 0].item() == pytest.approx(expected, abs=1e-10)


@BIAS_SETS
def test_the_whole_form_is_exact(biases):
    found = low_rank_correlation(random_interactions(biases=biases)[0], corpus(), ranks=[1, 2])
    assert found.ranks == (1, 2, D_IN)
    assert_near(found.at_rank(D_IN), torch.ones(D_SAE_OUT), 1e-9)
    assert (found.at_rank(1) < 0.999).any()


def test_the_whole_form_is_measured_once():
    found = low_rank_correlation(random_interactions()[0], corpus(), ranks=[D_IN, 3])
    assert found.ranks == (3, D_IN)
    assert found.correlation.shape == (D_SAE_OUT, 2)


def test_activations_given_are_used():
    interactions, _, _ = random_interactions()
    x = corpus()
    active = active_tokens(interactions.sae_out, x, interactions.mlp)
    found, given = correlations(interactions), correlations(interactions, active=active)
    assert_near(given.correlation, found.correlation)
    squared = type(active)(active.token, active.value.square(), active.offsets)
    assert not torch.allclose(correlations(interactions, active=squared).correlation, found.correlation)


def test_features_are_measured_in_the_order_asked():
    interactions, _, _ = random_interactions()
    every, some = correlations(interactions), correlations(interactions, features=[7, 2])
    assert some.features.tolist() == [7, 2]
    assert_near(some.correlation, every.correlation[[7, 2]])


def test_small_chunks_change_nothing(monkeypatch):
    interactions, _, _ = random_interactions()
    whole = correlations(interactions)
    monkeypatch.setattr(lowrank_module, "_FEATURES_PER_GROUP", 2)
    assert_near(correlations(interactions).correlation, whole.correlation)


@pytest.mark.parametrize("entries", [1, 5 * 150 * D_IN, 1 << 40], ids=["one feature", "a few", "all"])
def test_groups_of_features_change_nothing(entries, monkeypatch):
    """Features with different numbers of active tokens are padded to the longest of their group."""
    interactions, _, _ = random_interactions(biases=BIASES)
    whole = correlations(interactions)
    assert len(set(whole.n_active.tolist())) > 3
    monkeypatch.setattr(lowrank_module, "_GROUP_ENTRIES", entries)
    seen = []

    def progress(items, description, /):
        seen.append((len(items), description))
        return items

    found = low_rank_correlation(interactions, corpus(), ranks=[1, 2], progress=progress)
    assert_near(found.correlation, whole.correlation)
    (n_groups,) = [n for n, name in seen if name == "low-rank forms"]
    assert n_groups in {1: [9], 5 * 150 * D_IN: range(2, 9), 1 << 40: [1]}[entries]


def wide_interactions(dtype):
    """A layer wide enough for its spectra to be found by iterations, and inputs of it."""
    d_in, d_out = 200, 6
    mlp = BilinearMLP(random_tensor(3, (), d_in, 230, d_out, dtype), 0, HOOK_IN, HOOK_OUT, None, 0.0, ())
    name = str(dtype).removeprefix("torch.")
    sae_in, sae_out = random_sae("topk", d_in, 210, 4, dtype=name), random_sae("standard", d_out, 9, 5, dtype=name)
    return FeatureInteractions(mlp, sae_in, sae_out), randn(400, d_in, seed=6, dtype=dtype)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_iterated_spectra_give_the_correlations_of_full_ones(dtype, monkeypatch):
    interactions, x = wide_interactions(dtype)
    iterated = []

    def noted(Q, k):
        found = leading_spectra(Q, k)
        iterated.extend(found.iterated.tolist())
        return found

    monkeypatch.setattr(lowrank_module, "leading_spectra", noted)
    found = low_rank_correlation(interactions, x, ranks=[1, 2, 8])
    assert found.kept.all()
    assert iterated == [True] * 9
    monkeypatch.setattr(lowrank_module, "leading_spectra", lambda Q, k: leading_spectra(Q, k, iterate=False))
    full = low_rank_correlation(interactions, x, ranks=[1, 2, 8])
    assert full.kept.tolist() == found.kept.tolist()
    assert_near(found.correlation[found.kept], full.correlation[full.kept], 1e-5)
    assert_near(found.at_rank(200), torch.ones(9), 1e-5)


def test_features_with_few_active_tokens_are_left_out():
    interactions, _, _ = random_interactions()
    counts = correlations(interactions).n_active
    limit = int(counts.sort().values[3])
    found = correlations(interactions, min_active=limit)
    assert found.kept.tolist() == (counts > limit).tolist()
    assert found.correlation.isnan().any(1).tolist() == (counts <= limit).tolist()
    assert len(found.at_rank(1)) == found.kept.sum()
    assert 0 < found.kept.sum() < D_SAE_OUT
    assert found.mean(2) == pytest.approx(found.correlation[counts > limit, 1].mean().item())


def measured(correlations):
    n = len(correlations)
    values = torch.tensor(correlations, dtype=torch.float64).unsqueeze(1)
    return LowRankCorrelation(torch.arange(n), (2,), values, torch.full((n,), 100), 10)


def test_share_above_counts_features():
    share = measured([0.9, 0.8, 0.74, 0.1]).share_above(2)
    assert (share.value, share.n) == (0.5, 4)
    assert 0 <= share.low < 0.5 < share.high <= 1
    assert measured([0.9, 0.8, 0.74, 0.1]).share_above(2, threshold=0.05).value == 1


def test_share_interval_has_the_width_of_a_binomial():
    share = measured([0.9] * 300 + [0.1] * 100).share_above(2, n_bootstrap=4000)
    error = 1.96 * (0.75 * 0.25 / 400) ** 0.5
    assert share.low == pytest.approx(0.75 - error, abs=0.01)
    assert share.high == pytest.approx(0.75 + error, abs=0.01)
    assert share == measured([0.9] * 300 + [0.1] * 100).share_above(2, n_bootstrap=4000)


def test_share_of_no_feature_is_not_a_number():
    nan, none = torch.full((1, 1), torch.nan, dtype=torch.float64), torch.zeros(1, dtype=torch.long)
    nothing = LowRankCorrelation(torch.arange(1), (2,), nan, none, 10)
    share = nothing.share_above(2)
    assert share.n == 0
    assert np.isnan([share.value, share.low, share.high]).all()


def test_pearson_equals_the_loops():
    predicted, actual = randn(20, 3), randn(20, seed=1)
    expected = [oracle.pearson(column.tolist(), actual.tolist()) for column in predicted.T]
    assert_near(pearson(predicted, actual), torch.tensor(expected, dtype=torch.float64))
    assert pearson(torch.ones(4, 1), randn(4)).isnan().all()


@pytest.mark.parametrize("rank", [0, -1, D_IN + 1])
def test_ranks_out_of_range_are_refused(rank):
    with refused(ValueError, f"ranks must be between 1 and d_in=5, got {rank}"):
        low_rank_correlation(random_interactions()[0], corpus(20), ranks=[1, rank])


def test_a_rank_that_was_not_measured_is_refused():
    with refused(ValueError, r"rank must be one of those measured, \(2,\), got 3"):
        measured([0.5]).at_rank(3)


@pytest.mark.parametrize("feature", [-1, D_SAE_OUT])
def test_a_feature_that_does_not_exist_is_refused(feature):
    with refused(ValueError, f"feature must be between 0 and {D_SAE_OUT - 1}"):
        low_rank_correlation(random_interactions()[0], randn(30, D_IN), features=[0, feature])


def test_ranks_beyond_the_width_are_left_out_by_default():
    assert low_rank_correlation(random_interactions()[0], randn(30, D_IN), features=[0]).ranks == (1, 2, 4, D_IN)


def test_no_features_give_an_empty_result():
    assert low_rank_correlation(random_interactions()[0], randn(30, D_IN), features=[]).correlation.shape == (0, 4)
