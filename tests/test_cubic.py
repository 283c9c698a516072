"""Cubic layers: against automatic derivatives and sums over all places."""

import itertools

import pytest
import torch
from helpers import assert_near, randn, refused

from bilinear_circuits.algebra.cubic import CubicTensor
from bilinear_circuits.algebra.tensor import InteractionTensor

D, M, D_OUT = 4, 6, 3


@pytest.fixture(params=[False, True], ids=["bare", "biased"])
def layer(request):
    biases = (
        {"b_gate": randn(M, seed=4), "b_in": randn(M, seed=5), "b_out": randn(D_OUT, seed=6)} if request.param else {}
    )
    weights = InteractionTensor(randn(D, M, seed=1), randn(D, M, seed=2), randn(M, D_OUT, seed=3), **biases)
    return CubicTensor(weights, randn(M, 3, seed=7))


def by_hand(layer, x):
    """The formula, neuron by neuron."""
    W, out = layer.weights, torch.zeros(D_OUT, dtype=torch.double)
    for m in range(M):
        g = x @ W.W_gate[:, m] + (0 if W.b_gate is None else W.b_gate[m])
        u = x @ W.W_in[:, m] + (0 if W.b_in is None else W.b_in[m])
        c0, c1, c2 = layer.coefficients[m]
        out = out + (c0 + c1 * g + c2 * g * g) * u * W.W_out[m]
    return out if W.b_out is None else out + W.b_out


def test_the_layer_is_its_formula_and_the_orders_add_up(layer):
    x, e = randn(5, D, seed=8), randn(D_OUT, seed=9)
    expected = torch.stack([by_hand(layer, row) for row in x])
    assert_near(layer(x), expected)
    constant = 0 if layer.weights.b_out is None else layer.weights.b_out @ e
    first, second, third = layer.orders(x, e)
    assert_near(first + second + third + constant, expected @ e)
    assert_near(layer.quadratic(x) @ e, first + second + constant)


def cubic_part(layer, e):
    """T by the third derivative, 6 T, entry by entry."""
    x = randn(D, seed=10).requires_grad_()
    (first,) = torch.autograd.grad(by_hand(layer, x) @ e, x, create_graph=True)
    T = torch.zeros(D, D, D, dtype=torch.double)
    for a in range(D):
        (second,) = torch.autograd.grad(first[a], x, create_graph=True)
        for b in range(D):
            (T[a, b],) = torch.autograd.grad(second[b], x, retain_graph=True)
    return T / 6


def test_entries_marginals_and_triples_are_those_of_the_third_derivative(layer):
    e = randn(D_OUT, seed=9)
    T = cubic_part(layer, e)
    index = torch.tensor(list(itertools.product(range(D), repeat=3)))
    assert_near(layer.entries(torch.eye(D, dtype=torch.double), index, e), T.flatten())
    v = randn(D, seed=11)
    assert_near(layer.marginal(v, e), T @ v)
    parts = randn(3, D, seed=12)
    triples, values = layer.triples(parts, e)
    assert len(triples) == 10
    assert (values.abs().diff() <= 0).all()
    x = parts.sum(0)
    assert_near(values.sum(), torch.einsum("abc,a,b,c->", T, x, x, x))
    one = (triples == torch.tensor([0, 1, 1])).all(1)
    expected = 3 * torch.einsum("abc,a,b,c->", T, parts[0], parts[1], parts[1])
    assert_near(values[one], expected.view(1))


def test_the_local_form_is_the_layer_at_its_input():
    weights = InteractionTensor(randn(D, M, seed=1), randn(D, M, seed=2), randn(M, D_OUT, seed=3))
    layer, x, e = CubicTensor(weights, randn(M, 3, seed=7)), randn(1, D, seed=8), randn(D_OUT, seed=9)
    _, second, third = layer.orders(x, e)
    assert_near(layer.local(x, e)(x), second + third)
    several = randn(7, D, seed=13)
    mean = torch.stack([layer.local(row.unsqueeze(0), e).to_dense() for row in several]).mean(0)
    assert_near(layer.local(several, e).to_dense(), mean)


def test_other_numbers_of_coefficients_are_refused(layer):
    with refused(ValueError, r"coefficients must be three for each of d_mlp=6 neurons, got \(6, 2\)"):
        CubicTensor(layer.weights, randn(M, 2))


def test_too_many_triples_are_refused(layer):
    with refused(ValueError, "parts must make at most 20,000,000 triples, got 22,[0-9]{3},[0-9]{3} of 510 parts"):
        layer.triples(randn(510, D), randn(D_OUT))


def test_triples_are_the_same_in_parts(layer, monkeypatch):
    from bilinear_circuits.algebra import cubic

    parts, e = randn(5, D, seed=3), randn(D_OUT, seed=4)
    whole = layer.triples(parts, e)
    monkeypatch.setattr(cubic, "_NUMBERS", 20)
    assert_near(layer.triples(parts, e)[1], whole[1])
