import dense as oracle
import numpy as np
import pytest
import torch
from helpers import assert_near, randn, refused, weights_of
from sweeping import (
    all_interactions,
    blocks_of,
    coarse_scores,
    exactly,
    form_in_fractions,
    layer_of_form,
    random_layer,
    scores,
)
from torch.utils._python_dispatch import TorchDispatchMode

import bilinear_circuits.algebra.forms as forms_module
import bilinear_circuits.algebra.precision as precision_module
import bilinear_circuits.interactions.low_rank as lowrank
import bilinear_circuits.sweep.products as products_module
from bilinear_circuits.algebra.forms import QuadraticForms
from bilinear_circuits.algebra.leading import leading_spectra
from bilinear_circuits.algebra.precision import exact_sums
from bilinear_circuits.algebra.tensor import InteractionTensor
from bilinear_circuits.interactions.active import ActiveTokens
from bilinear_circuits.sweep import Products, fastest_precision
from bilinear_circuits.sweep.keys import magnitudes
from bilinear_circuits.sweep.rounding import row_norms, spectral_bound

PRECISIONS = pytest.mark.parametrize("precision", ["bfloat16", "float32"])
DTYPES = pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
NEAR_ONE = 1 + 2.0**-7  # a bfloat16 between 1 and 2, where its neighbours are 2^-7 away
MOST = 0.98 * 2.0**-8  # nearly as much as rounding takes from such a number


def excess(products, truth):
    """How far a value v is at most from (s + e) (1 + t) with e = 0 and |t| <= unit, as a share of the slack."""
    values, held, slack, unit = coarse_scores(products)
    n = products.n_inputs
    assert (held[:, :n, :n].triu() == torch.ones(n, n).triu()).all()
    v, s = values[:, :n, :n], scores(truth[products.outputs])
    low, high = torch.minimum(v / (1 + unit), v / (1 - unit)), torch.maximum(v / (1 + unit), v / (1 - unit))
    missing = ((low - s).clamp_min(0) + (s - high).clamp_min(0)) / slack[:, :n, None]
    return missing.max().item()


def unlike_layers():
    """Layers with weights of many kinds, by name."""
    tensor, read, write = random_layer(64, 90, 48, 150, 70)
    sizes = 10 ** torch.linspace(-3, 3, 150)[torch.randperm(150, generator=torch.Generator().manual_seed(1))]
    repeated = [W[:, :1].repeat(1, 3) for W in (tensor.W_gate, tensor.W_in)]
    positive = InteractionTensor(*(W.abs() for W in weights_of(tensor)[:3]))
    return {
        "random": (tensor, read, write),
        "unit rows": (tensor, torch.nn.functional.normalize(read), write),
        "rows of norms from 1e-3 to 1e3": (tensor, read * sizes.unsqueeze(1), write),
        "outputs of norms from 1e-6 to 1e6": (tensor, read, write * 10 ** torch.linspace(-6, 6, 70)),
        "rank one": (InteractionTensor(*repeated, tensor.W_out[:3]), read, write),
        "one sign": (positive, read.abs(), write.abs()),
        "small": (InteractionTensor(tensor.W_gate, tensor.W_in, tensor.W_out * 1e-12), read, write),
        "large": (InteractionTensor(tensor.W_gate, tensor.W_in, tensor.W_out * 1e12), read, write),
        "zero": (InteractionTensor(tensor.W_gate * 0, tensor.W_in, tensor.W_out), read, write),
    }


@DTYPES
@PRECISIONS
@pytest.mark.parametrize("name", unlike_layers())
def test_coarse_values_are_as_near_the_true_ones_as_they_claim(name, precision, dtype):
    tensor, read, write = unlike_layers()[name]
    layer = InteractionTensor(*(W.to(dtype) for W in weights_of(tensor)[:3])), read.to(dtype), write.to(dtype)
    assert excess(Products(*layer, precision=precision), all_interactions(*layer)) <= 1


