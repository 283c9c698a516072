from itertools import chain, combinations

import dense as oracle
import pytest
import torch
from helpers import D_IN, D_MLP, D_OUT, assert_near, check_matrix, randn, random_tensor, refused, weights_of

from bilinear_circuits.algebra.tensor import InteractionTensor

BIASES = ("b_gate", "b_in", "b_out")
BIAS_SETS = list(chain.from_iterable(combinations(BIASES, n) for n in range(4)))
ALL_SETS = pytest.mark.parametrize("biases", BIAS_SETS, ids=lambda names: "+".join(names) or "none")
AUTOGRAD = pytest.mark.filterwarnings("ignore:`torch.jit.script` is deprecated:DeprecationWarning")
DTYPES = pytest.mark.parametrize("dtype", [torch.float64, torch.float32])


def autograd_layer(tensor, u):
    """u . layer(x), written without the package."""
    present = [0.0 if bias is None else bias for bias in weights_of(tensor)[3:]]
    return lambda x: oracle.torch_layer(x, *weights_of(tensor)[:3], *present) @ u


@DTYPES
@ALL_SETS
def test_call_is_the_layer(biases, dtype):
    tensor, x = random_tensor(biases=biases, dtype=dtype), randn(4, D_IN, seed=50, dtype=dtype)
    assert_near(tensor(x), torch.stack([oracle.layer(row, *weights_of(tensor)) for row in x]))
    assert_near(tensor(x[0]), oracle.layer(x[0], *weights_of(tensor)))
    assert tensor.has_bias == bool(biases)


@ALL_SETS
def test_call_with_two_inputs_is_the_symmetric_bilinear_form(biases):
    tensor, x, y = random_tensor(biases=biases), randn(4, D_IN, seed=50), randn(4, D_IN, seed=51)
    expected = torch.stack([oracle.bilinear_form(p, q, *weights_of(tensor)) for p, q in zip(x, y, strict=True)])
    assert_near(tensor(x, y), expected)
    assert_near(tensor(y, x), expected)
    assert_near(tensor(x, x), tensor(x))


@DTYPES
def test_dense_tensor_equals_the_loops(dtype):
    tensor = random_tensor(dtype=dtype)
    dense = tensor.to_dense()
    assert dense.shape == (D_OUT, D_IN, D_IN)
    assert_near(dense, oracle.interaction_tensor(*weights_of(tensor)[:3]))
    assert_near(dense, dense.mT)


@pytest.mark.parametrize("batch", [(), (4,), (2, 3)])
@DTYPES
def test_matrix_is_the_tensor_contracted_with_the_direction(batch, dtype):
    tensor, u = random_tensor(dtype=dtype), randn(*batch, D_OUT, seed=50, dtype=dtype)
    dense = torch.einsum("...o,oij->...ij", u.double(), oracle.interaction_tensor(*weights_of(tensor)[:3]))
    check_matrix(tensor.matrix(u), dense)


@AUTOGRAD
@ALL_SETS
def test_twice_the_matrix_is_the_hessian(biases):
    tensor, u, x = random_tensor(biases=biases), randn(D_OUT, seed=50), randn(D_IN, seed=51)
    hessian = torch.func.hessian(autograd_layer(tensor, u))(x)
    assert_near(2 * tensor.matrix(u).to_dense(), hessian)


@AUTOGRAD
@ALL_SETS
def test_quadratic_form_is_the_taylor_series_at_zero(biases):
    tensor, u, x = random_tensor(biases=biases), randn(D_OUT, seed=50), randn(4, D_IN, seed=51)
    function, zero = autograd_layer(tensor, u), torch.zeros(D_IN, dtype=torch.float64)
    form = tensor.quadratic_form(u)
    assert_near(2 * form.matrix.to_dense(), torch.func.hessian(function)(zero))
    assert_near(form.linear, torch.func.grad(function)(zero))
    assert_near(form.constant, function(zero))
    assert_near(form(x), tensor(x) @ u)


def test_quadratic_form_of_a_batch_of_directions():
    tensor, u, x = random_tensor(biases=BIASES), randn(2, 4, D_OUT, seed=50), randn(6, D_IN, seed=51)
    assert_near(tensor.quadratic_form(u)(x), torch.einsum("no,abo->nab", tensor(x), u))


