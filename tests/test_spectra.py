import math

import pytest
import torch
from helpers import assert_near, check_spectrum, randn, refused

from bilinear_circuits.algebra.spectra import Spectrum


def symmetric(*shape, seed=0, dtype=torch.float64):
    square = randn(*shape, shape[-1], seed=seed)
    return (square + square.mT).to(dtype)


def goe(d, seed=0):
    return symmetric(d, seed=seed) / math.sqrt(2)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("shape", [(6,), (4, 6), (2, 3, 6)])
@pytest.mark.parametrize("k", [0, 1, 5, 6])
def test_of_dense_holds_the_leading_eigenpairs(dtype, shape, k):
    dense = symmetric(*shape, dtype=dtype)
    check_spectrum(Spectrum.of_dense(dense, k), dense, k)


def test_signs_are_kept_and_magnitudes_fall():
    spectrum = Spectrum.of_dense(torch.diag(torch.tensor([1.0, -3.0, 0.5, 2.0])))
    torch.testing.assert_close(spectrum.eigenvalues, torch.tensor([-3.0, 2.0, 1.0, 0.5]))
    torch.testing.assert_close(spectrum.eigenvectors.abs(), torch.eye(4)[[1, 3, 0, 2]].T)


@pytest.mark.parametrize("sign", [1, -1])
def test_definite_matrix_has_eigenvalues_of_one_sign(sign):
    root = randn(5, 5)
    eigenvalues = Spectrum.of_dense(sign * root @ root.T).eigenvalues
    assert (sign * eigenvalues > 0).all()
    assert_near(eigenvalues.sum(), sign * root.square().sum())


def test_rank_one_truncation_beats_every_direction_of_a_grid():
    dense = torch.tensor([[1.0, 2.0], [2.0, -1.5]], dtype=torch.float64)
    angles = torch.linspace(0, math.pi, 20_001, dtype=torch.float64)
    vectors = torch.stack([angles.cos(), angles.sin()])
    best_coefficient = torch.einsum("in,ij,jn->n", vectors, dense, vectors)
    outer = torch.einsum("n,in,jn->nij", best_coefficient, vectors, vectors)
    brute_force = (dense - outer).square().sum((1, 2)).min()
    truncated = (dense - Spectrum.of_dense(dense).truncate(1).to_dense()).square().sum()
    assert truncated <= brute_force + 1e-12
    torch.testing.assert_close(truncated, brute_force, rtol=1e-5, atol=0)


def test_truncation_keeps_the_frobenius_norm_of_the_whole():
    dense = symmetric(6)
    truncated = Spectrum.of_dense(dense).truncate(2)
    assert len(truncated) == 2
    assert truncated.dim == 6
    assert_near(truncated.frobenius_norm, dense.square().sum().sqrt())
    assert_near(truncated.to_dense(), Spectrum.of_dense(dense, 2).to_dense())


def test_truncation_to_a_negative_number_is_refused():
    with refused(ValueError, match="k must be at least 0, got -1"):
        Spectrum.of_dense(symmetric(3)).truncate(-1)


def test_call_evaluates_the_quadratic_form():
    dense, x = symmetric(6), randn(3, 4, 6, seed=1)
    assert_near(Spectrum.of_dense(dense)(x), torch.einsum("...i,ij,...j->...", x, dense, x))
    assert_near(Spectrum.of_dense(dense, 2)(x[0, 0]), x[0, 0] @ Spectrum.of_dense(dense, 2).to_dense() @ x[0, 0])


@pytest.mark.parametrize("index", [1, slice(1, 3), torch.tensor([2, 0])])
def test_indexing_selects_from_the_batch(index):
    dense = symmetric(3, 5)
    selected = Spectrum.of_dense(dense)[index]
    assert_near(selected.to_dense(), dense[index])
    assert_near(selected.frobenius_norm, torch.linalg.matrix_norm(dense[index]))


