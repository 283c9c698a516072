"""Degrees in the embeddings and integrated gradients, against fits and sums of many steps."""

import numpy as np
import pytest
import torch
from helpers import refused
from llamas import random_dictionary, random_run, relative

from bilinear_circuits.paths.degrees import frozen_pass
from bilinear_circuits.paths.nodes import Node
from bilinear_circuits.paths.target import readout
from bilinear_circuits.utilities.feature import Feature

KINDS = ("bilinear", "silu", "biased", "ungated", "gemma2")


def value_at(run, graph, scales):
    """The frozen target with embeddings times each scale."""
    asked = readout(run.frozen, graph.target)
    x = frozen_pass(run.frozen, scales.reshape(-1, 1, 1) * run.frozen.embedded)[2]
    return x[:, graph.target.position] @ asked.direction + asked.constant


@pytest.mark.parametrize("kind", KINDS)
def test_degrees_are_the_coefficients_of_a_fitted_polynomial(kind):
    run = random_run(kind, n_pos=4)
    graph, found = run.graph((7, 12)), run.degrees((7, 12))
    degree = 1 if kind == "ungated" else 4
    scales = torch.linspace(-1, 1, 40, dtype=torch.float64)
    expected = np.polynomial.polynomial.polyfit(scales, value_at(run, graph, scales), degree)
    assert relative(found.value, expected) < 1e-9
    assert found.value.sum().item() == pytest.approx(graph.total, rel=1e-10)
    assert abs(found.rest) < 1e-10 * abs(graph.total)
    assert relative(found.mlps.sum(-1), graph.flow.mlps) < 1e-10
    assert relative(found.heads.sum(-1), graph.flow.heads.sum(-1)) < 1e-10


@pytest.mark.parametrize("kind", KINDS)
def test_lower_degrees_alone_are_the_same(kind):
    run = random_run(kind, n_pos=4, n_layers=3)
    whole, some = run.degrees(7), run.degrees(7, max_degree=3)
    n = min(4, len(whole.value))
    assert relative(some.value, whole.value[:n]) < 1e-10
    assert relative(some.mlps, whole.mlps[..., :n]) < 1e-10
    assert relative(some.heads, whole.heads[..., :n]) < 1e-10
    assert some.rest == pytest.approx(whole.value[n:].sum().item(), abs=1e-10)


def test_degrees_of_a_feature_end_at_its_layer():
    run = random_run("silu", n_pos=3, n_layers=3, dictionaries={1: random_dictionary(1)})
    found = run.degrees(Feature(1, 3))
    assert len(found.value) == 5
    assert found.value.sum().item() == pytest.approx(found.total)


@pytest.mark.parametrize("kind", KINDS)
def test_integrated_gradients_are_those_of_many_steps(kind):
    run = random_run(kind, n_pos=4)
    graph, found = run.graph(7), run.integrated_gradients(7)
    n = 4000
    steps = ((torch.arange(n, dtype=torch.float64) + 0.5) / n).reshape(-1, 1, 1)
    rows = (steps * run.frozen.embedded).requires_grad_()
    asked = readout(run.frozen, graph.target)
    (frozen_pass(run.frozen, rows)[2][:, -1] @ asked.direction).sum().backward()
    expected = (rows.grad.mean(0) * run.frozen.embedded).sum(-1)
    assert found.exact
    assert found.n_nodes == (1 if kind == "ungated" else 2)
    assert relative(found.value, expected) < 1e-5
    assert found.value.sum().item() + found.baseline == pytest.approx(graph.total, rel=1e-10)


def test_a_deep_model_is_refused_or_asked_for_less(monkeypatch):
    from bilinear_circuits.paths import degrees

    run = random_run(n_pos=3, n_layers=3)
    monkeypatch.setattr(degrees, "MOST_RUNS", 4)
    with refused(ValueError, r"must be below 4 .*, got 8: it doubles .* Pass max_degree=8"):
        run.degrees(7)
    with refused(ValueError, "fewer than 4 nodes, got 4.*n_nodes=64"):
        run.integrated_gradients(7)
    with refused(ValueError, "max_degree must be at least 1"):
        run.degrees(7, max_degree=0)
    assert not run.integrated_gradients(7, n_nodes=2).exact
    assert run.degrees(7, max_degree=2).value.shape == (3,)
    assert run.graph(7).value(Node("mlp", 2, 2)) == pytest.approx(run.degrees(7, max_degree=8).mlps[2, 2].sum().item())
