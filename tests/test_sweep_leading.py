import pytest
import torch
from helpers import assert_near, randn, refused

import bilinear_circuits.algebra.leading as leading_module
from bilinear_circuits.algebra.leading import leading_spectrum
from bilinear_circuits.algebra.matrix import InteractionMatrix
from bilinear_circuits.sweep import leading_spectra

D = 200  # enough for iterations
DTYPES = pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
TOLERANCE = {torch.float32: 1e-5, torch.float64: 1e-10}


def symmetric(*shape, seed=0):
    x = randn(*shape, seed=seed)
    return (x + x.mT) / 2


def with_eigenvalues(values, seed=0):
    """A symmetric matrix of these eigenvalues, between random directions."""
    values = torch.tensor(values, dtype=torch.float64)
    vectors = torch.linalg.qr(randn(len(values), len(values), seed=seed))[0]
    Q = (vectors * values) @ vectors.T
    return (Q + Q.T) / 2


def spread(*leading, size=D):
    """The leading eigenvalues given, and others from -1 to 1."""
    return with_eigenvalues([*leading, *torch.linspace(-1, 1, size - len(leading)).tolist()])


def check(found, Q, k, tolerance=None):
    """Values are the k of largest magnitude, vectors are orthonormal, and residuals are what they are said to be."""
    Q, tolerance = Q.double(), TOLERANCE[Q.dtype] if tolerance is None else tolerance
    n, d, _ = Q.shape
    every = torch.linalg.eigvalsh(Q)
    expected = every.abs().sort(descending=True).values[:, :k]
    values, vectors = found.spectrum.eigenvalues.double(), found.spectrum.eigenvectors.double()
    largest = expected[:, :1].clamp_min(torch.finfo(torch.float64).tiny)
    assert values.shape == (n, k)
    assert vectors.shape == (n, d, k)
    assert_near(values.abs() / largest, expected / largest, tolerance)
    # With their signs, where another eigenvalue has the same magnitude too.
    assert ((values.unsqueeze(2) - every.unsqueeze(1)).abs().amin(2) <= tolerance * largest).all()
    assert_near(vectors.mT @ vectors, torch.eye(k).expand(n, k, k), 1e-5)
    residuals = (Q @ vectors - vectors * values.unsqueeze(1)).norm(dim=1)
    rounding = 40 * torch.finfo(found.residuals.dtype).eps
    assert ((residuals - found.residuals).abs() <= rounding * largest).all()
    assert_near(found.spectrum.frobenius_norm.double() / largest[:, 0], Q.flatten(1).norm(dim=1) / largest[:, 0], 1e-5)


def kinds():
    """Symmetric matrices of many kinds, by name, and how many eigenpairs are asked of each."""
    low, signs = randn(D, 40, seed=1), randn(40, seed=2)
    block = symmetric(50, 50, seed=3)
    one_off = torch.eye(D, dtype=torch.float64)
    one_off[3, 3] = -2
    return {
        "random": (symmetric(D, D, seed=9), 4),
        "random, many": (symmetric(D, D, seed=8), 20),
        "rank 40": ((low * signs) @ low.T, 5),
        "rank 2 of opposite signs": (with_eigenvalues([2.0, -2.0] + [0.0] * (D - 2)), 4),
        "zero": (torch.zeros(D, D, dtype=torch.float64), 3),
        "identity": (torch.eye(D, dtype=torch.float64), 4),
        "identity but one": (one_off, 3),
        "projector": (with_eigenvalues([1.0] * 7 + [-1.0] * 3 + [0.0] * (D - 10)), 8),
        "twice the largest": (spread(3, 3), 2),
        "five times the largest": (spread(1.5, 1.5, 1.5, 1.5, 1.5), 4),
        "pairs of opposite signs": (spread(3, -3, 2, -2), 4),
        "falling by halves": (with_eigenvalues([(-0.5) ** i for i in range(D)]), 6),
        "all negative": (-with_eigenvalues([1.0 + i / D for i in range(D)]), 4),
        "large against its bulk": (spread(1e6), 3),
        "diagonal": (torch.diag(torch.linspace(-1, 0.9, D).double()), 3),
        "two blocks": (torch.block_diag(symmetric(120, 120, seed=5), 0.5 * symmetric(80, 80, seed=6)), 4),
        "k-th and next nearly tie": (spread(2, -1.5, 1.2, 1.2 - 1e-6), 3),
        "k-th and next nearly tie by magnitude": (spread(2, -1.5, 1.2, -1.2 + 1e-9), 3),
        "k-th and next tie": (spread(2, -1.5, 1.2, -1.2), 3),
        "equal blocks": (torch.block_diag(block, block, block, block), 4),
    }


