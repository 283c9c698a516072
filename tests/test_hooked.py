import pytest
import torch
from helpers import (
    assert_near,
    linear_activation,
    n_hooks,
    randn,
    random_tensor,
    random_tokens,
    refused,
    save_tiny_llama,
    tiny_hooked_transformer,
    tiny_llama,
)

from bilinear_circuits.models.bilinear_mlp import BilinearMLP, NotBilinearError
from bilinear_circuits.models.probe import RMSNorm
from bilinear_circuits.zoo import load_model

NORMALISATIONS = ("RMS", "RMSPre", "LN", "LNPre", None)
LINEAR_MODELS = ("llama", "llama with biases", "bridge", "bridge in compatibility mode, unprocessed")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return save_tiny_llama(tmp_path_factory.mktemp("tiny"))


@pytest.fixture(scope="module")
def models(folder):
    """The same random weights as a plain Llama and through the bridge, and a Llama with biases."""
    unprocessed = load_model(folder)
    unprocessed.enable_compatibility_mode(no_processing=True)
    every = (tiny_llama(), tiny_llama(mlp_bias=True), load_model(folder), unprocessed)
    return dict(zip(LINEAR_MODELS, every, strict=True))


@pytest.fixture
def linear():
    with linear_activation():
        yield


def seen_by(model, module, tokens):
    """What a module reads and writes, by a hook of the test's own."""
    seen = []
    handle = module.register_forward_hook(lambda module, args, output: seen.append((args[0].detach(), output.detach())))
    with torch.no_grad():
        model(tokens)
    handle.remove()
    (pair,) = seen
    return pair


def blocks_of(model):
    return model.model.layers if hasattr(model, "model") and hasattr(model.model, "layers") else model.blocks


def norm_of(block):
    return block.ln2 if hasattr(block, "ln2") else block.post_attention_layernorm


@pytest.mark.parametrize("layer", [0, 1, 2])
def test_bridge_and_llama_give_the_same_tensor(models, layer):
    plain, bridged = (BilinearMLP.from_model(models[name], layer) for name in ("llama", "bridge"))
    for name in ("W_gate", "W_in", "W_out"):
        torch.testing.assert_close(getattr(bridged.tensor, name), getattr(plain.tensor, name), rtol=0, atol=0)
    torch.testing.assert_close(bridged.norm.weight, plain.norm.weight, rtol=0, atol=0)
    assert (bridged.norm.eps, plain.norm.eps) == (0.1, 0.1)
    assert (bridged.hook_in, bridged.hook_out) == (plain.hook_in, plain.hook_out)
    assert plain.hook_in == f"blocks.{layer}.mlp.hook_in"


@pytest.mark.parametrize("name", LINEAR_MODELS)
@pytest.mark.parametrize("layer", [0, 2])
def test_tensor_reproduces_the_mlp(models, name, layer):
    model = models[name]
    mlp = BilinearMLP.from_model(model, layer)
    x, y = seen_by(model, blocks_of(model)[layer].mlp, random_tokens())
    assert y.abs().max() > 0.1
    assert_near(mlp(x), y)
    assert mlp.probe_error < 1e-6
    assert (mlp.layer, mlp.tensor.d_in, mlp.tensor.d_mlp, mlp.tensor.d_out) == (layer, 12, 20, 12)


def test_biases_of_the_projections_are_read(models):
    tensor = BilinearMLP.from_model(models["llama with biases"], 1).tensor
    mlp = models["llama with biases"].model.layers[1].mlp
    torch.testing.assert_close(tensor.b_gate, mlp.gate_proj.bias.detach())
    torch.testing.assert_close(tensor.b_in, mlp.up_proj.bias.detach())
    torch.testing.assert_close(tensor.b_out, mlp.down_proj.bias.detach())


@pytest.mark.parametrize("name", ["llama", "llama with biases", "bridge"])
def test_before_the_norm_weight_the_mlp_reads_the_normalised_residual(models, name):
    model = models[name]
    mlp = BilinearMLP.from_model(model, 1)
    block = blocks_of(model)[1]
    residual, x = seen_by(model, norm_of(block), random_tokens())
    _, y = seen_by(model, block.mlp, random_tokens())
    assert_near(mlp.norm(residual), x)
    normalised = residual / (residual.square().mean(-1, keepdim=True) + 0.1).sqrt()
    before = mlp.before_norm_weight()
    assert before.hook_in == "blocks.1.ln2.hook_normalized"
    assert_near(before(normalised), y)


