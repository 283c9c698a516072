import pytest
import torch
from helpers import randn, refused

from bilinear_circuits.algebra.tensor import InteractionTensor
from bilinear_circuits.sweep import Products, Statistics, sweep

N_INPUTS, OUTPUTS = (
    137,
    [3, 1, 7, 30, 9, 8, 2, 4, 5, 11],
)  # more inputs than a panel has rows, more outputs than a block


def measured(precision, outputs=OUTPUTS, scale=1.0, sizes=None):
    """Statistics, and every coefficient in float64: (output, input, input), and which are pairs counted once."""
    tensor = InteractionTensor(randn(16, 40, seed=1), randn(16, 40, seed=2), scale * randn(40, 10, seed=3))
    read, write = randn(N_INPUTS, 16, seed=4), randn(10, 33, seed=5)
    tensor = tensor.to(torch.float32)
    if sizes is not None:
        write[:, outputs] *= sizes
    products = Products(tensor, read.float(), write.float(), torch.tensor(outputs), precision)
    statistics = Statistics(products)
    sweep(products, [statistics])
    Q = tensor.to(torch.float64).matrix(write.float().double().T[outputs]).to_dense()
    T = read.float().double() @ Q @ read.float().double().T
    coefficients = 2 * T
    coefficients.diagonal(dim1=1, dim2=2).div_(2)
    return statistics.result(), coefficients


def upper(coefficients):
    rows, columns = torch.triu_indices(N_INPUTS, N_INPUTS)
    return coefficients[:, rows, columns]


@pytest.mark.parametrize(("precision", "tolerance"), [("bfloat16", 5e-3), ("float32", 2e-6)])
def test_moments_are_those_of_all_coefficients(precision, tolerance):
    found, coefficients = measured(precision)
    values = upper(coefficients)
    assert found.outputs.tolist() == OUTPUTS
    assert (found.n_self, found.n_cross, found.n) == (N_INPUTS, N_INPUTS * (N_INPUTS - 1) // 2, values.shape[1])
    deviation = values - values.mean(1, keepdim=True)
    variance = deviation.square().mean(1)
    assert ((found.mean - values.mean(1)).abs() < tolerance * variance.sqrt()).all()
    torch.testing.assert_close(found.variance, variance, rtol=tolerance, atol=0)
    kurtosis = deviation.pow(4).mean(1) / variance.square()
    torch.testing.assert_close(found.kurtosis, kurtosis, rtol=tolerance, atol=0)


@pytest.mark.parametrize("kind", [None, "self", "cross"])
def test_kurtosis_of_the_layer(kind):
    found, coefficients = measured("float32")
    own = coefficients.diagonal(dim1=1, dim2=2)
    rows, columns = torch.triu_indices(N_INPUTS, N_INPUTS, offset=1)
    values = {None: upper(coefficients), "self": own, "cross": coefficients[:, rows, columns]}[kind].flatten()
    deviation = values - values.mean()
    expected = deviation.pow(4).mean() / deviation.square().mean().square()
    assert found.overall_kurtosis(kind) == pytest.approx(expected.item(), rel=1e-5)


def test_histograms_count_each_coefficient_once_by_kind_and_sign():
    found, coefficients = measured("float32")
    own = coefficients.diagonal(dim1=1, dim2=2).flatten()
    rows, columns = torch.triu_indices(N_INPUTS, N_INPUTS, offset=1)
    edges = found.edges.double()
    assert (edges.diff() > 0).all()
    assert edges[-1] > coefficients.abs().max() > edges[-2]
    for at, values in enumerate((own, coefficients[:, rows, columns].flatten())):
        for counts, chosen in ((found.positive, values[values >= 0]), (found.negative, -values[values < 0])):
            expected = torch.histogram(chosen, edges).hist
            # A value within rounding of an edge may fall on either side of it.
            assert (counts[at] - expected).abs().max() <= 2
            assert counts[at].sum() == len(chosen)
    per_output = torch.histogram(upper(coefficients)[4].abs(), edges).hist
    assert (found.magnitudes[4] - per_output).abs().max() <= 2
    assert (found.magnitudes.sum(1) == found.n).all()


def test_mass_of_the_largest():
    found, coefficients = measured("float32")
    falling = upper(coefficients).abs().sort(1, descending=True).values
    for n in (100, 1000, found.n):
        expected = falling[:, :n].sum(1) / falling.sum(1)
        torch.testing.assert_close(found.mass_in_top(n), expected, rtol=0.03, atol=0)
    every = falling.flatten().sort(descending=True).values
    expected = (every[:500].sum() / every.sum()).item()
    assert found.overall_mass_in_top(500) == pytest.approx(expected, rel=0.03)
    assert found.overall_mass_in_top(every.numel()) == pytest.approx(1)


@pytest.mark.parametrize("scale", [1e-15, 1e8])
def test_units_do_not_matter_to_moments(scale):
    found, coefficients = measured("float32", scale=scale)
    values = upper(coefficients)
    deviation = values - values.mean(1, keepdim=True)
    variance = deviation.square().mean(1)
    torch.testing.assert_close(found.variance, variance, rtol=1e-5, atol=0)
    torch.testing.assert_close(found.kurtosis, deviation.pow(4).mean(1) / variance.square(), rtol=1e-5, atol=0)


def test_outputs_of_very_unequal_size_have_their_own_moments_and_shares():
    """One encoder row is 1e-12 of another: nothing of it may be lost beside it."""
    sizes = torch.logspace(-12, 3, len(OUTPUTS))
    ordinary, unequal = measured("float32")[0], measured("float32", sizes=sizes)[0]
    torch.testing.assert_close(unequal.kurtosis, ordinary.kurtosis, rtol=1e-4, atol=0)
    for n in (50, 1000):
        torch.testing.assert_close(unequal.mass_in_top(n), ordinary.mass_in_top(n), rtol=0.05, atol=0)


def test_units_do_not_matter_to_shares():
    ordinary, small = measured("float32")[0], measured("float32", scale=2.0**-60)[0]
    assert torch.equal(ordinary.magnitudes, small.magnitudes)
    torch.testing.assert_close(small.edges, ordinary.edges * 2.0**-60)
    torch.testing.assert_close(small.mass_in_top(50), ordinary.mass_in_top(50))


def test_what_is_not_there_is_refused():
    found, _ = measured("float32", outputs=[0])
    with refused(ValueError, "n must be between 1 and 9453, the interactions of an output feature, got 0"):
        found.mass_in_top(0)
    with refused(ValueError, "n must be between 1 and 9453, the interactions of the layer, got 9454"):
        found.overall_mass_in_top(9454)
    with refused(ValueError, "kind must be one of self, cross, got 'own'"):
        found.overall_kurtosis("own")
