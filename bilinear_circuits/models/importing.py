"""Import: published bilinear models and dictionaries as stock Hugging Face Llama and SAELens objects.

1. A model becomes a Llama with hidden_act="linear": its projections are split, and the scale 1/sqrt(2 n_layer) of the
   attention output is folded into the output projection (`to_llama`).
2. A dictionary becomes a SAELens TopK SAE that subtracts b_dec from its input, as the source does (`to_saelens`).

What may stand in the two files is in `bilinear_circuits.models.published_format`.
"""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Float
from torch import Tensor

from bilinear_circuits.dictionaries.dictionary import Dictionary
from bilinear_circuits.models.published_format import (
    ROPE_BASE,
    TRAINING_KEYS,
    check_keys,
    check_tensors,
    dictionary_sizes,
    input_scale,
    model_sizes,
    positive,
    published_hook_name,
    without_rotary,
)

if TYPE_CHECKING:
    from sae_lens.saes.topk_sae import TopKSAE
    from transformers import LlamaConfig

TOPK_RULE = (
    "the source keeps its k largest pre-activations without a ReLU, SAELens clips them at 0: equal on every row where"
    " at least k pre-activations are not negative; elsewhere the negative ones that the source keeps are 0"
)
_EPS = 1e-8


def to_llama(
    config: Mapping[str, Any], tensors: Mapping[str, Tensor], tokenizer: Any = None
) -> tuple["LlamaConfig", dict[str, Tensor]]:
    """The model as configuration and weights of a stock Llama with hidden_act="linear", in the dtype published.

    Left and right halves of the MLP become gate_proj and up_proj (their product commutes), norms without a weight get
    a weight of ones, and each o_proj is attn.o / sqrt(2 n_layer), computed in float64. Known from the publishing code
    and not from its files: RMSNorm with eps 1e-8 before each part and before the unembedding, attention logits over
    sqrt(d_head), rotary embedding by rotated halves. Its base, 10000, is checked where the file holds the frequencies.

    Args:
        config: Content of config.json.
        tensors: Weights by their published names.
        tokenizer: Gives the ids of special tokens; without one the configuration names none.

    Raises:
        ValueError: If a key is unknown or missing, a shape is wrong, or a Llama cannot compute the model.
    """
    sizes = model_sizes(config)
    n_layer, d_model = sizes["n_layer"], sizes["d_model"]
    d_vocab = len(tensors.get("transformer.wte.weight", ()))
    shapes = {"transformer.wte.weight": (d_vocab, d_model), "lm_head.weight": (d_vocab, d_model)}
    for i in range(n_layer):
        shapes |= {
            f"transformer.h.{i}.attn.qkv.weight": (3 * d_model, d_model),
            f"transformer.h.{i}.attn.o.weight": (d_model, d_model),
            f"transformer.h.{i}.mlp.w.weight": (2 * sizes["d_hidden"], d_model),
            f"transformer.h.{i}.mlp.p.weight": (d_model, sizes["d_hidden"]),
        }
    dtype = check_tensors(without_rotary(tensors, sizes), shapes)
    weights = {
        "model.embed_tokens.weight": tensors["transformer.wte.weight"],
        "model.norm.weight": torch.ones(d_model, dtype=dtype),
        "lm_head.weight": tensors["lm_head.weight"],
    }
    for i in range(n_layer):
        weights |= _llama_block(tensors, i, (2 * n_layer) ** -0.5)
    # Views of one tensor share their memory, which safetensors refuses to write.
    return _llama_config(sizes, d_vocab, dtype, tokenizer), {name: tensor.clone() for name, tensor in weights.items()}


