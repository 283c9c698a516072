"""Nulls keep what they say and break the rest; p-values and false-discovery rates by their definitions."""

import pytest
import torch
from helpers import assert_near, randn, random_tensor, refused

from bilinear_circuits.discovery.nulls import (
    SAME_FORMS,
    forms_in_groups,
    null_forms,
    null_rows,
    permute_rows,
    randomised_layer,
    refitted_encoders,
)
from bilinear_circuits.discovery.planted import _sparse
from bilinear_circuits.statistics.false_discovery import benjamini_hochberg, empirical_p_values, q_values


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def rows_of(n, d, seed=1):
    return torch.nn.functional.normalize(randn(n, d, seed=seed), dim=1)


def test_permuted_rows_hold_the_same_numbers_in_orders_of_their_own():
    weights = torch.arange(600.0).view(6, 100)
    permuted = permute_rows(weights, seeded())
    assert permuted.sort(1).values.equal(weights)
    orders = {tuple((row - row.min()).tolist()) for row in permuted}
    assert len(orders) == 6


def test_a_randomised_layer_has_the_same_numbers_and_another_tensor():
    tensor = random_tensor(biases=("b_gate", "b_out"))
    other = randomised_layer(tensor, seeded())
    for name in ("W_gate", "W_in", "W_out"):
        assert getattr(other, name).sort(1).values.equal(getattr(tensor, name).sort(1).values)
    assert other.b_gate.sort().values.equal(tensor.b_gate.sort().values)
    assert other.b_in is None
    assert (other.to_dense() - tensor.to_dense()).norm() > 0.5 * tensor.to_dense().norm()


def test_refitted_encoders_are_ridge_regressions():
    y = randn(300, 5) @ randn(5, 5, seed=1)
    z = (y @ randn(5, 4, seed=2)).relu()
    active = _sparse(z)
    got = refitted_encoders(y, active, ridge=0.3)
    centred, target = y - y.mean(0), z - z.mean(0)
    C = centred.T @ centred
    expected = torch.linalg.inv(C + 0.3 * C.trace() / 5 * torch.eye(5, dtype=torch.double)) @ centred.T @ target
    assert_near(got, expected, 1e-5)


def test_an_encoder_that_can_be_found_is_found():
    W, y = randn(5, 3, seed=2), randn(4000, 5)
    z = y @ W
    got = refitted_encoders(y, _sparse(z), ridge=1e-9)
    assert_near(got, W, 1e-4)


@pytest.mark.parametrize("null", ["weights", "symmetric"])
def test_a_null_of_the_forms_keeps_what_it_says(null):
    tensor, encoders = random_tensor(d_in=8, d_mlp=40, d_out=4), randn(4, 7, seed=3)
    real = torch.cat(list(forms_in_groups(tensor, encoders, 3)))
    assert_near(real, tensor.matrix(encoders.T).to_dense())
    parts = list(null_forms(null, tensor, encoders, seeded(), 3))
    assert [len(Q) for Q in parts] == [3, 3, 1]
    forms = torch.cat(parts)
    assert_near(forms, forms.mT)
    assert (forms - real).flatten(1).norm(dim=1).min() > 0.5 * real.flatten(1).norm(dim=1).min()
    if null == "weights":
        assert_near(forms, randomised_layer(tensor, seeded()).matrix(encoders.T).to_dense())
    else:
        assert_near(forms.flatten(1).norm(dim=1), real.flatten(1).norm(dim=1))


@pytest.mark.parametrize("null", SAME_FORMS)
def test_a_null_of_the_decoder_rows_keeps_what_it_says(null):
    rows = rows_of(12, 8)
    turned = null_rows(null, rows, seed=0)
    assert_near(turned.norm(dim=1), torch.ones(12))
    assert (turned - rows).abs().max() > 0.1
    assert turned.equal(null_rows(null, rows, seed=0))
    assert not turned.equal(null_rows(null, rows, seed=1))
    if null == "rotation":
        assert_near(turned @ turned.T, rows @ rows.T, 1e-9)
    else:
        assert_near(turned.sort(1).values, rows.sort(1).values)


def test_entries_of_a_random_symmetric_form_have_the_variances_of_wigner():
    tensor, encoders = random_tensor(d_in=60, d_mlp=90, d_out=4), randn(4, 5, seed=3)
    Q = torch.cat(list(null_forms("symmetric", tensor, encoders, seeded(), 8)))
    off = torch.triu(torch.ones(60, 60, dtype=torch.bool), 1)
    scaled = Q / Q.flatten(1).norm(dim=1)[:, None, None]
    ratio = scaled.diagonal(dim1=1, dim2=2).var() / scaled[:, off].var()
    # The diagonal of A + A^T has twice the variance of the rest; 300 entries give it to about 8 %.
    assert 1.6 < ratio < 2.4


def test_p_values_count_null_scores_at_least_as_large():
    scores, null = torch.tensor([0.5, 2.0, -1.0, 1.0]), torch.tensor([0.0, 1.0, 1.0, 0.5])
    expected = [(1 + sum(n >= s for n in null.tolist())) / 5 for s in scores.tolist()]
    assert empirical_p_values(scores, null).tolist() == expected


@pytest.mark.parametrize("seed", range(5))
def test_benjamini_hochberg_is_the_step_up_rule(seed):
    p = torch.rand(40, generator=seeded(seed), dtype=torch.double) ** 2
    for rate in (0.01, 0.05, 0.2, 0.5):
        ordered = sorted(p.tolist())
        k = max([i for i, one in enumerate(ordered, 1) if one <= rate * i / 40], default=0)
        expected = [k > 0 and one <= ordered[k - 1] for one in p.tolist()]
        assert benjamini_hochberg(p, rate).tolist() == expected
        assert (q_values(p) <= rate).tolist() == expected


def test_the_false_discovery_rate_holds_when_there_is_nothing_and_when_there_is_something():
    generator, any_found, false, found = seeded(3), 0, 0, 0
    for _ in range(400):
        null = torch.rand(80, generator=generator, dtype=torch.double)
        any_found += bool(benjamini_hochberg(null, 0.1).any())
        rejected = benjamini_hochberg(torch.cat([null, torch.full((20,), 1e-4, dtype=torch.double)]), 0.1)
        false, found = false + int(rejected[:80].sum()), found + int(rejected.sum())
    # 40 expected of 400, with a standard deviation of 6; 8 % of discoveries expected to be false.
    assert 20 < any_found < 60
    assert 0.06 < false / found < 0.1


def test_a_rate_must_be_a_rate():
    with refused(ValueError, "fdr must be between 0 and 1, got 1.5"):
        benjamini_hochberg(torch.tensor([0.1]), 1.5)