def tiny_layer():
    tensor, read, write = unlike_layers()["random"]
    return InteractionTensor(tensor.W_gate, tensor.W_in, tensor.W_out * 1e-25), read, write


def test_the_bound_holds_for_tiny_weights_in_float32():
    layer = tiny_layer()
    assert excess(Products(*layer, precision="float32"), all_interactions(*layer)) <= 1


def test_the_bound_holds_for_tiny_weights_in_bfloat16():
    layer = tiny_layer()
    assert excess(Products(*layer, precision="bfloat16"), all_interactions(*layer)) <= 1


def test_the_true_interactions_are_those_of_the_loops():
    tensor, read, write = random_layer(4, 5, 3, 6, 2, torch.float64)
    forms = torch.einsum("of,oij->fij", write, oracle.interaction_tensor(*weights_of(tensor)[:3]))
    expected = torch.stack([oracle.feature_matrix(Q, read) for Q in forms])
    assert_near(all_interactions(tensor, read, write), expected)


@pytest.mark.parametrize(("precision", "share"), [("bfloat16", 0.06), ("float32", 0.001)])
def test_the_bound_leaves_few_candidates(precision, share):
    """The slack is a small share of the 20th largest score of each output."""
    tensor, read, write = layer = unlike_layers()["unit rows"]
    twentieth = scores(all_interactions(tensor, read, write)).abs().flatten(1).topk(20).values[:, -1]
    slack = torch.cat([block.slack.amax(0) for block in blocks_of(Products(*layer, precision=precision))])
    assert (slack < share * twentieth).all()


@pytest.mark.parametrize(("precision", "unit"), [("bfloat16", 2.0**-8), ("float32", 2.0**-24)])
def test_values_are_rounded_by_half_of_the_last_bit(precision, unit):
    """And no less is claimed: the next number after 1 is two units away."""
    assert {block.unit for block in blocks_of(Products(*unlike_layers()["random"], precision=precision))} == {unit}
    assert torch.finfo(getattr(torch, precision)).eps == 2 * unit


def layer_in_bfloat16():
    """Bases and forms that bfloat16 holds: all that is rounded is what products store."""
    read, diagonals = (randn(*shape, seed=6).bfloat16().double() for shape in ((40, 64), (64, 5)))
    tensor = InteractionTensor(torch.eye(64).double(), torch.eye(64).double(), diagonals.abs())
    return tensor, read, torch.eye(5).double()


def test_a_bound_for_a_finer_rounding_fails(monkeypatch):
    layer = layer_in_bfloat16()
    truth = all_interactions(*layer)
    assert excess(Products(*layer, precision="bfloat16"), truth) <= 1
    monkeypatch.setitem(products_module.UNIT, "bfloat16", 2.0**-12)
    assert excess(Products(*layer, precision="bfloat16"), truth) > 1


def roundings_of_the_form():
    """Rounding takes nearly 2^-8 from all entries of Q in one direction, and its rows of random signs hide that."""
    d = 64
    signs = torch.where(randn(d, d, seed=3).triu() < 0, -1.0, 1.0).double().triu()
    signs = signs + signs.triu(1).T
    return layer_of_form(signs * NEAR_ONE + MOST), torch.ones(3, d, dtype=torch.float64), torch.ones(1, 1).double()


def roundings_of_the_rows():
    """Those of two rows of D and of the first product all add up, in an interaction that is nearly zero."""
    signs = torch.where(torch.arange(64) % 2 == 0, 1.0, -1.0).double()
    # Times 1 + 1/128, 1 + 63/128 lies just below the middle of two bfloat16, and 1 + 65/128 just above.
    diagonal = signs * torch.where(signs > 0, 1 + 63 / 128, 1 + 65 / 128)
    tensor = InteractionTensor(torch.eye(64).double(), torch.eye(64).double(), diagonal.unsqueeze(1))
    return tensor, (signs * NEAR_ONE + MOST).expand(2, 64), torch.ones(1, 1).double()


