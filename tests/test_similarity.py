"""Gaussian similarities against dense formulas, Monte Carlo and what may not change them."""

import math

import pytest
import torch
from helpers import D_IN, D_OUT, assert_near, randn, random_matrix, random_tensor, refused

from bilinear_circuits import InteractionMatrix, InteractionTensor, layer_similarity, quadratic_form_similarity
from bilinear_circuits.algebra.similarity import gaussian_product
from bilinear_circuits.algebra.tensor import QuadraticForm

BIAS_SETS = pytest.mark.parametrize("biases", [(), ("b_gate", "b_in", "b_out"), ("b_in",), ("b_out",)], ids=len)
KINDS = pytest.mark.parametrize("kind", ["cosine", "correlation"])
N_SAMPLES = 400_000


def covariance(seed=0, d=D_IN):
    factor = randn(d, d, seed=seed)
    return factor @ factor.T / d


def forms(seed=0, batch=(), d_mlp=7):
    """A batch of forms with linear and constant parts."""
    matrix = random_matrix(seed, batch, d_mlp=d_mlp)
    return QuadraticForm(
        matrix, randn(*batch, D_IN, seed=300 + seed), randn(math.prod(batch), seed=400 + seed).reshape(batch)
    )


def samples(sigma, mean, n=N_SAMPLES, seed=9):
    return randn(n, D_IN, seed=seed) @ torch.linalg.cholesky(sigma).T + mean


def dense_product(p, q, sigma, mean, centred):
    """E[p q] or Cov[p, q] of two single forms by dense matrices, with the mean moved into the forms."""
    parts = []
    for form in (p, q):
        Q = form.matrix.to_dense()
        parts.append((Q, form.linear + 2 * Q @ mean, form.constant + form.linear @ mean + mean @ Q @ mean))
    (Q, linear, c), (R, linear_r, c_r) = parts
    value = 2 * torch.trace(Q @ sigma @ R @ sigma) + linear @ sigma @ linear_r
    return value if centred else value + (torch.trace(Q @ sigma) + c) * (torch.trace(R @ sigma) + c_r)


@pytest.mark.parametrize("centred", [False, True])
def test_products_equal_the_dense_formula(centred):
    first, second, sigma, mean = forms(1), forms(2, d_mlp=4), covariance(), randn(D_IN, seed=8)
    expected = dense_product(first, second, sigma, mean, centred)
    assert_near(gaussian_product(first, second, sigma, mean, centred=centred), expected)
    plain = dense_product(first, second, torch.eye(D_IN).double(), torch.zeros(D_IN).double(), centred)
    assert_near(gaussian_product(first, second, centred=centred), plain)


def test_products_equal_monte_carlo_within_four_standard_errors():
    first, second, sigma, mean = forms(1), forms(2, d_mlp=4), covariance(), randn(D_IN, seed=8)
    x = samples(sigma, mean)
    p, q = first(x), second(x)
    for values, centred in ((p * q, False), ((p - p.mean()) * (q - q.mean()), True)):
        error = (values.std() / math.sqrt(N_SAMPLES)).item()
        got = gaussian_product(first, second, sigma, mean, centred=centred).item()
        assert error < 0.02 * p.std() * q.std()
        assert abs(got - values.mean().item()) < 4 * error


@KINDS
def test_all_pairs_of_two_batches_equal_the_pairs(kind):
    first, second, sigma, mean = forms(1, (2, 3)), forms(2, (4,), d_mlp=4), covariance(), randn(D_IN, seed=8)
    table = quadratic_form_similarity(first, second, sigma, mean, kind)
    assert table.shape == (2, 3, 4)
    centred = kind == "correlation"
    for i in range(2):
        for j in range(3):
            for k in range(4):
                p = QuadraticForm(first.matrix[i][j], first.linear[i, j], first.constant[i, j])
                q = QuadraticForm(second.matrix[k], second.linear[k], second.constant[k])
                pq, pp, qq = (dense_product(a, b, sigma, mean, centred) for a, b in ((p, q), (p, p), (q, q)))
                assert_near(table[i, j, k], pq / (pp * qq).sqrt())
                assert_near(quadratic_form_similarity(p, q, sigma, mean, kind), table[i, j, k])


def test_the_correlation_of_matrices_is_the_frobenius_cosine():
    first, second = random_matrix(1, (3,)), random_matrix(2, d_mlp=4)
    expected = first.inner(second) / (first.frobenius_norm() * second.frobenius_norm())
    assert_near(quadratic_form_similarity(first, second, kind="correlation"), expected)
    traces = first.trace() * second.trace()
    sizes = [2 * one.inner(one) + one.trace().square() for one in (first, second)]
    cosine = (2 * first.inner(second) + traces) / (sizes[0] * sizes[1]).sqrt()
    assert_near(quadratic_form_similarity(first, second), cosine)