def test_eigenvectors_must_match_the_eigenvalues():
    with refused(ValueError, match=r"one column per eigenvalue, 2, got \(5, 3\).*Eigenvectors are columns"):
        Spectrum(torch.ones(2), torch.ones(5, 3), torch.tensor(1.0))


@pytest.mark.parametrize(
    ("eigenvalues", "expected"),
    [([1.0, 0.0, 0.0], 1.0), ([2.0, -2.0, 0.0], 2.0), ([1.0, 1.0, -1.0], 3.0), ([0.5, 0.25, -0.25], 2**1.5)],
)
def test_effective_rank_of_known_spectra(eigenvalues, expected):
    spectrum = Spectrum.of_dense(torch.tensor(eigenvalues, dtype=torch.float64).diag())
    assert_near(spectrum.effective_rank(), expected)


def test_effective_rank_does_not_depend_on_scale():
    dense = symmetric(2, 6)
    assert_near(Spectrum.of_dense(1e-3 * dense).effective_rank(), Spectrum.of_dense(dense).effective_rank())


def test_semicircle_edge_is_that_of_the_entries():
    spectrum = Spectrum.of_dense(goe(300))
    torch.testing.assert_close(spectrum.semicircle_edge().item(), 2 * math.sqrt(300), rtol=0.02, atol=0)
    torch.testing.assert_close(
        spectrum.eigenvalues[0].abs().item(), spectrum.semicircle_edge().item(), rtol=0.05, atol=0
    )


@pytest.mark.parametrize("sign", [1, -1])
def test_a_planted_spike_is_the_only_outlier_of_a_random_matrix(sign):
    noise = torch.stack([goe(300, seed) for seed in range(3)])
    spike = torch.nn.functional.normalize(randn(300, seed=9), dim=0)
    height = 3 * 2 * math.sqrt(300)
    assert (Spectrum.of_dense(noise).outliers() <= 1).all()
    assert Spectrum.of_dense(noise).outliers().sum() <= 1
    planted = Spectrum.of_dense(noise + sign * height * spike.outer(spike))
    assert planted.outliers().tolist() == [1, 1, 1]
    assert (planted.eigenvalues[:, 0].sign() == sign).all()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_is_decomposed_in_float32(dtype):
    dense, x = symmetric(4, dtype=dtype), randn(3, 4, dtype=dtype)
    spectrum = Spectrum.of_dense(dense)
    assert {one.dtype for one in vars(spectrum).values()} == {torch.float32}
    assert_near(spectrum.to_dense().double(), dense.double(), tolerance=1e-5)
    assert_near(spectrum(x).double(), ((x.double() @ dense.double()) * x.double()).sum(1), tolerance=1e-5)


def test_two_arguments_are_enough_and_are_put_in_order():
    vectors = torch.eye(3, dtype=torch.float64)
    spectrum = Spectrum(torch.tensor([1.0, -3.0, 2.0], dtype=torch.float64), vectors)
    assert spectrum.eigenvalues.tolist() == [-3, 2, 1]
    torch.testing.assert_close(spectrum.to_dense(), torch.diag(torch.tensor([1.0, -3.0, 2.0], dtype=torch.float64)))
    assert spectrum.frobenius_norm.item() == pytest.approx(14**0.5)


def test_outlier_ratio_is_the_smaller_leading_eigenvalue_over_the_edge():
    values = torch.tensor([[2.0, -1.5, 0.5, 0.0], [3.0, 1.0, 0.5, 0.0], [0.0, 0.0, 0.0, 0.0]])
    ratio = Spectrum(values, torch.eye(4).expand(3, 4, 4)).outlier_ratio()
    # ||Q||_F^2 = 4 + 2.25 + 0.25 and d = 4, so that the edge is sqrt(6.5); one sign is missing, then both.
    torch.testing.assert_close(ratio, torch.tensor([1.5 / 6.5**0.5, 0.0, 0.0]))