@pytest.mark.parametrize("layer", [roundings_of_the_form, roundings_of_the_rows])
def test_roundings_that_all_add_up_stay_within_the_bound(layer):
    layer = layer()
    assert 0.8 < excess(Products(*layer, precision="bfloat16"), all_interactions(*layer)) <= 1


def test_a_bound_without_the_rounding_of_the_form_fails(monkeypatch):
    monkeypatch.setattr(products_module, "spectral_bound", lambda E, room: E.new_zeros(len(E)))
    layer = roundings_of_the_form()
    assert excess(Products(*layer, precision="bfloat16"), all_interactions(*layer)) > 1


def test_a_bound_without_the_rounding_of_the_rows_fails():
    layer = roundings_of_the_rows()
    products = Products(*layer, precision="bfloat16")
    coarse, norm, lost = products._coarse
    assert lost.max() > 0
    vars(products)["_coarse"] = coarse, norm, torch.zeros_like(lost)
    assert excess(products, all_interactions(*layer)) > 1


@pytest.mark.parametrize("d", [3, 64])
def test_the_spectral_bound_is_above_the_norm_and_below_frobenius(d):
    x = randn(7, d, d, seed=d)
    E = torch.stack([*(x + x.mT), x[0] @ x[0].T, torch.ones(d, d), torch.eye(d), torch.zeros(d, d)]).float()
    E *= 10.0 ** torch.linspace(-8, 8, len(E))[:, None, None]
    exact, frobenius = torch.linalg.matrix_norm(E.double(), 2), torch.linalg.matrix_norm(E.double())
    bound = spectral_bound(E, torch.empty(3, *E.shape, dtype=torch.bfloat16)).double()
    assert (bound >= exact).all()
    assert (bound <= frobenius * (1 + 2.0**-9) + 2.0**-60).all()
    if d == 64:
        assert (bound[:7] < 0.45 * frobenius[:7]).all()


@PRECISIONS
@pytest.mark.parametrize("n_inputs", [1, 31, 32, 33, 64, 65, 150, 200])
def test_panels_hold_the_upper_half_once_and_zeros_elsewhere(n_inputs, precision):
    layer = random_layer(6, 7, 5, n_inputs, 11)
    products = Products(*layer, precision=precision)
    values, held, _, _ = coarse_scores(products)
    n_rows = products.n_rows
    assert n_rows >= n_inputs
    assert (held.triu() == torch.ones(n_rows, n_rows).triu()).all()
    assert (values.tril(-1) == 0).all()
    assert (values[:, n_inputs:] == 0).all()
    assert (values[:, :, n_inputs:] == 0).all()
    assert excess(products, all_interactions(*layer)) <= 1


def test_there_are_panels_enough_for_their_borders_to_be_tested():
    starts = [panel.start for panel in next(blocks_of(Products(*random_layer(6, 7, 5, 300, 3)))).panels()]
    assert starts[0] == 0
    assert len(starts) > 2


@PRECISIONS
def test_panels_of_another_height_are_right(precision, monkeypatch):
    layer = random_layer(6, 7, 5, 150, 11)
    slack = coarse_scores(Products(*layer, precision=precision))[2]
    monkeypatch.setattr(products_module, "_PANEL_ROWS", 32)
    products = Products(*layer, precision=precision)
    assert products.n_rows == 160
    assert_near(coarse_scores(products)[2][:, :150], slack[:, :150], 1e-3)
    assert excess(products, all_interactions(*layer)) <= 1


def test_blocks_cover_all_outputs_once_in_their_order(monkeypatch):
    monkeypatch.setattr(products_module, "_FORM_GROUP", 64)
    products = Products(*random_layer(6, 7, 5, 9, 150))
    assert len(products.groups) > 1
    assert torch.cat([block.outputs for block in blocks_of(products)]).tolist() == list(range(150))
    weights = torch.cat([block.weights for block in blocks_of(products)])
    tensor, _, write = random_layer(6, 7, 5, 9, 150)
    assert_near(weights, (tensor.W_out @ write).T)