@pytest.mark.parametrize("name", ["llama", "bridge"])
def test_on_the_residual_only_the_scale_is_left(models, name):
    model = models[name]
    block = blocks_of(model)[1]
    mlp = BilinearMLP.from_model(model, 1).on_residual()
    residual, _ = seen_by(model, norm_of(block), random_tokens())
    _, y = seen_by(model, block.mlp, random_tokens())
    assert mlp.hook_in == "blocks.1.hook_resid_mid"
    assert_near(mlp(residual) / mlp.norm.scale(residual).square(), y)


def test_a_norm_scale_does_not_factor_out_of_biases(models):
    with refused(ValueError, r"layer 1 must have no biases.*Use before_norm_weight\(\)"):
        BilinearMLP.from_model(models["llama with biases"], 1).on_residual()


def test_rms_norm_equals_its_formula():
    norm, x = RMSNorm(randn(6, seed=1), 0.5), randn(3, 6)
    expected = torch.empty(3, 6, dtype=torch.float64)
    for n in range(3):
        scale = (sum(x[n, i].item() ** 2 for i in range(6)) / 6 + 0.5) ** 0.5
        for i in range(6):
            expected[n, i] = x[n, i].item() / scale * norm.weight[i].item()
    assert_near(norm(x), expected)


@pytest.mark.parametrize("normalization_type", NORMALISATIONS)
def test_hooked_transformer_adds_b_in_after_the_product(linear, normalization_type):
    model = tiny_hooked_transformer(normalization_type)
    assert model.blocks[1].mlp.b_in.abs().max() > 0.1
    mlp = BilinearMLP.from_model(model, 1)
    x, y = seen_by(model, model.blocks[1].mlp, random_tokens())
    assert_near(mlp(x), y)
    weights = model.blocks[1].mlp
    assert mlp.tensor.b_gate is None
    assert mlp.tensor.b_in is None
    assert_near(mlp.tensor.b_out, (weights.b_in @ weights.W_out + weights.b_out).detach())
    assert mlp.hook_out == "blocks.1.hook_mlp_out"


@pytest.mark.parametrize("normalization_type", ["RMS", "RMSPre"])
def test_rms_norms_of_a_hooked_transformer_are_read(linear, normalization_type):
    model = tiny_hooked_transformer(normalization_type)
    mlp = BilinearMLP.from_model(model, 0)
    residual, x = seen_by(model, model.blocks[0].ln2, random_tokens())
    assert_near(mlp.norm(residual), x)
    assert ("blocks.0.ln2.hook_normalized" in mlp.input_aliases) == (normalization_type == "RMSPre")


@pytest.mark.parametrize("normalization_type", ["LN", "LNPre", None])
def test_a_layer_without_rms_norm_has_none(linear, normalization_type):
    mlp = BilinearMLP.from_model(tiny_hooked_transformer(normalization_type), 0)
    assert mlp.norm is None
    with refused(ValueError, "layer 0 must have an RMSNorm in front of its MLP, but none was found"):
        mlp.before_norm_weight()
    assert "blocks.0.mlp.gate.hook_in" in mlp.input_aliases
    assert ("blocks.0.ln2.hook_normalized" in mlp.input_aliases) == (normalization_type == "LNPre")
    assert ("blocks.0.hook_resid_mid" in mlp.input_aliases) == (normalization_type is None)


def test_the_norm_weight_is_folded_once(models):
    mlp = BilinearMLP.from_model(models["bridge"], 1)
    for once in (mlp.before_norm_weight(), mlp.on_residual()):
        with refused(
            ValueError, "norm weight of layer 1 must still be in front of the tensor, but it is already read at"
        ):
            once.before_norm_weight()
        with refused(ValueError, "already read at"):
            once.on_residual()


def test_an_output_bias_does_not_scale_with_the_norm(linear):
    mlp = BilinearMLP.from_model(tiny_hooked_transformer("RMS"), 0)
    assert mlp.tensor.b_out is not None
    with refused(ValueError, "layer 0 must have no biases"):
        mlp.on_residual()


def test_the_norm_goes_with_the_tensor_to_another_dtype(models):
    mlp = BilinearMLP.from_model(models["bridge"], 1)
    wide = mlp.to(torch.float64)
    assert wide.norm.weight.dtype == wide.before_norm_weight().tensor.W_gate.dtype == torch.float64