NAMES = list(kinds())


@pytest.mark.parametrize("name", NAMES)
def test_leading_values_in_float64_agree_with_a_full_decomposition(name):
    Q, k = kinds()[name]
    check(leading_spectra(Q.unsqueeze(0), k, tolerance=1e-11), Q.unsqueeze(0), k)


@pytest.mark.parametrize("name", [name for name in kinds() if name != "equal blocks"])
def test_leading_values_in_float32_agree_with_a_full_decomposition(name):
    Q, k = kinds()[name]
    Q = Q.float().unsqueeze(0)
    check(leading_spectra(Q, k), Q, k)


def test_leading_values_of_ten_equal_blocks_in_float32():
    Q = torch.block_diag(*[symmetric(20, 20, seed=3)] * 10).float().unsqueeze(0)
    check(leading_spectra(Q, 8), Q, 8)


@DTYPES
def test_leading_values_of_many_matrices_whose_eigenvalues_repeat(dtype):
    """Copies of random blocks, between random directions: no eigenvalue is far from the next."""
    for copies, size in ((2, 128), (4, 64)):
        vectors = torch.linalg.qr(randn(256, 256, seed=copies))[0]
        blocks = [torch.block_diag(*[symmetric(size, size, seed=seed)] * copies) for seed in range(12)]
        Q = torch.stack([vectors @ block @ vectors.T for block in blocks])
        Q = ((Q + Q.mT) / 2).to(dtype)
        check(leading_spectra(Q, 4, 1e-6 if dtype == torch.float32 else 1e-11), Q, 4)


@pytest.mark.parametrize("scale", [1e-12, 1e12])
def test_the_scale_of_a_matrix_does_not_matter(scale):
    Q = scale * symmetric(2, D, D).float()
    found = leading_spectra(Q, 4)
    check(found, Q, 4)
    assert found.iterated.all()


@pytest.mark.parametrize("scale", [1e-25, 1e25])
def test_very_small_and_very_large_matrices_have_their_values(scale):
    Q = symmetric(2, D, D).float()
    found = leading_spectra(scale * Q, 4).spectrum.eigenvalues
    assert_near(found / scale, leading_spectra(Q, 4).spectrum.eigenvalues)


@DTYPES
@pytest.mark.parametrize("d", [192, 257])
def test_values_at_the_edge_of_the_bulk_of_many_random_matrices(d, dtype):
    """A semicircle: eigenvalues are densest where the leading ones are told from the rest."""
    Q = symmetric(24, d, d, seed=d).to(dtype)
    found = leading_spectra(Q, 4)
    check(found, Q, 4, 1e-5 if dtype == torch.float32 else 1e-6)
    assert found.iterated.all()


def test_the_tolerance_is_kept():
    Q, errors = symmetric(12, D, D), []
    exact = torch.linalg.eigvalsh(Q).abs().sort(descending=True).values[:, :4]
    for tolerance in (1e-2, 1e-5, 1e-12):
        values = leading_spectra(Q, 4, tolerance=tolerance).spectrum.eigenvalues.abs()
        errors.append(((values - exact).abs() / exact[:, :1]).max().item())
        assert errors[-1] <= tolerance
    assert errors[0] > errors[2]


def test_opposite_signs_are_kept():
    Q = torch.stack([spread(3.0, -2.0, 1.5), -spread(3.0, -2.0, 1.5)]).float()
    found = leading_spectra(Q, 3).spectrum.eigenvalues
    assert_near(found, torch.tensor([[3.0, -2.0, 1.5], [-3.0, 2.0, -1.5]]))


def test_vectors_of_separate_values_are_those_of_a_full_decomposition():
    Q = spread(3.0, -2.5, 2.0).unsqueeze(0)
    found, full = (leading_spectra(Q, 3, 1e-12, iterate=iterate).spectrum for iterate in (True, False))
    assert_near(found.truncate(2).to_dense(), full.truncate(2).to_dense(), 1e-5)
    assert_near(found.to_dense(), full.to_dense(), 1e-5)