@PRECISIONS
def test_blocks_and_groups_are_as_large_as_memory_allows(precision, monkeypatch):
    layer = random_layer(6, 7, 5, 150, 40)
    assert [len(block.outputs) for block in blocks_of(Products(*layer, precision=precision))] == [32, 8]
    n_bytes = (128 * 256 + 128 * 128) * getattr(torch, precision).itemsize
    monkeypatch.setitem(products_module._BLOCK_BYTES, "cpu", 9 * n_bytes)
    monkeypatch.setattr(products_module, "_FORM_BYTES", 4 * 36 * 20)
    products = Products(*layer, precision=precision)
    assert [len(block.outputs) for block in blocks_of(products)] == [9, 9, 2, 9, 9, 2]
    assert excess(products, all_interactions(*layer)) <= 1
    monkeypatch.setitem(products_module._BLOCK_BYTES, "cpu", 1)
    monkeypatch.setattr(products_module, "_FORM_BYTES", 1)
    assert [len(block.outputs) for block in blocks_of(Products(*layer, precision=precision))] == [1] * 40


@PRECISIONS
@pytest.mark.parametrize("outputs", [[7, 2, 149, 64, 0], [3], list(range(149, 60, -1))], ids=len)
def test_a_subset_of_the_outputs_is_swept_in_its_order(outputs, precision):
    layer = random_layer(6, 7, 5, 9, 150)
    products = Products(*layer, torch.tensor(outputs), precision)
    assert torch.cat([block.outputs for block in blocks_of(products)]).tolist() == outputs
    assert excess(products, all_interactions(*layer)) <= 1


def test_the_panels_of_a_block_can_be_held_together():
    """Blocks use the same memory, one after the other; the panels of one do not."""
    layer = random_layer(6, 7, 5, 150, 20)
    truth = scores(all_interactions(*layer))
    for block in blocks_of(Products(*layer, precision="float32")):
        for panel in list(block.panels()):
            seen = panel.values[: 150 - panel.start, :, : 150 - panel.start].transpose(0, 1)
            rows = slice(panel.start, panel.start + seen.shape[1])
            assert_near(seen, truth[block.outputs, rows, panel.start :])


@PRECISIONS
@pytest.mark.parametrize("n_inputs", [5, 64, 150])
def test_values_of_a_block_are_those_of_its_panels(n_inputs, precision):
    for block in blocks_of(Products(*random_layer(6, 7, 5, n_inputs, 40), precision=precision)):
        output, first, second = (torch.ones(len(block.outputs), n_inputs, n_inputs).triu() > 0).nonzero(as_tuple=True)
        read = torch.empty(len(output), dtype=getattr(torch, precision))
        for panel in block.panels():
            mine = (first >= panel.start) & (first < panel.start + len(panel.values))
            read[mine] = panel.values[first[mine] - panel.start, output[mine], second[mine] - panel.start]
        assert torch.equal(block.values(first, output, second), read)


@PRECISIONS
@pytest.mark.parametrize("order", ["magnitude", "positive", "negative"])
def test_lanes_hold_the_largest_of_every_so_many_columns(order, precision):
    signed = {"magnitude": torch.abs, "positive": torch.relu, "negative": lambda v: (-v).relu()}[order]
    block = next(blocks_of(Products(*random_layer(6, 7, 5, 150, 11), precision=precision)))
    for panel in block.panels():
        expected = torch.stack([signed(panel.values[:, :, lane::64]).amax(2) for lane in range(64)], 2)
        assert torch.equal(magnitudes(panel.lanes(order)), expected.float())


