"""Bilinear and cubic layers fitted to gated MLPs: what they leave out is counted, to the last digit."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from helpers import assert_near, randn, refused, tiny_llama
from planted import random_dictionary

import bilinear_circuits as bc
from bilinear_circuits.algebra.layer_fits import AffineMap, TranscoderSettings, fit_affine, fit_transcoder
from bilinear_circuits.interactions.activity import LayerActivity
from bilinear_circuits.interactions.cubic_interactions import CubicInteractions
from bilinear_circuits.interventions.terms import terms_at
from bilinear_circuits.models.gated_mlp import GatedMLP

D, LAYER = 12, 1
HOOK_IN, HOOK_OUT = f"blocks.{LAYER}.mlp.hook_in", f"blocks.{LAYER}.mlp.hook_out"


def own_forward(model, x, act=torch.nn.functional.silu):
    """The MLP from its parameters, in float64."""
    mlp = model.model.layers[LAYER].mlp
    gate, up, down = (one.weight.detach().double() for one in (mlp.gate_proj, mlp.up_proj, mlp.down_proj))
    biases = [
        0 if one.bias is None else one.bias.detach().double() for one in (mlp.gate_proj, mlp.up_proj, mlp.down_proj)
    ]
    return (act(x @ gate.T + biases[0]) * (x @ up.T + biases[1])) @ down.T + biases[2]


@pytest.fixture(scope="module", params=[False, True], ids=["bare", "biased"])
def model(request):
    return tiny_llama("silu", mlp_bias=request.param)


@pytest.fixture(scope="module")
def inputs():
    return 2 * randn(4000, D, seed=3)


@pytest.fixture(scope="module")
def gated(model):
    return GatedMLP.from_model(model, LAYER).to(torch.float64)


@pytest.fixture(scope="module")
def dictionaries():
    return (
        random_dictionary(D, 17, HOOK_IN, seed=5).to(torch.float64),
        random_dictionary(D, 19, HOOK_OUT, seed=6).to(torch.float64),
    )


def test_an_affine_map_is_found_again_and_fits_least_squares():
    weight, bias, x = randn(5, 3, seed=1), randn(3, seed=2), randn(400, 5, seed=3)
    found = fit_affine((rows, rows @ weight + bias) for rows in x.split(70))
    assert_near(found.weight, weight, 1e-6)
    assert_near(found.bias, bias, 1e-6)
    y = randn(400, 3, seed=4)
    best = fit_affine([(x, y)])
    with_ones = torch.cat([x, torch.ones(400, 1, dtype=x.dtype)], 1)
    expected = torch.linalg.lstsq(with_ones, y).solution
    assert_near(torch.cat([best.weight, best.bias.unsqueeze(0)]), expected, 1e-6)
    assert isinstance(best, AffineMap)
    with refused(ValueError, "batches must hold one input or more, got none"):
        fit_affine([])


@pytest.mark.parametrize("solve_output", [False, True])
def test_a_fitted_layer_is_the_best_of_its_kind_on_inputs_of_the_fit(gated, inputs, solve_output):
    mlp = gated.bilinear(inputs, solve_output=solve_output)
    fit = mlp.approximation
    assert (fit.n_fitted, fit.n_held_out) == (3600, 400)
    held_out, wanted = inputs[3600:], gated(inputs[3600:])
    variance = (wanted - wanted.mean(0)).square().sum()
    assert fit.fvu == pytest.approx(((mlp.tensor(held_out) - wanted).square().sum() / variance).item())
    assert 0 < fit.fvu < fit.linear_fvu
    fitted, tensor = inputs[:3600], mlp.tensor
    error = (tensor(fitted) - gated(fitted)).square().sum()
    for name in ("W_out", "b_out") if solve_output else ():
        for seed in range(3):
            moved = getattr(tensor, name) + 1e-3 * randn(*getattr(tensor, name).shape, seed=seed)
            assert (replace(tensor, **{name: moved})(fitted) - gated(fitted)).square().sum() > error
    assert mlp(held_out).equal(wanted)  # called, it is the model's own MLP
    assert f"{100 * fit.recovered:.1f} % of the MLP output's variance recovered" in repr(fit)


def test_solving_the_output_and_fitting_everything_come_nearer(gated, inputs):
    settings = TranscoderSettings(steps=300, batch=256)
    fvu = [
        gated.bilinear(inputs).approximation.fvu,
        gated.bilinear(inputs, solve_output=True).approximation.fvu,
        gated.bilinear(inputs, transcoder=settings).approximation.fvu,
    ]
    assert fvu == sorted(fvu, reverse=True)
    assert gated.cubic(inputs).approximation.fvu < fvu[0]
    first, second = (gated.bilinear(inputs[:200], transcoder=TranscoderSettings(steps=3)) for _ in range(2))
    assert first.tensor.W_gate.equal(second.tensor.W_gate)


def test_a_transcoder_is_found_from_nearby():
    from helpers import random_tensor

    tensor = random_tensor(seed=2, d_in=4, d_mlp=3, d_out=2)
    start = replace(tensor, W_gate=tensor.W_gate + 0.05 * randn(4, 3, seed=8))
    x = randn(500, 4, seed=9)
    found = fit_transcoder(start, x, tensor, TranscoderSettings(steps=600, batch=128, learning_rate=5e-3))
    before, after = ((one(x) - tensor(x)).square().mean() for one in (start, found))
    assert after < 1e-3 * before


def test_the_ledger_sums_to_the_true_pre_activation_with_the_gate_remainder(model, gated, inputs, dictionaries):
    interactions = bc.FeatureInteractions(gated.bilinear(inputs), *dictionaries)
    x = randn(6, D, seed=11)
    for feature in (0, 7):
        true = own_forward(model, x) @ dictionaries[1].W_enc[:, feature] + dictionaries[1].b_enc[feature]
        ledger = interactions.ledger(x, feature)
        assert_near(ledger.total, true, 1e-9)
        assert ledger.terms["gate_remainder"].abs().max() > 1e-3
        assert_near(interactions.form(feature)(x) + ledger.gate_remainder, true, 1e-9)
        terms = terms_at(interactions, feature, x)
        assert_near(terms.sum() + ledger.constant, true, 1e-9)
        active = dictionaries[1].encode(own_forward(model, x))[:, feature] != 0
        assert ledger.active.equal(active)
    assert (
        LayerActivity.of(interactions, x)
        .outputs[7][1]
        .allclose((values := dictionaries[1].encode(own_forward(model, x))[:, 7])[values != 0])
    )


def test_ledgers_of_fits_in_float32_sum_to_the_last_digit_of_float64(model, gated, inputs, dictionaries):
    fitted = bc.FeatureInteractions(
        gated.bilinear(inputs).to(torch.float32), *(one.to(torch.float32) for one in dictionaries)
    )
    x = randn(6, D, seed=11)
    row, constant = fitted.sae_out.W_enc[:, 7].double(), fitted.sae_out.b_enc[7].double()
    assert_near(fitted.ledger(x, 7).total, own_forward(model, x) @ row + constant, 1e-9)


def test_ledgers_of_fits_show_what_they_miss(gated, inputs, dictionaries):
    interactions = bc.FeatureInteractions(gated.bilinear(inputs), *dictionaries)
    for x in (randn(1, D), randn(3, D), randn(40, D)):
        ledger = interactions.ledger(x, 7)
        assert "gate_remainder" in ledger._repr_html_()
        assert ledger.plot().data
    exact = bc.FeatureInteractions(gated.with_tensor(gated.weights), *dictionaries).ledger(randn(1, D), 7)
    assert "gate_remainder" not in exact._repr_html_()


def test_a_bilinear_model_goes_the_same_way_and_nothing_remains(inputs, dictionaries):
    gated = GatedMLP.from_model(tiny_llama("linear", mlp_bias=True), LAYER).to(torch.float64)
    mlp, cubic = gated.bilinear(inputs[:100]), gated.cubic(inputs[:100])
    for one in (mlp, gated.bilinear(inputs[:100], solve_output=True, transcoder=TranscoderSettings(steps=2))):
        assert one.tensor is gated.weights
    assert mlp.approximation.fvu == 0
    assert mlp.approximation.gates.remainder.equal(torch.zeros(len(mlp.tensor.W_gate.T), dtype=torch.double))
    interactions = bc.FeatureInteractions(mlp, *dictionaries)
    x = randn(4, D, seed=1)
    assert interactions.ledger(x, 3).gate_remainder.equal(torch.zeros(4, dtype=torch.double))
    ledger = CubicInteractions(cubic, *dictionaries).ledger(x, 3)
    assert ledger.third.equal(torch.zeros(4, dtype=torch.double))
    assert ledger.gate_remainder.abs().max() < 1e-12
    exact = bc.BilinearMLP.from_model(tiny_llama("linear", mlp_bias=True), LAYER)
    assert bc.FeatureInteractions(exact, *dictionaries).ledger(x, 3).gate_remainder is None
    assert (exact.recovered, mlp.recovered) == (1.0, 1.0)


def test_a_layer_that_recovers_too_little_is_refused_unless_asked_for(gated, inputs, dictionaries):
    mlp = gated.bilinear(inputs)
    poor = replace(mlp, approximation=replace(mlp.approximation, fvu=0.6))
    with refused(ValueError, "mlp must recover 0.50 of the variance .*, got nan in layer 1"):
        bc.FeatureInteractions(replace(mlp, approximation=replace(mlp.approximation, fvu=float("nan"))), *dictionaries)
    with refused(
        ValueError,
        r"mlp must recover 0.50 of the variance .*, got 0.4 in layer 1: affine .* or pass a lower least_recovered",
    ):
        bc.FeatureInteractions(poor, *dictionaries)
    assert "affine functions in place of SiLU gates, 40.0 %" in repr(
        bc.FeatureInteractions(poor, *dictionaries, least_recovered=0.4)
    )


@pytest.mark.parametrize(
    ("x", "message"),
    [
        (torch.ones(1, D), "activity must be two rows or more of d_in=12 entries"),
        (torch.ones(3, D), "activity must be four rows or more where none are held out besides, got 3"),
        (torch.ones(9, D), "held_out must be inputs at which the MLP gives different outputs, got 2 alike"),
        (torch.ones(9, D + 1), r"got shape \(9, 13\)"),
        (torch.full((9, D), torch.nan), "activity must be finite"),
    ],
)
def test_inputs_that_do_not_fit_are_refused(gated, x, message):
    for fit in (gated.bilinear, gated.cubic):
        with refused(ValueError, message):
            fit(x)
    with refused(TypeError, "activity must be a Tensor, got a list. Pass inputs of the MLP"):
        gated.bilinear([[1.0] * D])
    with refused(ValueError, r"held_out must be two rows or more of d_in=12 entries, got shape \(5, 3\)"):
        gated.bilinear(randn(9, D), held_out=randn(5, 3))
    with refused(TypeError, "transcoder must be a TranscoderSettings, got a bool"):
        gated.bilinear(randn(9, D), transcoder=True)
    with refused(TypeError, "steps must be an int"):
        TranscoderSettings(steps=1.5)
    with refused(TypeError, "learning_rate must be a number, got 'x'"):
        TranscoderSettings(learning_rate="x")


def test_a_fit_is_carried_along_when_the_layer_is_read_elsewhere(gated, inputs):
    mlp = replace(gated.bilinear(inputs), norm=bc.BilinearMLP.from_model(tiny_llama("linear"), LAYER).norm)
    mlp = replace(mlp, norm=replace(mlp.norm, weight=torch.linspace(0.5, 2, D, dtype=torch.double)))
    moved, x = mlp.before_norm_weight(), randn(3, D)
    assert_near(moved(x), mlp(x * mlp.norm.weight), 1e-12)
    assert moved.to(torch.float32)(x.float()).dtype == torch.float32


SHARED = Path(__file__).parents[2] / "shared"


@pytest.mark.slow
@pytest.mark.skipif(not (SHARED / "weights/stories-260k").is_dir(), reason="stories-260k is not beside this folder")
def test_fits_of_a_model_that_others_trained_recover_what_is_said_of_them():
    from bilinear_circuits import zoo
    from bilinear_circuits.data.corpora import Corpus
    from bilinear_circuits.data.stories import tokenize_stories
    from bilinear_circuits.runs.replacement import measure_replacements, mlp_inputs

    model, tokenizer = zoo.load_plain_model(SHARED / "weights/stories-260k")
    stories = Corpus(str(SHARED / "data/tinystories/valid.txt")).read(210)
    tokens = tokenize_stories(stories, tokenizer, 160)
    inputs = mlp_inputs(model, tokens[60:], range(5))
    layers = [GatedMLP.from_model(model, layer) for layer in range(5)]
    assert {layer.gate for layer in layers} == {"SiLU"}
    settings = TranscoderSettings()
    recovered = {
        name: measure_replacements(model, tokens[:60], [fit(one, inputs[one.layer]) for one in layers])
        for name, fit in {
            "quadratic": lambda one, x: one.cubic(x),
            "output": lambda one, x: one.bilinear(x, solve_output=True),
            "transcoder": lambda one, x: one.bilinear(x, transcoder=settings),
        }.items()
    }
    assert recovered["quadratic"].change[-1] < 0.02
    assert recovered["output"].recovered[-1] > 0.93
    assert recovered["transcoder"].recovered[-1] > 0.96
    assert recovered["transcoder"].linear_recovered[-1] < 0.6
