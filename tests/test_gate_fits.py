"""Polynomials of gates: against weighted least squares by numpy, neuron by neuron."""

import numpy as np
import pytest
import torch
from helpers import assert_near, randn, refused

from bilinear_circuits.algebra.gate_fits import fit_gates

SILU = torch.nn.functional.silu


def drawn(n=400, d_mlp=5):
    """Gates of unlike size and mean, and other factors that depend on them."""
    g = randn(n, d_mlp, seed=1) * torch.tensor([0.3, 1.0, 3.0, 1.0, 20.0]) + torch.tensor([0, 1.0, -2.0, 0, 5.0])
    return g, randn(n, d_mlp, seed=2) * (1 + 0.3 * g.abs())


@pytest.mark.parametrize("order", [1, 2, 4])
def test_each_neuron_is_fitted_as_by_numpy(order):
    g, u = drawn()
    fit = fit_gates([(g[:150], u[:150]), (g[150:], u[150:])], SILU, order)
    assert fit.order == order
    for m in range(g.shape[1]):
        basis, value = np.vander(g[:, m].numpy(), order + 1, increasing=True), SILU(g[:, m]).numpy()
        weight = u[:, m].numpy()
        expected, *_ = np.linalg.lstsq(basis * weight[:, None], value * weight, rcond=None)
        missed = (weight * (value - basis @ expected)) ** 2
        assert_near(fit(g)[:, m], torch.from_numpy(basis @ expected), 1e-6)
        assert_near(fit.remainder[m], torch.tensor(missed.mean()), 1e-6)
        assert_near(fit.unexplained[m], torch.tensor(missed.sum() / ((weight * value) ** 2).sum()), 1e-6)


def test_a_polynomial_is_found_and_leaves_nothing():
    g, u = drawn()
    fit = fit_gates([(g, u)], lambda x: 0.5 - 0.2 * x + 0.1 * x.square(), 2)
    assert_near(fit.coefficients, torch.tensor([0.5, -0.2, 0.1]).double().expand(5, 3), 1e-8)
    assert fit.unexplained.max() < 1e-12


def test_a_gate_that_never_changes_is_a_constant_and_a_silent_neuron_nothing():
    g, u = drawn()
    g[:, 0], u[:, 1] = 0.7, 0
    fit = fit_gates([(g, u)], SILU, 2)
    assert_near(fit(g)[:, 0], SILU(g[:, 0]), 1e-9)
    assert fit.coefficients.isfinite().all()
    assert fit.unexplained[1] == 0


def test_nothing_to_fit_is_refused():
    with refused(ValueError, "order must be at least 1, got 0"):
        fit_gates([drawn()], SILU, 0)
    with refused(ValueError, "batches must hold one input or more, got none"):
        fit_gates([], SILU, 1)
