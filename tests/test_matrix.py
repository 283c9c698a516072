import dense as oracle
import pytest
import torch
from helpers import D_IN, D_MLP, assert_near, check_matrix, randn, random_matrix, refused

from bilinear_circuits.algebra.matrix import InteractionMatrix


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("kind", ["indefinite", "positive", "negative"])
@pytest.mark.parametrize("batch", [(), (4,), (2, 3)])
def test_every_operation_equals_the_dense_matrix(dtype, kind, batch):
    op = random_matrix(batch=batch, kind=kind, dtype=dtype)
    check_matrix(op, oracle.symmetric_matrix(op.left, op.right, op.weights))


@pytest.mark.parametrize("batch", [(), (3,)])
@pytest.mark.parametrize("kind", ["indefinite", "negative"])
def test_every_operation_where_the_factors_span_less_than_the_space(batch, kind):
    op = random_matrix(batch=batch, kind=kind, d=9, d_mlp=3)
    assert op.dim > 2 * op.left.shape[1]
    check_matrix(op, oracle.symmetric_matrix(op.left, op.right, op.weights))


@pytest.mark.parametrize("k", [0, 1, 5, 6, 7, 9, None])
def test_eigenpairs_of_a_thin_matrix_are_those_of_the_dense_one(k):
    op = random_matrix(d=9, d_mlp=3)
    whole = torch.linalg.eigvalsh(op.to_dense())
    expected = whole[whole.abs().argsort(descending=True)][:k]
    assert_near(op.eigh(k).eigenvalues, expected)


@pytest.mark.parametrize(("kind", "signs"), [("indefinite", {-1, 1}), ("positive", {1}), ("negative", {-1})])
def test_the_cases_have_the_signs_they_are_named_for(kind, signs):
    assert set(random_matrix(kind=kind).eigh().eigenvalues.sign().int().tolist()) == signs


def test_trace_is_the_sum_of_the_eigenvalues_and_norm_their_root_sum_square():
    op = random_matrix(batch=(4,))
    eigenvalues = op.eigh().eigenvalues
    assert_near(op.trace(), eigenvalues.sum(-1))
    assert_near(op.frobenius_norm(), eigenvalues.norm(dim=-1))


def test_swapping_the_factors_changes_nothing():
    op = random_matrix(batch=(2,))
    assert_near(InteractionMatrix(op.right, op.left, op.weights).to_dense(), op.to_dense())


def test_inner_product_broadcasts_over_batches():
    many, one = random_matrix(batch=(4,)), random_matrix(seed=3)
    expected = (many.to_dense() * one.to_dense()).sum((-1, -2))
    assert_near(many.inner(one), expected)
    assert_near(one.inner(many), expected)


def test_norm_of_a_matrix_that_cancels_is_zero():
    left, right = randn(D_IN, 1), randn(D_IN, 1, seed=1)
    op = InteractionMatrix(left.repeat(1, 2), right.repeat(1, 2), torch.tensor([1.0, -1.0], dtype=torch.float64))
    assert op.frobenius_norm() < 1e-6


def test_change_of_basis_reads_the_same_form():
    op, basis, z = random_matrix(batch=(2,)), randn(11, D_IN, seed=1), randn(3, 11, seed=2)
    assert_near(op.change_basis(basis)(z), op(z @ basis))
    assert_near(op.change_basis(basis).to_dense()[1], oracle.feature_matrix(op.to_dense()[1], basis))


def test_bfloat16_flows_through():
    op = random_matrix(batch=(2,), dtype=torch.bfloat16)
    x = randn(3, D_IN, dtype=torch.bfloat16)
    assert {result.dtype for result in (op.to_dense(), op(x), op @ x[0], op.trace())} == {torch.bfloat16}
    assert {op.frobenius_norm().dtype, op.eigh(2).eigenvalues.dtype} == {torch.float32}


