"""Gated MLPs of ordinary models: the gate is proved, not believed."""

import pytest
import torch
from helpers import assert_near, randn, refused, tiny_llama
from transformers.activations import ACT2FN

from bilinear_circuits.models.bilinear_mlp import BilinearMLP, NotBilinearError
from bilinear_circuits.models.gated_mlp import GatedMLP

NAMES = {
    "silu": "SiLU", "gelu": "GELU", "gelu_pytorch_tanh": "tanh-GELU", "relu": "ReLU", "relu2": "squared ReLU",
    "sigmoid": "sigmoid", "linear": "linear",
}  # fmt: skip


@pytest.mark.parametrize("mlp_bias", [False, True])
@pytest.mark.parametrize("act", NAMES)
def test_the_gate_is_named_and_the_layer_rebuilt(act, mlp_bias):
    model = tiny_llama(act, mlp_bias=mlp_bias)
    layer = GatedMLP.from_model(model, 1)
    assert layer.gate == NAMES[act]
    assert layer.probe_error < 1e-5
    x, mlp = randn(5, 12, dtype=torch.float32), model.model.layers[1].mlp
    gate, up = mlp.gate_proj(x), mlp.up_proj(x)
    assert_near(layer(x), mlp.down_proj(ACT2FN[act](gate) * up).detach(), 1e-5)
    assert (layer.weights.b_gate is None) == (not mlp_bias)
    assert layer.to(torch.float64)(x.double()).dtype == torch.float64


def test_a_configuration_is_not_believed():
    model = tiny_llama("silu")
    model.model.layers[0].mlp.act_fn = torch.nn.Identity()
    assert [GatedMLP.from_model(model, layer).gate for layer in (0, 1)] == ["linear", "SiLU"]


def test_a_gate_that_is_none_of_them_is_refused():
    model = tiny_llama("tanh")
    with refused(
        ValueError, r"layer 2 must apply one of linear, SiLU, .*, but the nearest, .*, differs from its output"
    ):
        GatedMLP.from_model(model, 2)


def test_a_layer_without_a_gate_or_that_is_not_there_is_refused():
    model = tiny_llama("silu")
    with refused(ValueError, r"layer must be between 0 and 2 \(n_layers=3\), got 3"):
        GatedMLP.from_model(model, 3)
    del model.model.layers[0].mlp.gate_proj
    with refused(NotBilinearError, "layer 0 must have the three matrices W_gate, W_in, W_out, got LlamaMLP without"):
        GatedMLP.from_model(model, 0)


def test_a_bilinear_layer_is_the_same_read_either_way():
    model = tiny_llama("linear", mlp_bias=True)
    gated, bilinear = GatedMLP.from_model(model, 1), BilinearMLP.from_model(model, 1)
    x = randn(4, 12, dtype=torch.float32)
    assert gated(x).equal(bilinear(x))
    placed = gated.with_tensor(gated.weights)
    assert (placed.hook_in, placed.hook_out, placed.layer) == (bilinear.hook_in, bilinear.hook_out, 1)
    assert placed.input_aliases == bilinear.input_aliases


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize(("act", "name"), [("gelu", "GELU"), ("gelu_pytorch_tanh", "tanh-GELU"), ("silu", "SiLU")])
def test_gates_of_models_in_half_precision_are_told_apart(act, name, dtype):
    for seed in range(4):
        assert GatedMLP.from_model(tiny_llama(act, seed=seed).to(dtype), 1).gate == name
    with refused(ValueError, "must apply one of linear, SiLU"):
        GatedMLP.from_model(tiny_llama("quick_gelu").to(dtype), 1)