def to_saelens(
    config: Mapping[str, Any],
    tensors: Mapping[str, Tensor],
    layer: int | None = None,
    b_dec_on_input: bool = True,
    fold_normalize: bool = False,
    metadata: Mapping[str, Any] | None = None,
) -> "TopKSAE":
    """The dictionary as a SAELens TopK SAE, in the dtype published.

    The source computes z = topk(w_enc (x - b_dec) + w_enc.bias) and w_dec z + b_dec, where topk keeps the k largest
    values with their sign. It stores `normalize` and never applies it. With `fold_normalize` it is applied, as its
    name promises: topk(w_enc (x / normalize - b_dec) + w_enc.bias) and normalize (w_dec z + b_dec).

    No SAELens architecture ranks by value and keeps the sign: topk clips what it keeps at 0, abstopk ranks by
    magnitude, jumprelu does not rank. A constant added to b_enc would keep the ranks and avoid the clipping, but add
    itself times the sum of the kept decoder rows, which differs from row to row. So the result is a topk: exact on
    every row where at least k pre-activations are not negative, as is usual where d_sae is far above k; on other rows
    the negative values are missing. `clipped_share` measures how often, and the metadata says it.

    Args:
        config: Content of config.json.
        tensors: Weights by their published names.
        layer: Layer of the model, where config.json does not hold it.
        b_dec_on_input: Whether b_dec is subtracted from the input, as the publishing code does.
        fold_normalize: Whether to apply `normalize`.
        metadata: Further entries for the SAELens metadata, such as model_name.

    Raises:
        ValueError: If a key is unknown or missing, a shape is wrong, or the point has no hook name.
    """
    from sae_lens.saes.sae import SAEMetadata
    from sae_lens.saes.topk_sae import TopKSAE, TopKSAEConfig

    optional = ("normalize", "layer", "target", "d_model", "encoder_bias", *TRAINING_KEYS)
    check_keys(config, ("point", "expansion", "k"), optional)
    hook_name, scale = published_hook_name(config, layer), input_scale(config) if fold_normalize else 1.0
    d_sae, d_in = dictionary_sizes(tensors, config)
    shapes: dict[str, tuple[int, ...]] = {
        "w_enc.weight": (d_sae, d_in),
        "w_dec.weight": (d_in, d_sae),
        "b_dec": (d_in,),
    }
    if config.get("encoder_bias", False):
        shapes["w_enc.bias"] = (d_sae,)
    dtype = check_tensors(tensors, shapes)
    if (k := positive(config, "k")) > d_sae:
        raise ValueError(f"k must be at most the {d_sae} features of the dictionary, got {k}.")
    described = {"hook_name": hook_name, "source_point": config["point"], "source_activation": TOPK_RULE}
    sae_config = TopKSAEConfig(
        d_in=d_in,
        d_sae=d_sae,
        k=k,
        dtype=str(dtype).removeprefix("torch."),
        apply_b_dec_to_input=b_dec_on_input,
        metadata=SAEMetadata(**described, **(metadata or {})),
    )
    w_enc, w_dec, b_dec = (tensors[name].double() for name in ("w_enc.weight", "w_dec.weight", "b_dec"))
    b_enc = tensors["w_enc.bias"].double() if "w_enc.bias" in shapes else torch.zeros(d_sae, dtype=torch.double)
    folded = {"W_enc": w_enc.T / scale, "W_dec": w_dec.T * scale, "b_dec": b_dec * scale, "b_enc": b_enc}
    sae = TopKSAE(sae_config)
    sae.load_state_dict({name: tensor.to(dtype).contiguous() for name, tensor in folded.items()})
    return sae


def clipped_share(dictionary: Dictionary, x: Float[Tensor, "n d_in"]) -> float:
    """Share of rows on which an imported dictionary differs from its source: fewer than k pre-activations are >= 0.

    Raises:
        ValueError: If the dictionary is no TopK.
    """
    if dictionary.activation.kind != "topk" or dictionary.activation.k is None:
        raise ValueError(f"dictionary must be a topk one, got {dictionary.activation.kind}.")
    enough = (dictionary.pre_activations(x) >= 0).sum(-1) >= dictionary.activation.k
    return 1 - enough.double().mean().item()


def _llama_block(tensors: Mapping[str, Tensor], i: int, attention_scale: float) -> dict[str, Tensor]:
    source, target = f"transformer.h.{i}", f"model.layers.{i}"
    q, k, v = tensors[f"{source}.attn.qkv.weight"].chunk(3)
    left, right = tensors[f"{source}.mlp.w.weight"].chunk(2)
    o = tensors[f"{source}.attn.o.weight"]
    ones = torch.ones(o.shape[0], dtype=o.dtype)
    return {
        f"{target}.self_attn.q_proj.weight": q,
        f"{target}.self_attn.k_proj.weight": k,
        f"{target}.self_attn.v_proj.weight": v,
        f"{target}.self_attn.o_proj.weight": (o.double() * attention_scale).to(o.dtype),
        f"{target}.mlp.gate_proj.weight": left,
        f"{target}.mlp.up_proj.weight": right,
        f"{target}.mlp.down_proj.weight": tensors[f"{source}.mlp.p.weight"],
        f"{target}.input_layernorm.weight": ones,
        f"{target}.post_attention_layernorm.weight": ones,
    }


def _llama_config(sizes: Mapping[str, int], d_vocab: int, dtype: torch.dtype, tokenizer: Any) -> "LlamaConfig":
    from transformers import LlamaConfig

    special = {name: getattr(tokenizer, name, None) for name in ("bos_token_id", "eos_token_id", "pad_token_id")}
    return LlamaConfig(
        architectures=["LlamaForCausalLM"],
        hidden_act="linear",
        hidden_size=sizes["d_model"],
        intermediate_size=sizes["d_hidden"],
        num_hidden_layers=sizes["n_layer"],
        num_attention_heads=sizes["n_head"],
        num_key_value_heads=sizes["n_head"],
        max_position_embeddings=sizes["n_ctx"],
        vocab_size=d_vocab,
        rms_norm_eps=_EPS,
        rope_parameters={"rope_type": "default", "rope_theta": ROPE_BASE},
        tie_word_embeddings=False,
        dtype=dtype,
        **special,
    )