def test_linear_in_the_direction():
    tensor, u, v = random_tensor(biases=BIASES), randn(D_OUT, seed=50), randn(D_OUT, seed=51)
    combined, first, second = (tensor.quadratic_form(w) for w in (2 * u - 3 * v, u, v))
    assert_near(combined.matrix.to_dense(), 2 * first.matrix.to_dense() - 3 * second.matrix.to_dense())
    assert_near(combined.linear, 2 * first.linear - 3 * second.linear)
    assert_near(combined.constant, 2 * first.constant - 3 * second.constant)


def test_swapping_gate_and_in_changes_nothing():
    tensor, x, u = random_tensor(biases=BIASES), randn(4, D_IN, seed=50), randn(D_OUT, seed=51)
    W_gate, W_in, W_out, b_gate, b_in, b_out = weights_of(tensor)
    swapped = InteractionTensor(W_in, W_gate, W_out, b_in, b_gate, b_out)
    assert_near(swapped(x), tensor(x))
    assert_near(swapped.to_dense(), tensor.to_dense())
    assert_near(swapped.quadratic_form(u).linear, tensor.quadratic_form(u).linear)


def test_scale_of_each_neuron_changes_nothing():
    tensor, u = random_tensor(), randn(D_OUT, seed=50)
    a, b = randn(D_MLP, seed=51).exp(), -randn(D_MLP, seed=52).exp()
    scaled = InteractionTensor(tensor.W_gate * a, tensor.W_in * b, tensor.W_out / (a * b).unsqueeze(1))
    assert_near(scaled.to_dense(), tensor.to_dense())
    assert_near(scaled.matrix(u).trace(), tensor.matrix(u).trace())
    assert_near(scaled.matrix(u).frobenius_norm(), tensor.matrix(u).frobenius_norm())
    assert_near(scaled.matrix(u).eigh().eigenvalues, tensor.matrix(u).eigh().eigenvalues)


def test_order_of_the_neurons_changes_nothing():
    tensor, order = random_tensor(), torch.tensor([3, 0, 6, 1, 5, 2, 4])
    permuted = InteractionTensor(tensor.W_gate[:, order], tensor.W_in[:, order], tensor.W_out[order])
    assert_near(permuted.to_dense(), tensor.to_dense())


def test_a_neuron_that_reads_one_direction_twice_gives_a_square():
    direction, write = randn(D_IN, 1), randn(1, D_OUT, seed=1)
    expected = torch.einsum("o,i,j->oij", write[0], direction[:, 0], direction[:, 0])
    assert_near(InteractionTensor(direction, direction, write).to_dense(), expected)
    opposite = InteractionTensor(direction, -direction, write)
    u = write[0]
    assert opposite.matrix(u).eigh(1).eigenvalues.item() < 0


@ALL_SETS
def test_augmented_tensor_reproduces_the_layer_on_x_and_one(biases):
    tensor, x, y = random_tensor(biases=biases), randn(4, D_IN, seed=50), randn(4, D_IN, seed=51)
    augmented, one = tensor.augmented(), torch.ones(4, 1, dtype=torch.float64)
    assert not augmented.has_bias
    assert augmented.d_in == D_IN + 1
    x_one, y_one = torch.cat([x, one], 1), torch.cat([y, one], 1)
    assert_near(augmented(x_one), tensor(x))
    assert_near(augmented(x_one, y_one), tensor(x, y))
    assert_near(torch.einsum("oij,ni,nj->no", augmented.to_dense(), x_one, x_one), tensor(x))


@ALL_SETS
@pytest.mark.parametrize("with_offset", [False, True])
def test_reading_from_a_basis_substitutes_the_input(biases, with_offset):
    tensor, basis, z = random_tensor(biases=biases), randn(11, D_IN, seed=50), randn(4, 11, seed=51)
    offset = randn(D_IN, seed=52) if with_offset else None
    read = tensor.read_from(basis, offset)
    assert_near(read(z), tensor(z @ basis + (0 if offset is None else offset)))
    assert_near(read.to_dense(), torch.einsum("ai,oij,bj->oab", basis, tensor.to_dense(), basis))


def test_reading_from_a_basis_equals_the_loops():
    tensor, basis = random_tensor(), randn(11, D_IN, seed=50)
    u = randn(D_OUT, seed=51)
    expected = oracle.feature_matrix(tensor.matrix(u).to_dense(), basis)
    assert_near(tensor.read_from(basis).matrix(u).to_dense(), expected)