@pytest.mark.parametrize("d", [1, 64, 3000, 1 << 16])
def test_norms_of_rows_are_bounded_from_above_and_little(d):
    """Also those of ones, of which a sum in bfloat16 would stop at 256."""
    for dtype, share in ((torch.bfloat16, 0.03), (torch.float32, 1e-6)):
        rows = torch.cat([randn(3, 2, d, seed=d), torch.ones(1, 2, d), 1e-15 * torch.ones(1, 2, d)]).to(dtype)
        exact, bound = rows.double().norm(dim=2), row_norms(rows).double()
        assert (bound >= exact).all()
        assert (bound <= exact * (1 + share + d * 2.0**-23)).all()


def test_biases_of_the_layer_do_not_matter():
    values = [
        coarse_scores(Products(*random_layer(6, 7, 5, 9, 11, biases=biases), precision="bfloat16"))[0]
        for biases in ((), ("b_gate", "b_in", "b_out"))
    ]
    assert torch.equal(*values)


def exact_excess(products, truth):
    """Largest error of exact scores as a share of the bound on it."""
    first, second = torch.triu_indices(products.n_inputs, products.n_inputs)
    worst = 0.0
    for block in blocks_of(products):
        for row, output in enumerate(block.outputs.tolist()):
            weights = block.weights[row].expand(len(first), -1)
            error = (products.exact(weights, first, second).double() - scores(truth)[output, first, second]).abs()
            worst = max(worst, (error / products.exact_error(weights)).max().item())
    return worst


@pytest.mark.parametrize(("dtype", "share"), [(torch.float32, 1e-4), (torch.float64, 1e-12)], ids=str)
def test_exact_scores_are_as_near_the_true_ones_as_they_claim(dtype, share):
    layer = random_layer(16, 40, 30, 20, 11, dtype)
    products, truth = Products(*layer), all_interactions(*layer)
    assert exact_excess(products, truth) <= 1
    claimed = torch.cat([products.exact_error(block.weights) for block in blocks_of(products)])
    assert (claimed < share * truth.abs().amax((1, 2))).all()


@DTYPES
def test_exact_scores_are_right_where_the_weights_of_neurons_nearly_cancel(dtype):
    """All neurons write much in one direction, which the outputs do not read."""
    tensor, read, write = random_layer(6, 9, 30, 7, 3, torch.float64)
    common = torch.nn.functional.normalize(randn(30, seed=5), dim=0)
    write -= common.unsqueeze(1) * (common @ write)
    W_out = tensor.W_out + 1e6 * randn(9, 1, seed=6) * common
    tensor = InteractionTensor(*(W.to(dtype) for W in (tensor.W_gate, tensor.W_in, W_out)))
    layer = tensor, read.to(dtype), write.to(dtype)
    rows = exactly(layer[1])
    truth = [(rows @ form_in_fractions(tensor, column) @ rows.T).astype(float) for column in layer[2].T]
    assert exact_excess(Products(*layer), torch.tensor(np.stack(truth))) <= 1


def form_errors(tensor, directions):
    """Forms of all directions, and their true errors in the Frobenius norm."""
    forms = QuadraticForms(tensor, directions)(torch.arange(directions.shape[1]))
    wrong = [exactly(Q) - form_in_fractions(tensor, u) for Q, u in zip(forms.Q, directions.T, strict=True)]
    return forms, torch.tensor([float((one**2).sum()) ** 0.5 for one in wrong], dtype=torch.float64)


@pytest.fixture(params=["table", "table in slabs", "neurons"])
def route(request, monkeypatch):
    """Forms made in one of the ways there are."""
    if request.param == "table in slabs":
        monkeypatch.setattr(forms_module, "_SLAB_ROWS", 4)
        monkeypatch.setattr(forms_module, "_SUM_LENGTH", 3)
    if request.param == "neurons":
        monkeypatch.setattr(forms_module, "_TABLE_BYTES", 0)
    return request.param


