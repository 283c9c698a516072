"""Random Llama-type models of every kind that a graph of a prompt knows, at sizes that are all unequal."""

import torch
from planted import save_between_dictionaries
from torch import nn

from bilinear_circuits.dictionaries.activation import Activation
from bilinear_circuits.dictionaries.dictionary import Dictionary
from bilinear_circuits.paths.run import FrozenRun

D_MODEL, D_HEAD, D_MLP, D_VOCAB = 12, 6, 20, 30
SIZES = {
    "vocab_size": D_VOCAB,
    "hidden_size": D_MODEL,
    "intermediate_size": D_MLP,
    "head_dim": D_HEAD,
    "max_position_embeddings": 32,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 0,
    "rms_norm_eps": 0.1,
    "tie_word_embeddings": False,
}
KINDS = (
    "bilinear",
    "silu",
    "tied",
    "biased",
    "ungated",
    "relu",
    "mistral",
    "qwen3",
    "gemma",
    "gemma2",
)
"""gemma: norms of 1 + w, scaled embeddings, tanh-GELU; gemma2: norms behind, soft caps, windows too."""


class Ungated(nn.Module):
    """An MLP of two projections and a GELU."""

    def __init__(self):
        super().__init__()
        self.up_proj, self.down_proj = nn.Linear(D_MODEL, D_MLP), nn.Linear(D_MLP, D_MODEL)
        self.act_fn = nn.GELU()

    def forward(self, x):
        return self.down_proj(self.act_fn(self.up_proj(x)))


def random_llama(kind="bilinear", n_layers=2, n_heads=4, n_groups=2, seed=0, **settings):
    """A model with random weights, biases and norms, in float32."""
    import transformers as hf

    sizes = SIZES | {"num_hidden_layers": n_layers, "num_attention_heads": n_heads, "num_key_value_heads": n_groups}
    configs = {
        "silu": (hf.LlamaConfig, hf.LlamaForCausalLM, {"hidden_act": "silu"}),
        "relu": (hf.LlamaConfig, hf.LlamaForCausalLM, {"hidden_act": "relu"}),
        "tied": (hf.LlamaConfig, hf.LlamaForCausalLM, {"hidden_act": "gelu", "tie_word_embeddings": True}),
        "biased": (hf.LlamaConfig, hf.LlamaForCausalLM, {"attention_bias": True, "mlp_bias": True}),
        "mistral": (hf.MistralConfig, hf.MistralForCausalLM, {"sliding_window": 3}),
        "qwen2": (hf.Qwen2Config, hf.Qwen2ForCausalLM, {}),
        "qwen3": (hf.Qwen3Config, hf.Qwen3ForCausalLM, {}),
        "gemma": (hf.GemmaConfig, hf.GemmaForCausalLM, {}),
        "gemma2": (
            hf.Gemma2Config,
            hf.Gemma2ForCausalLM,
            {"sliding_window": 3, "query_pre_attn_scalar": 7, "final_logit_softcapping": 5.0},
        ),
    }
    bilinear = (hf.LlamaConfig, hf.LlamaForCausalLM, {"hidden_act": "linear"})
    config, model_class, more = configs.get(kind, bilinear)
    model = model_class(config(**sizes | more | settings))
    if kind == "ungated":
        for block in model.model.layers:
            block.mlp = Ungated()
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in sorted(model.named_parameters()):
            values = 0.4 * torch.randn(parameter.shape, generator=generator)
            parameter.copy_(1 + values if "norm" in name else values)
    return model.eval()


def random_prompt(n_pos=5, seed=0):
    return torch.randint(3, D_VOCAB, (n_pos,), generator=torch.Generator().manual_seed(seed))


def random_dictionary(layer, d_sae=15, k=4, seed=0):
    """A TopK dictionary of an MLP output."""
    generator = torch.Generator().manual_seed(100 + seed)
    shapes = ((D_MODEL, d_sae), (d_sae,), (d_sae, D_MODEL), (D_MODEL,))
    weights = (torch.randn(shape, generator=generator, dtype=torch.float64) for shape in shapes)
    return Dictionary(*weights, Activation("topk", k), f"blocks.{layer}.mlp.hook_out")


def random_run(kind="bilinear", n_pos=5, seed=0, dictionaries=None, **arguments):
    """A run in float64."""
    model = random_llama(kind, seed=seed, **arguments)
    return FrozenRun(model, random_prompt(n_pos, seed), torch.float64, dictionaries)


def relative(actual, expected):
    """Largest difference, relative to the size of what is expected."""
    actual, expected = torch.as_tensor(actual), torch.as_tensor(expected)
    return ((actual - expected).abs().max() / expected.abs().max().clamp_min(1e-12)).item()


def saved_world(root):
    """A folder with a tiny model and dictionaries of its layer 1."""
    save_between_dictionaries(root, (1,), "model")
    return root


def verb_on(root):
    """A verb on that model."""
    from bilinear_circuits.cli import main

    return lambda name, *arguments: main([name, "--model", str(root / "model"), *map(str, arguments)])