@ALL_SETS
@pytest.mark.parametrize("with_offset", [False, True])
def test_writing_to_a_basis_maps_the_output(biases, with_offset):
    tensor, basis, x = random_tensor(biases=biases), randn(D_OUT, 9, seed=50), randn(4, D_IN, seed=51)
    offset = randn(9, seed=52) if with_offset else None
    written = tensor.write_to(basis, offset)
    assert written.d_out == 9
    assert_near(written(x), tensor(x) @ basis + (0 if offset is None else offset))


def test_dtypes_flow_through():
    tensor, x = random_tensor(biases=BIASES).to(torch.bfloat16), randn(4, D_IN, dtype=torch.bfloat16)
    u = randn(D_OUT, dtype=torch.bfloat16)
    form = tensor.quadratic_form(u)
    results = [tensor(x), tensor.matrix(u).to_dense(), form(x), form.linear, form.constant, tensor.augmented().W_out]
    assert {result.dtype for result in results} == {torch.bfloat16}
    assert tensor.to(torch.float64)(x.double()).dtype == torch.float64


def test_a_transposed_in_matrix_is_named():
    tensor = random_tensor()
    with refused(ValueError, match=r"W_in must match W_gate, \(d_in=5, d_mlp=7\), got \(7, 5\).*pass weight\.T"):
        InteractionTensor(tensor.W_gate, tensor.W_in.T, tensor.W_out)


def test_a_transposed_out_matrix_is_named():
    tensor = random_tensor()
    with refused(ValueError, match=r"W_out must be .* with d_mlp=7, got \(3, 7\).*pass weight\.T"):
        InteractionTensor(tensor.W_gate, tensor.W_in, tensor.W_out.T)


def test_other_shapes_are_refused_without_the_hint():
    tensor = random_tensor()
    with refused(ValueError, match=r"W_in must match W_gate, \(d_in=5, d_mlp=7\), got \(5, 6\)\.$"):
        InteractionTensor(tensor.W_gate, tensor.W_in[:, :6], tensor.W_out)
    with refused(ValueError, match=r"with d_mlp=7, got \(6, 3\)\.$"):
        InteractionTensor(tensor.W_gate, tensor.W_in, tensor.W_out[:6])


@pytest.mark.parametrize(("name", "wanted"), [("b_gate", "d_mlp=7"), ("b_in", "d_mlp=7"), ("b_out", "d_out=3")])
def test_bias_lengths_are_checked(name, wanted):
    with refused(ValueError, match=rf"{name} must have {wanted} entries, got \(4,\)"):
        InteractionTensor(*weights_of(random_tensor())[:3], **{name: randn(4)})


@pytest.mark.parametrize("name", ["W_in", "W_out", "b_in"])
def test_mixed_dtypes_are_refused(name):
    tensor = random_tensor(biases=BIASES)
    weights = dict(zip(("W_gate", "W_in", "W_out", *BIASES), weights_of(tensor), strict=True))
    weights[name] = weights[name].float()
    with refused(ValueError, match=rf"{name} must have the dtype.* torch.float64 on cpu, got torch.float32"):
        InteractionTensor(**weights)


@pytest.mark.parametrize("call", ["one input", "both inputs"])
def test_inputs_of_the_wrong_width_are_refused(call):
    tensor, x = random_tensor(), randn(2, 4)
    with refused(ValueError, match=r"x must end in d_in=5 entries, got shape \(2, 4\)"):
        tensor(x) if call == "one input" else tensor(x, x)


@pytest.mark.parametrize("method", ["matrix", "quadratic_form"])
def test_directions_of_the_wrong_width_are_refused(method):
    with refused(ValueError, match=r"u must end in d_out=3 entries, got shape \(2, 5\)"):
        getattr(random_tensor(), method)(randn(2, 5))


def test_bases_of_the_wrong_width_are_refused():
    tensor = random_tensor()
    with refused(ValueError, match=r"basis must be \(d_new, d_in=5\), one row per input, got \(5, 11\)"):
        tensor.read_from(randn(D_IN, 11))
    with refused(ValueError, match=r"basis must be \(d_out=3, d_new\), one column per output, got \(9, 3\)"):
        tensor.write_to(randn(9, D_OUT))


def test_three_transposed_matrices_are_told_apart_from_three_wrong_ones():
    with refused(
        ValueError, r"W_out must be \(d_mlp, d_out\) with d_mlp=5, got \(3, 7\)\. nn\.Linear stores the transpose"
    ):
        InteractionTensor(randn(7, 5), randn(7, 5), randn(3, 7))
