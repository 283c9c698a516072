"""The engine on an accelerator gives what dense forms in float64 give, whatever the process allows its products."""

import pytest
import torch
from sweeping import all_interactions, random_layer, scores

from bilinear_circuits.algebra.forms import QuadraticForms
from bilinear_circuits.sweep import Products, Statistics, TopSearch, leading_spectra, sweep

pytestmark = pytest.mark.gpu
N_INPUTS, N_OUTPUTS, K = 300, 40, 200
GPU = torch.device("cuda")


@pytest.fixture(scope="module")
def layer():
    if not torch.cuda.is_available():
        pytest.skip("there is no GPU here")
    parts = random_layer(64, 150, 48, N_INPUTS, N_OUTPUTS)
    return parts, [part.to(GPU) for part in parts]


@pytest.fixture(params=["ieee", "tf32"])
def allowed(request):
    """Products of float32 in full, or in TF32 as a training script may have allowed them."""
    matmul = torch.backends.cuda.matmul
    before = matmul.allow_tf32
    matmul.allow_tf32 = request.param == "tf32"
    yield request.param
    assert matmul.allow_tf32 == (request.param == "tf32")  # the engine leaves it as it was
    matmul.allow_tf32 = before


@pytest.mark.parametrize("precision", ["bfloat16", "float32"])
def test_the_largest_interactions_are_those_of_dense_forms(precision, layer, allowed):
    (tensor, read, write), on_gpu = layer
    T = all_interactions(tensor, read, write)
    products = Products(*on_gpu, precision=precision)
    search = TopSearch(products, K)
    sweep(products, [search])
    found = search.result()
    expected = (2 * scores(T)).abs().flatten().topk(K).values
    torch.testing.assert_close(found.weights.abs().cpu().double(), expected, rtol=1e-5, atol=0)
    at = (found.output.cpu(), found.first.cpu(), found.second.cpu())
    torch.testing.assert_close(found.weights.cpu().double(), (2 * scores(T))[at], rtol=1e-5, atol=0)


def test_statistics_are_those_of_dense_forms(layer, allowed):
    (tensor, read, write), on_gpu = layer
    T = 2 * scores(all_interactions(tensor, read, write))
    rows, columns = torch.triu_indices(N_INPUTS, N_INPUTS)
    values = T[:, rows, columns]
    products = Products(*on_gpu, precision="float32")
    statistics = Statistics(products)
    sweep(products, [statistics])
    found = statistics.result()
    deviation = values - values.mean(1, keepdim=True)
    variance = deviation.square().mean(1)
    torch.testing.assert_close(found.variance.cpu(), variance, rtol=1e-5, atol=0)
    torch.testing.assert_close(found.kurtosis.cpu(), deviation.pow(4).mean(1) / variance.square(), rtol=1e-5, atol=0)


@pytest.mark.parametrize("d", [64, 256])
def test_leading_eigenpairs_are_those_of_a_full_decomposition(d, layer, allowed):
    tensor, _, write = (part.to(GPU) for part in random_layer(d, 2 * d, 48, 8, 12, seed=3))
    Q = QuadraticForms(tensor, write)(torch.arange(12, device=GPU)).Q
    found = leading_spectra(Q, 4)
    exact = torch.linalg.eigvalsh(Q.double())
    expected = exact.gather(1, exact.abs().argsort(1, descending=True))[:, :4]
    torch.testing.assert_close(
        found.spectrum.eigenvalues.double(), expected, rtol=1e-4, atol=1e-5 * expected.abs().max()
    )
    assert found.residuals.max() < 1e-4 * expected.abs().max()