def test_aliases_name_the_same_places(models):
    mlp = BilinearMLP.from_model(models["bridge"], 1)
    assert mlp.input_aliases == ("blocks.1.ln2.hook_out", "blocks.1.mlp.gate.hook_in")
    assert set(mlp.output_aliases) == {"blocks.1.mlp.hook_out", "blocks.1.hook_mlp_out", "blocks.1.mlp.out.hook_out"}
    assert mlp.before_norm_weight().input_aliases == ()
    _, cache = models["bridge"].run_with_cache(random_tokens())
    for alias in set(mlp.input_aliases) & set(cache):
        torch.testing.assert_close(cache[alias], cache[mlp.hook_in], rtol=0, atol=0)
    assert mlp.hook_in in cache
    assert mlp.hook_out in cache


def test_bfloat16_is_accepted():
    mlp = BilinearMLP.from_model(tiny_llama().to(torch.bfloat16), 1)
    assert mlp.tensor.W_gate.dtype == torch.float32
    assert mlp.probe_error < 5e-2


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_gate_that_is_nearly_linear_at_small_weights_is_refused(dtype):
    model = tiny_llama("tanh")
    with torch.no_grad():
        for block in model.model.layers:
            block.mlp.gate_proj.weight.mul_(1e-3)
    with refused(NotBilinearError, "must compute"):
        BilinearMLP.from_model(model.to(dtype), 1)


def test_a_norm_that_adds_one_to_its_weight_is_an_rms_norm_of_that_weight():
    from transformers import GemmaConfig, GemmaForCausalLM

    config = GemmaConfig(
        hidden_act="linear", hidden_size=12, intermediate_size=14, num_hidden_layers=1, num_attention_heads=2,
        num_key_value_heads=1, head_dim=6, vocab_size=50, pad_token_id=0,
    )  # fmt: skip
    model = GemmaForCausalLM(config).eval()
    model.model.layers[0].post_attention_layernorm.weight.data = torch.linspace(-0.5, 0.5, 12)
    mlp = BilinearMLP.from_model(model, 0)
    assert mlp.probe_error < 1e-4
    assert mlp.norm.weight.equal(1 + torch.linspace(-0.5, 0.5, 12))


@pytest.mark.parametrize("layer", [3, -1])
def test_a_layer_out_of_range_is_refused(models, layer):
    with refused(ValueError, rf"layer must be between 0 and 2 \(n_layers=3\), got {layer}"):
        BilinearMLP.from_model(models["llama"], layer)


@pytest.mark.parametrize(
    ("hidden_act", "gate"),
    [("silu", "SiLU"), ("gelu", "GELU"), ("relu", "ReLU"), ("relu2", "squared ReLU"), ("sigmoid", "sigmoid")],
)
def test_other_gates_are_named(hidden_act, gate):
    with refused(NotBilinearError, rf"layer 1 must compute .* It applies a {gate} gate.*hidden_act='linear'"):
        BilinearMLP.from_model(tiny_llama(hidden_act), 1)


def test_an_unknown_gate_is_refused_without_a_name():
    with refused(NotBilinearError, r"on a probe batch\. Only layers without a nonlinearity"):
        BilinearMLP.from_model(tiny_llama("tanh"), 1)


def test_compatibility_mode_is_named_as_the_cause(folder):
    bridge = load_model(folder)
    bridge.enable_compatibility_mode()
    with refused(NotBilinearError, r"SiLU gate.*compatibility mode.*no_processing=True"):
        BilinearMLP.from_model(bridge, 1)


def test_an_mlp_without_gate_is_refused():
    model = tiny_hooked_transformer("LN", gated_mlp=False, act_fn="gelu")
    with refused(NotBilinearError, "must have the three matrices.*without W_gate.*has no gate"):
        BilinearMLP.from_model(model, 0)


def test_a_model_of_another_kind_is_refused():
    with refused(TypeError, "must be a TransformerBridge, a HookedTransformer or a Hugging Face Llama, got Linear"):
        BilinearMLP.from_model(torch.nn.Linear(2, 2), 0)


@pytest.mark.parametrize("name", ["llama", "bridge"])
def test_binding_leaves_no_hook(models, name):
    before = n_hooks(models[name])
    BilinearMLP.from_model(models[name], 1)
    assert n_hooks(models[name]) == before


def test_binding_leaves_no_hook_where_it_refuses():
    model = tiny_llama("silu")
    before = n_hooks(model)
    with refused(NotBilinearError, "SiLU"):
        BilinearMLP.from_model(model, 1)
    assert n_hooks(model) == before


def test_conversion_of_an_mlp_converts_its_tensor():
    mlp = BilinearMLP(random_tensor(), 0, "in", "out", None, 0.0).to(torch.float32)
    assert mlp.tensor.W_out.dtype == torch.float32
