"""The own forward pass of a frozen run: equal to the model's, or refused."""

from pathlib import Path

import pytest
import torch
from helpers import refused, tiny_hooked_transformer, tiny_llama
from llamas import KINDS, SIZES, random_llama, random_prompt, relative

import bilinear_circuits as bc
from bilinear_circuits.paths.forward import gate_factor
from bilinear_circuits.paths.run import FrozenRun

STORIES = Path(__file__).parents[2] / "shared/weights/stories-260k"


@pytest.mark.parametrize("kind", KINDS)
def test_logits_and_patterns_are_the_models(kind):
    model = random_llama(kind, n_layers=3)
    model.set_attn_implementation("eager")
    tokens = random_prompt(9)
    run = FrozenRun(model, tokens, torch.float64)
    with torch.no_grad():
        out = model(tokens.unsqueeze(0), output_attentions=True)
    assert relative(run.logits, out.logits[0].double()) < 1e-5
    assert relative(run.patterns, torch.stack(out.attentions)[:, 0].double()) < 1e-5


def test_the_precision_is_the_models_or_the_one_asked_for():
    model, tokens = random_llama(), random_prompt()
    assert FrozenRun(model, tokens).logits.dtype == torch.float32
    assert FrozenRun(model.bfloat16(), tokens).logits.dtype == torch.float32
    assert FrozenRun(model.double(), tokens).logits.dtype == torch.float64


def test_the_shipped_model_under_its_bridge():
    model = bc.load_model()
    run = FrozenRun(model, bc.prompt_tokens("he did not want to be sad .", model.tokenizer, 256))
    assert run.sigma.eq(1).all()
    assert relative(run.logits, model(run.tokens.unsqueeze(0))[0].detach()) < 1e-5


@pytest.mark.skipif(not STORIES.is_dir(), reason="stories-260k is not beside this folder")
def test_a_model_trained_by_others():
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(STORIES).eval()
    tokens = torch.randint(3, 512, (20,), generator=torch.Generator().manual_seed(0))
    run = FrozenRun(model, tokens)
    with torch.no_grad():
        assert relative(run.logits, model(tokens.unsqueeze(0)).logits[0]) < 1e-5
    graph = FrozenRun(model, tokens, torch.float64).graph(int(run.logits[-1].argmax()))
    assert relative(graph.flow.cuts, torch.full_like(graph.flow.cuts, graph.total)) < 1e-9


@pytest.mark.parametrize(("act", "limit"), [("silu", 0.5), ("gelu", 0.5), ("linear", 1.0), ("gelu_pytorch_tanh", 0.5)])
def test_gate_factors_at_and_near_zero(act, limit):
    from transformers.activations import ACT2FN

    gate = torch.tensor([0.0, -0.0, 1e-20, -1e-14, 1e-3, -3.0, 50.0], dtype=torch.float64)
    sigma = gate_factor(gate, ACT2FN[act])
    torch.testing.assert_close(sigma[:4], torch.full((4,), limit, dtype=torch.float64), rtol=1e-9, atol=0)
    torch.testing.assert_close(sigma * gate, ACT2FN[act](gate), rtol=1e-9, atol=1e-15)


def test_gate_factors_keep_their_side_of_zero():
    gate = torch.tensor([-1e-20, 1e-20, -1.0, 1.0], dtype=torch.float64)
    assert gate_factor(gate, torch.relu).tolist() == [0, 1, 0, 1]


def other(name, **more):
    """A random model of another architecture."""
    import transformers as hf

    sizes = SIZES | {"num_hidden_layers": 2, "num_attention_heads": 2, "num_key_value_heads": 2} | more
    return getattr(hf, f"{name}ForCausalLM")(getattr(hf, f"{name}Config")(**sizes)).eval()


@pytest.mark.parametrize(
    ("name", "more", "found"),
    [
        ("GPTNeoX", {}, "got a GPTNeoXForCausalLM"),
        ("Mixtral", {}, "got a MixtralSparseMoeBlock"),
        ("Cohere", {}, "got a CohereLayerNorm as the final norm"),
        ("Olmo2", {}, "got layer 0 without it"),
        ("Phi3", {"original_max_position_embeddings": 32}, "got a Phi3Attention in layer 0 without it"),
        ("Granite", {"residual_multiplier": 0.5, "logits_scaling": 3.0}, "differ by .* of the largest"),
    ],
)
def test_other_architectures_are_refused_by_what_they_are(name, more, found):
    with refused(ValueError, rf"model must .*{found}"):
        FrozenRun(other(name, **more), random_prompt())


def test_models_without_a_plain_llama_are_refused():
    with refused(ValueError, "got a HookedTransformer.*attribute_prompt"):
        FrozenRun(tiny_hooked_transformer(act_fn="silu"), random_prompt())


def test_a_sigmoid_gate_is_refused():
    with refused(ValueError, "activation that is 0 at 0"):
        FrozenRun(tiny_llama(hidden_act="sigmoid"), random_prompt())


@pytest.mark.parametrize("tokens", [torch.tensor([30]), torch.zeros(0, dtype=torch.long), torch.ones(2, 2).long()])
def test_tokens_that_do_not_fit_are_refused(tokens):
    with refused(ValueError, "tokens must be"):
        FrozenRun(random_llama(), tokens)