def test_squares_of_float16_neither_overflow_nor_vanish():
    for scale in (2.0**-13, 2.0**7):
        op = random_matrix(dtype=torch.float16)
        op = InteractionMatrix(op.left * scale, op.right * scale, op.weights)
        exact = InteractionMatrix(op.left.double(), op.right.double(), op.weights.double())
        torch.testing.assert_close(op.eigh().eigenvalues.double(), exact.eigh().eigenvalues, rtol=1e-4, atol=1e-9)
        torch.testing.assert_close(op.frobenius_norm().double(), exact.frobenius_norm(), rtol=1e-5, atol=0)


def test_factors_of_different_shape_are_refused():
    with refused(ValueError, match=r"right must match left, \(d, d_mlp\)=\(5, 7\), got \(5, 6\)"):
        InteractionMatrix(randn(D_IN, D_MLP), randn(D_IN, 6), randn(D_MLP))


def test_weights_of_the_wrong_length_are_refused():
    with refused(ValueError, match=r"weights must end in d_mlp=7 entries, got \(2, 6\)"):
        InteractionMatrix(randn(D_IN, D_MLP), randn(D_IN, D_MLP), randn(2, 6))


@pytest.mark.parametrize("batch", [(), (2,), (2, 3)])
def test_entries_rows_and_blocks_are_those_of_the_dense_matrix(batch):
    matrix = random_matrix(batch=batch)
    dense, first = matrix.to_dense(), tuple(0 for _ in batch)
    some, others = torch.tensor([4, 0, -1]), torch.tensor([1, 1, 3])
    for index in (
        *((2, 3), (3, 2), (-1, 0), (0,), (slice(1, 3), 2), (2, slice(None)), (slice(None, None, 2), slice(3, 5))),
        *((some, others), (some, 1), (1, some), (slice(1, 4), some), (some, slice(1, 4)), (some,)),
    ):
        assert_near(matrix[(*first, *index)], dense[(*first, *index)])
        if batch:
            assert_near(matrix[(slice(1, 2), *first[1:], *index)], dense[(slice(1, 2), *first[1:], *index)])
    if not batch:
        assert_near(matrix[2], dense[2])


def test_an_index_of_too_many_parts_or_out_of_range_is_refused():
    with refused(IndexError, match="index must be of at most 2 parts, rows and columns last, got 3"):
        random_matrix()[0, 1, 2]
    with refused(IndexError, match=f"out of bounds for dimension 0 with size {D_IN}"):
        random_matrix()[D_IN, 0]


def test_rows_are_not_multiplied_as_columns():
    with refused(ValueError, match=r"other must be \(5,\) or \(5, k\), got \(4, 5\).*go through Q\(x\)"):
        random_matrix() @ randn(4, D_IN)


def test_inner_product_of_different_sides_is_refused():
    with refused(ValueError, match="other must be 5 x 5, got 6 x 6"):
        random_matrix().inner(random_matrix(d=6))


def test_basis_of_the_wrong_width_is_refused():
    with refused(ValueError, match=r"basis must be \(d_new, 5\), one row per coordinate, got \(5, 11\)"):
        random_matrix().change_basis(randn(D_IN, 11))


@pytest.mark.parametrize("k", [-1, 6])
def test_number_of_eigenpairs_is_checked(k):
    with refused(ValueError, match=f"k must be between 0 and d=5, got {k}"):
        random_matrix().eigh(k)


def test_half_precision_is_decomposed_on_the_span_of_the_factors_too():
    left, right, weights = randn(9, 2, seed=1), randn(9, 2, seed=2), randn(2, seed=3)
    half = InteractionMatrix(left.bfloat16(), right.bfloat16(), weights.bfloat16()).eigh(4)
    full = InteractionMatrix(left, right, weights).eigh(4)
    assert half.eigenvalues.dtype == half.eigenvectors.dtype == torch.float32
    torch.testing.assert_close(half.eigenvalues.to(full.eigenvalues.dtype), full.eigenvalues, rtol=0.05, atol=0.02)