@KINDS
def test_a_form_is_like_itself_and_opposite_to_its_negative(kind):
    first = forms(1)
    negative = QuadraticForm(
        InteractionMatrix(first.matrix.left, first.matrix.right, -first.matrix.weights), -first.linear, -first.constant
    )
    for sigma, mean in ((None, None), (covariance(), randn(D_IN, seed=8))):
        assert_near(quadratic_form_similarity(first, first, sigma, mean, kind), 1.0)
        assert_near(quadratic_form_similarity(first, negative, sigma, mean, kind), -1.0)


@KINDS
def test_forms_do_not_change_with_gauge_order_scale_or_split_neurons(kind):
    first, second, sigma = forms(1, (3,)), forms(2), covariance()
    expected = quadratic_form_similarity(first, second, sigma, kind=kind)
    left, right, weights = first.matrix.left, first.matrix.right, first.matrix.weights
    a, b, order = randn(7, seed=5).exp(), -randn(7, seed=6).exp(), torch.randperm(7)
    for matrix in (
        InteractionMatrix(left * a, right * b, weights / (a * b)),
        InteractionMatrix(right, left, weights),
        InteractionMatrix(left[:, order], right[:, order], weights[:, order]),
        InteractionMatrix(
            torch.cat([left, left], 1), torch.cat([right, right], 1), torch.cat([weights, weights], 1) / 2
        ),
    ):
        same = QuadraticForm(matrix, first.linear, first.constant)
        assert_near(quadratic_form_similarity(same, second, sigma, kind=kind), expected)
        assert_near(quadratic_form_similarity(second, same, sigma, kind=kind), expected)
    scaled = QuadraticForm(InteractionMatrix(left, right, 3 * weights), 3 * first.linear, 3 * first.constant)
    assert_near(quadratic_form_similarity(scaled, second, sigma, kind=kind), expected)


def test_zero_and_constant_forms_have_no_similarity():
    zero = InteractionMatrix(randn(D_IN, 7), randn(D_IN, 7), torch.zeros(7, dtype=torch.float64))
    constant = QuadraticForm(zero, torch.zeros(D_IN, dtype=torch.float64), torch.tensor(2.0, dtype=torch.float64))
    other = forms(1)
    assert quadratic_form_similarity(zero, other).isnan()
    assert quadratic_form_similarity(constant, other, kind="correlation").isnan()
    assert_near(quadratic_form_similarity(constant, constant), 1.0)


def test_a_covariance_without_full_rank_reads_only_the_directions_that_vary():
    first, second = random_matrix(1), random_matrix(2)
    direction = randn(D_IN, seed=3)
    sigma = torch.outer(direction, direction)
    values = first(direction), second(direction)  # p = values z^2 for a single z, and E[z^4] = 3
    assert_near(gaussian_product(first, second, sigma), 3 * values[0] * values[1])
    sign = values[0].sign() * values[1].sign()
    assert_near(quadratic_form_similarity(first, second, sigma, kind="correlation"), sign)


def layer_moments(first, second, sigma, mean, centred):
    """Sums over outputs of dense products of single outputs."""
    eye = torch.eye(D_OUT, dtype=torch.float64)
    pairs = [(one.quadratic_form(u), other.quadratic_form(u)) for u in eye for one, other in [(first, second)]]
    return sum(dense_product(p, q, sigma, mean, centred) for p, q in pairs)


@BIAS_SETS
@KINDS
def test_layers_equal_the_dense_formula(biases, kind):
    first, second = random_tensor(1, biases), random_tensor(2, ("b_gate",), d_mlp=4)
    eye, zero = torch.eye(D_IN).double(), torch.zeros(D_IN).double()
    for sigma, mean in ((None, None), (covariance(), None), (covariance(), randn(D_IN, seed=8))):
        full = eye if sigma is None else sigma, zero if mean is None else mean
        products = [
            layer_moments(a, b, *full, kind == "correlation")
            for a, b in ((first, second), (first, first), (second, second))
        ]
        expected = products[0] / (products[1] * products[2]).sqrt()
        assert layer_similarity(first, second, sigma, mean, kind) == pytest.approx(expected.item(), abs=1e-10)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_layers_equal_monte_carlo_within_four_standard_errors(dtype):
    first = random_tensor(1, ("b_gate", "b_in", "b_out"), dtype=dtype)
    second = random_tensor(2, ("b_in",), d_mlp=4, dtype=dtype)
    sigma, mean = covariance(), randn(D_IN, seed=8)
    x = samples(sigma, mean)
    f, g = first.to(torch.float64)(x), second.to(torch.float64)(x)
    product, sizes = (f * g).sum(1), [(one * one).sum(1) for one in (f, g)]
    scale = (sizes[0].mean() * sizes[1].mean()).sqrt()
    cosine = (product.mean() / scale).item()
    # Standard error of the ratio, by the delta method.
    influence = product / scale - cosine / 2 * (sizes[0] / sizes[0].mean() + sizes[1] / sizes[1].mean())
    error = (influence.std() / math.sqrt(N_SAMPLES)).item()
    assert error < 0.01
    assert abs(layer_similarity(first, second, sigma.to(dtype), mean.to(dtype)) - cosine) < 4 * error