@DTYPES
def test_forms_are_those_of_the_loops(dtype, route):
    tensor, _, write = random_layer(6, 9, 8, 1, 5, dtype)
    forms = QuadraticForms(tensor, write)(torch.tensor([4, 0, 2]))
    expected = torch.einsum("of,oij->fij", write.double(), oracle.interaction_tensor(*weights_of(tensor)[:3]))
    assert_near(forms.Q, expected[[4, 0, 2]])
    assert QuadraticForms(tensor, write).from_table == (route != "neurons")


@pytest.mark.parametrize("sizes", [(6, 9, 8), (5, 3, 1), (3, 60, 7)], ids=str)
@DTYPES
def test_forms_are_as_near_the_true_ones_as_they_claim(dtype, sizes, route):
    tensor, _, write = random_layer(*sizes, 1, 5, dtype)
    forms, errors = form_errors(tensor, write)
    assert (errors <= forms.error).all()
    assert errors.max() > 0
    assert (forms.error < 800 * torch.finfo(dtype).eps * forms.Q.flatten(1).norm(dim=1)).all()
    assert_near(forms.Q, forms.Q.mT, 4 * torch.finfo(dtype).eps)


def cancelling_layer(dtype):
    """Neurons that take away nearly all of what others write."""
    tensor, _, write = random_layer(4, 10, 3, 1, 5, torch.float64)
    first, second = 1e8 * tensor.W_out, 1e8 * randn(10, 3, seed=77)
    factors = [W.repeat(1, 4).to(dtype) for W in (tensor.W_gate, tensor.W_in)]
    out = [part.to(dtype) for part in (first, second, randn(10, 3, seed=78))]
    return InteractionTensor(*factors, torch.cat([*out, -(out[0] + out[1])])), write.to(dtype)


@DTYPES
def test_forms_of_neurons_that_cancel_are_as_near_as_they_claim(dtype, route):
    forms, errors = form_errors(*cancelling_layer(dtype))
    assert (errors <= forms.error).all()


@pytest.mark.parametrize(("n_directions", "from_table"), [(3, False), (4, True)])
def test_few_directions_take_their_forms_from_the_neurons(n_directions, from_table):
    tensor, _, write = random_layer(6, 9, 8, 1, n_directions)
    assert QuadraticForms(tensor, write).from_table == from_table


class FloatProducts(TorchDispatchMode):
    """Notes the precision that every product of float32 matrices is taken in."""

    def __init__(self):
        super().__init__()
        self.seen = []

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        names = ("mm", "bmm", "addmm", "addmm_", "baddbmm", "baddbmm_", "mv", "addmv")
        if function.overloadpacket.__name__ in names and args[-1].dtype == torch.float32:
            self.seen.append(torch.get_float32_matmul_precision())
        return function(*args, **(kwargs or {}))


@pytest.fixture
def global_precision():
    """Sets the global precision of float32 products for the length of a test."""
    matmul = torch.backends.cuda.matmul
    before = torch.get_float32_matmul_precision(), matmul.allow_bf16_reduced_precision_reduction
    yield torch.set_float32_matmul_precision
    torch.set_float32_matmul_precision(before[0])
    matmul.allow_bf16_reduced_precision_reduction = before[1]


def precisions_used(layer, precision):
    with FloatProducts() as products:
        for block in blocks_of(Products(*layer, precision=precision)):
            for _ in block.panels():
                pass
    return products.seen


@PRECISIONS
def test_products_are_in_full_precision_whatever_is_allowed(precision, global_precision):
    global_precision("medium")
    layer = random_layer(6, 7, 5, 150, 11)
    seen = precisions_used(layer, precision)
    assert len(seen) > 0
    assert set(seen) == {"highest"}


def second_moments():
    token = torch.arange(40) % 20
    return ActiveTokens(token, randn(40, dtype=torch.float32), torch.tensor([0, 20, 40])).second_moments(20)