def test_matrices_keep_their_places_and_only_hard_ones_are_decomposed_in_full(monkeypatch):
    monkeypatch.setattr(leading_module, "_STEPS", (3, 6))
    easy, hard = spread(30, -20, 10), symmetric(D, D)
    Q = torch.stack([hard, easy, 2 * easy, -hard, easy])
    found = leading_spectra(Q, 2)
    assert found.iterated.tolist() == [False, True, True, False, True]
    check(found, Q, 2, 1e-6)


def test_matrices_done_at_different_steps_keep_their_places():
    Q = torch.stack([scale * one for scale in (1, -3) for one in (symmetric(D, D), spread(30, -20, 10), spread(1.01))])
    found = leading_spectra(Q, 4, tolerance=1e-11)
    assert found.iterated.any()
    check(found, Q, 4)


def test_small_matrices_and_many_pairs_are_decomposed_in_full():
    for d, k in ((50, 3), (D, 60), (D, D)):
        Q = symmetric(2, d, d)
        found = leading_spectra(Q, k)
        assert not found.iterated.any()
        check(found, Q, k)


def test_iterations_can_be_had_or_not():
    for d, iterate in ((50, True), (D, False)):
        Q = symmetric(3, d, d)
        found = leading_spectra(Q, 4, tolerance=1e-11, iterate=iterate)
        assert found.iterated.tolist() == [iterate] * 3
        check(found, Q, 4)


@DTYPES
@pytest.mark.parametrize("d", [1, 2, 3, 7, 41])
def test_iterations_on_small_matrices(d, dtype):
    Q = torch.stack([*symmetric(3, d, d), torch.zeros(d, d), torch.eye(d), torch.ones(d, d)]).to(dtype)
    for k in {1, (d + 1) // 2, d}:
        check(leading_spectra(Q, k, tolerance=1e-11, iterate=True), Q, k)


@pytest.mark.parametrize("n", [1, 4, 5])
def test_matrices_iterated_a_few_at_a_time_give_the_same(n, monkeypatch):
    Q = symmetric(9, D, D)
    whole = leading_spectra(Q, 3)
    monkeypatch.setattr(leading_module, "_CACHE_BYTES", n * D * D * 8)
    found = leading_spectra(Q, 3)
    assert_near(found.spectrum.eigenvalues, whole.spectrum.eigenvalues)
    assert found.iterated.tolist() == whole.iterated.tolist() == [True] * 9


def test_the_first_vector_is_random_and_does_not_matter():
    Q = symmetric(3, D, D)
    first, again, other = (leading_spectra(Q, 3, 1e-11, seed) for seed in (1, 1, 2))
    assert torch.equal(first.spectrum.eigenvectors, again.spectrum.eigenvectors)
    assert not torch.equal(first.spectrum.eigenvectors, other.spectrum.eigenvectors)
    assert_near(other.spectrum.eigenvalues, first.spectrum.eigenvalues)


def test_residuals_show_what_a_tolerance_left():
    Q = symmetric(4, D, D)
    rough, fine = (leading_spectra(Q, 3, tolerance) for tolerance in (1e-2, 1e-12))
    check(rough, Q, 3, 1e-2)
    assert (rough.residuals > 1e-4).any()
    assert (fine.residuals < 1e-4).all()


def test_no_matrices_have_no_spectra():
    found = leading_spectra(torch.zeros(0, D, D), 3)
    assert found.spectrum.eigenvectors.shape == (0, D, 3)
    assert found.residuals.shape == (0, 3)


@pytest.mark.parametrize("rank", [0, 2])
def test_a_factored_matrix_of_low_rank_has_its_pairs(rank):
    left, right = torch.randn(2, 100, 3, generator=torch.Generator().manual_seed(0), dtype=torch.double)
    matrix = InteractionMatrix(left, right, torch.tensor([1.0, -2.0, 3.0], dtype=torch.double) * (rank > 0))
    found = leading_spectrum(matrix, 4)
    dense = torch.linalg.eigvalsh(matrix.to_dense())
    expected = dense[dense.abs().argsort(descending=True)][:4]
    torch.testing.assert_close(found.eigenvalues, expected, rtol=1e-5, atol=1e-10)
    vectors = found.eigenvectors
    torch.testing.assert_close(vectors.T @ vectors, torch.eye(4, dtype=torch.double), rtol=1e-8, atol=1e-8)


@pytest.mark.parametrize("k", [0, -1, 8])
def test_a_number_of_pairs_out_of_range_is_refused(k):
    with refused(ValueError, f"k must be between 1 and d=7, got {k}"):
        leading_spectra(symmetric(2, 7, 7), k)