@BIAS_SETS
def test_the_augmented_tensor_gives_the_same_moment(biases):
    """2 <Q, R> + tr Q tr R of the augmented matrices counts the square of a constant three times, instead of once."""
    first, second = random_tensor(1, biases), random_tensor(2, ("b_gate", "b_out"), d_mlp=4)
    u = randn(D_OUT, seed=4)
    p, q = first.quadratic_form(u), second.quadratic_form(u)
    one, other = (layer.augmented().matrix(u) for layer in (first, second))
    expected = 2 * one.inner(other) + one.trace() * other.trace() - 2 * p.constant * q.constant
    assert_near(gaussian_product(p, q), expected)


def test_layers_do_not_change_with_gauge_order_or_the_swap():
    layer = random_tensor(1, ("b_gate", "b_in", "b_out"))
    other, sigma = random_tensor(2, d_mlp=4), covariance()
    a, b, order = randn(7, seed=5).exp(), -randn(7, seed=6).exp(), torch.randperm(7)
    scaled = InteractionTensor(
        layer.W_gate * a,
        layer.W_in * b,
        layer.W_out / (a * b).unsqueeze(1),
        layer.b_gate * a,
        layer.b_in * b,
        layer.b_out,
    )
    swapped = InteractionTensor(layer.W_in, layer.W_gate, layer.W_out, layer.b_in, layer.b_gate, layer.b_out)
    moved = InteractionTensor(
        layer.W_gate[:, order],
        layer.W_in[:, order],
        layer.W_out[order],
        layer.b_gate[order],
        layer.b_in[order],
        layer.b_out,
    )
    expected = layer_similarity(layer, other, sigma)
    for same in (scaled, swapped, moved):
        assert layer_similarity(same, other, sigma) == pytest.approx(expected, abs=1e-10)
        assert layer_similarity(same, layer, sigma) == pytest.approx(1, abs=1e-10)
    negative = InteractionTensor(layer.W_gate, layer.W_in, -layer.W_out, layer.b_gate, layer.b_in, -layer.b_out)
    assert layer_similarity(negative, layer, sigma) == pytest.approx(-1, abs=1e-10)


def test_the_dtype_is_that_of_the_first():
    first = random_matrix(1, (2,), dtype=torch.float32)
    table = quadratic_form_similarity(first, first)
    assert table.dtype == torch.float32
    assert_near(table.diagonal(), torch.ones(2))


BAD = {
    "side": (lambda: (random_matrix(1, d=6),), r"second must read the space of first, d=5, got d=6"),
    "shape": (lambda: (random_matrix(1), torch.eye(4)), r"covariance must be \(5, 5\) and finite, got shape \(4, 4\)"),
    "nan": (lambda: (random_matrix(1), torch.full((5, 5), torch.nan)), r"covariance must be \(5, 5\) and finite"),
    "skew": (lambda: (random_matrix(1), randn(5, 5)), "covariance must be symmetric"),
    "sign": (lambda: (random_matrix(1), -torch.eye(5)), "covariance must have no negative eigenvalue, got -1"),
    "mean": (lambda: (random_matrix(1), None, torch.zeros(4)), r"mean must have d=5 finite entries, got shape \(4,\)"),
    "kind": (lambda: (random_matrix(1), None, None, "best"), "kind must be one of cosine, correlation, got best"),
}


@pytest.mark.parametrize("name", BAD)
def test_what_does_not_fit_is_refused(name):
    arguments, message = BAD[name]
    with refused(ValueError, message):
        quadratic_form_similarity(random_matrix(0), *arguments())


def test_layers_of_other_sizes_are_refused():
    with refused(ValueError, r"second must have the d_in and d_out of first, \(5, 3\), got \(5, 4\)"):
        layer_similarity(random_tensor(), random_tensor(d_out=4))