def predictions():
    Q, x = randn(2, 5, 5, dtype=torch.float32), randn(2, 7, 5, seed=1, dtype=torch.float32)
    return lowrank._predictions(Q + Q.mT, torch.zeros(2, 5), x, (1, 5))


def spectra():
    Q = randn(3, 200, 200, dtype=torch.float32)
    return leading_spectra(Q + Q.mT, 2)


@pytest.mark.parametrize("function", [second_moments, predictions, spectra])
def test_what_reads_forms_is_in_full_precision_too(function, global_precision):
    global_precision("medium")
    with FloatProducts() as products:
        function()
    assert len(products.seen) > 0
    assert set(products.seen) == {"highest"}
    assert torch.get_float32_matmul_precision() == "medium"


@PRECISIONS
def test_the_bound_holds_whatever_precision_is_allowed(precision, global_precision):
    global_precision("medium")
    layer = unlike_layers()["random"]
    assert excess(Products(*layer, precision=precision), all_interactions(*layer)) <= 1
    assert torch.get_float32_matmul_precision() == "medium"


@pytest.mark.parametrize("allowed", [True, False])
def test_what_was_allowed_is_allowed_again_after_an_error(allowed, global_precision):
    matmul = torch.backends.cuda.matmul
    global_precision("high")
    matmul.allow_bf16_reduced_precision_reduction = allowed
    with refused(RuntimeError, "size mismatch"), exact_sums():
        assert torch.get_float32_matmul_precision() == "highest"
        assert not matmul.allow_bf16_reduced_precision_reduction
        torch.zeros(2, 3) @ torch.zeros(2)
    assert torch.get_float32_matmul_precision() == "high"
    assert matmul.allow_bf16_reduced_precision_reduction == allowed


def test_precisions_set_for_one_backend_do_not_stop_the_sweep():
    matmul = torch.backends.cuda.matmul
    if not hasattr(matmul, "fp32_precision"):
        pytest.skip("this torch has one precision for all backends")
    before, matmul.fp32_precision = matmul.fp32_precision, "tf32"
    try:
        with exact_sums():
            inside = matmul.fp32_precision
        assert inside == "ieee"
        assert matmul.fp32_precision == "tf32"
    finally:
        matmul.fp32_precision = before


@pytest.mark.parametrize(
    ("name", "shapes", "want", "got"), [("read", ((9, 5), (5, 4)), 6, 5), ("write", ((9, 6), (4, 4)), 5, 4)]
)
def test_bases_that_do_not_fit_the_layer_are_refused(name, shapes, want, got):
    tensor, _, _ = random_layer(6, 7, 5, 9, 4)
    with refused(ValueError, f"{name} must have directions of {want} entries to fit the layer, got {got}"):
        Products(tensor, *(torch.zeros(shape) for shape in shapes))


def test_a_precision_that_there_is_not_is_refused():
    with refused(ValueError, "precision must be one of bfloat16, float32, got 'float16'"):
        Products(*random_layer(6, 7, 5, 9, 4), precision="float16")


@pytest.mark.parametrize(("seconds", "fastest"), [((1, 2), "bfloat16"), ((2, 1), "float32")])
def test_the_faster_precision_is_found_by_the_clock(seconds, fastest, monkeypatch):
    """The first product of each kind, which sets things up, does not count."""
    each = [9 - seconds[0], *[seconds[0]] * 3, 9 - seconds[1], *[seconds[1]] * 3]
    ticks = iter([time for one in each for time in (0, one)])
    monkeypatch.setattr(precision_module.time, "perf_counter", lambda: next(ticks))
    assert fastest_precision(torch.device("cpu"), size=2) == fastest


def test_the_precision_is_the_fastest_by_default(monkeypatch):
    for name in ("bfloat16", "float32"):
        monkeypatch.setattr(products_module, "fastest_precision", lambda device, name=name: name)
        assert Products(*random_layer(6, 7, 5, 9, 4)).precision == name
