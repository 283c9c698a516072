"""Import: published bilinear models and dictionaries as stock Hugging Face Llama and SAELens objects.

1. A model becomes a Llama with hidden_act="linear": its projections are split, and the scale 1/sqrt(2 n_layer) of the
   attention output is folded into the output projection (`to_llama`).
2. A dictionary becomes a SAELens TopK SAE: its input scale is folded into both sides (`to_saelens`).

Every key of both files is known or refused by name, because an unknown one may change what is computed.
"""

import fnmatch
import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Float
from torch import Tensor

from bilinear_circuits.dictionaries import Dictionary

if TYPE_CHECKING:
    from sae_lens.saes.topk_sae import TopKSAE
    from transformers import LlamaConfig

HOOK_NAMES = {
    "mlp-in": "mlp.hook_in",
    "mlp-out": "mlp.hook_out",
    "resid-pre": "hook_resid_pre",
    "resid-mid": "hook_resid_mid",
    "resid-post": "hook_resid_post",
}
TOPK_RULE = (
    "the source keeps its k largest pre-activations without a ReLU, SAELens clips them at 0: equal on every row where"
    " at least k pre-activations are not negative; elsewhere the negative ones that the source keeps are 0"
)
_DTYPES = (torch.float64, torch.float32, torch.float16, torch.bfloat16)
_EPS, _ROPE_BASE = 1e-8, 10000.0
_SIZES = ("n_head", "n_layer", "n_ctx", "d_model", "d_hidden")
_HOUSEKEEPING = ("architectures", "auto_map", "dtype", "model_type", "torch_dtype", "transformers_version")


def to_llama(
    config: Mapping[str, Any], tensors: Mapping[str, Tensor], tokenizer: Any = None, ignore: Sequence[str] = ()
) -> tuple["LlamaConfig", dict[str, Tensor]]:
    """The model as configuration and weights of a stock Llama with hidden_act="linear", in the dtype published.

    Left and right halves of the MLP become gate_proj and up_proj (their product commutes), norms without a weight get
    a weight of ones, and each o_proj is attn.o / sqrt(2 n_layer), computed in float64. Known from the format's
    description and not from its files: RMSNorm with eps 1e-8 before each part and before the unembedding, attention
    logits over sqrt(d_head), rotary embedding by rotated halves with base 10000.

    Args:
        config: Content of config.json.
        tensors: Weights by their published names.
        tokenizer: Gives the ids of special tokens; without one the configuration names none.
        ignore: Patterns of further keys, of config.json or weights, that are known not to change what is computed.

    Raises:
        ValueError: If a key is unknown or missing, a shape is wrong, or a Llama cannot compute the model.
    """
    sizes = _model_sizes(config, ignore)
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
    dtype = _check_tensors(tensors, shapes, ignore)
    weights = {
        "model.embed_tokens.weight": tensors["transformer.wte.weight"],
        "model.norm.weight": torch.ones(d_model, dtype=dtype),
        "lm_head.weight": tensors["lm_head.weight"],
    }
    for i in range(n_layer):
        weights |= _llama_block(tensors, i, (2 * n_layer) ** -0.5)
    # Views of one tensor share their memory, which safetensors refuses to write.
    return _llama_config(sizes, d_vocab, dtype, tokenizer), {name: one.clone() for name, one in weights.items()}


def to_saelens(
    config: Mapping[str, Any],
    tensors: Mapping[str, Tensor],
    layer: int | None = None,
    b_dec_on_input: bool = False,
    ignore: Sequence[str] = (),
    metadata: Mapping[str, Any] | None = None,
) -> "TopKSAE":
    """The dictionary as a SAELens TopK SAE, in the dtype published.

    The source computes z = topk(w_enc x / normalize) and normalize (w_dec z + b_dec), where topk keeps the k largest
    values with their sign. `normalize` is folded: W_enc = w_enc^T / normalize, W_dec = normalize w_dec^T.

    No SAELens architecture ranks by value and keeps the sign: topk clips what it keeps at 0, abstopk ranks by
    magnitude, jumprelu does not rank. A constant added to b_enc would keep the ranks and avoid the clipping, but add
    itself times the sum of the kept decoder rows, which differs from row to row. So the result is a topk: exact on
    every row where at least k pre-activations are not negative, as is usual where d_sae is far above k; on other rows
    the negative values are missing. `clipped_share` measures how often, and the metadata says it.

    Args:
        config: Content of config.json.
        tensors: Weights by their published names.
        layer: Layer of the model, where config.json does not hold it.
        b_dec_on_input: Whether the source also subtracts b_dec from its scaled input, as some dictionaries do.
        ignore: Patterns of further keys, of config.json or weights, that are known not to change what is computed.
        metadata: Further entries for the SAELens metadata, such as model_name.

    Raises:
        ValueError: If a key is unknown or missing, a shape is wrong, or the point has no hook name.
    """
    from sae_lens.saes.sae import SAEMetadata
    from sae_lens.saes.topk_sae import TopKSAE, TopKSAEConfig

    _check_keys(config, ("point", "expansion", "k"), ("normalize", "layer"), ignore)
    hook_name, scale = _hook_name(config, layer), _scale(config)
    d_sae, d_in = _dictionary_sizes(tensors, config)
    dtype = _check_tensors(
        tensors, {"w_enc.weight": (d_sae, d_in), "w_dec.weight": (d_in, d_sae), "b_dec": (d_in,)}, ignore
    )
    if (k := _positive(config, "k")) > d_sae:
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
    folded = {"W_enc": w_enc.T / scale, "W_dec": w_dec.T * scale, "b_dec": b_dec * scale, "b_enc": torch.zeros(d_sae)}
    sae = TopKSAE(sae_config)
    sae.load_state_dict({name: one.to(dtype).contiguous() for name, one in folded.items()})
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


def _check_keys(
    config: Mapping[str, Any], required: Sequence[str], optional: Sequence[str], ignore: Sequence[str]
) -> None:
    """Refuse missing and unknown keys of config.json."""
    for key in required:
        if key not in config:
            raise ValueError(f"config.json must hold {', '.join(required)}, got none named {key}.")
    for key in config:
        if key not in (*required, *optional, *_HOUSEKEEPING) and not _matches(key, ignore):
            raise ValueError(
                f"config.json must hold only keys that are understood ({', '.join((*required, *optional))}), got"
                f" {key}={config[key]!r:.60}. Pass --ignore {key} if it does not change what is computed."
            )


def _check_tensors(
    tensors: Mapping[str, Tensor], shapes: Mapping[str, tuple[int, ...]], ignore: Sequence[str]
) -> torch.dtype:
    """Refuse missing, unknown, misshapen and non-finite weights; their common dtype."""
    for name, shape in shapes.items():
        if name not in tensors:
            raise ValueError(f"weights must hold {name}, got none of that name among {len(tensors)}.")
        if (got := tuple(tensors[name].shape)) != shape:
            raise ValueError(
                f"{name} must have the shape {shape} that config.json and the other weights give, got {got}."
            )
        if tensors[name].dtype not in _DTYPES:
            raise ValueError(f"{name} must be of one of {_DTYPES}, got {tensors[name].dtype}.")
        if n_bad := int((~tensors[name].isfinite()).sum()):
            raise ValueError(f"{name} must be finite, got {n_bad} infinite or undefined entries.")
    for name in tensors:
        if name not in shapes and not _matches(name, ignore):
            raise ValueError(
                f"weights must hold only names that are understood, got {name}, {tuple(tensors[name].shape)}."
                f" Pass --ignore {name} if it does not change what is computed (* matches any part)."
            )
    dtypes = {tensors[name].dtype for name in shapes}
    if len(dtypes) > 1:
        raise ValueError(f"weights must have one dtype, got {', '.join(sorted(map(str, dtypes)))}.")
    return dtypes.pop()


def _matches(name: str, patterns: Sequence[str]) -> bool:
    return any(fnmatch.fnmatchcase(name, pattern) for pattern in patterns)


def _positive(config: Mapping[str, Any], key: str) -> int:
    value = config[key]
    if type(value) is not int or value < 1:
        raise ValueError(f"{key} of config.json must be a positive whole number, got {value!r}.")
    return value


def _model_sizes(config: Mapping[str, Any], ignore: Sequence[str]) -> dict[str, int]:
    _check_keys(config, (*_SIZES, "bias", "normalization"), ("tokenizer",), ignore)
    sizes = {key: _positive(config, key) for key in _SIZES}
    if config["bias"] is not False:
        raise ValueError(
            f"bias of config.json must be false: the format has no keys for biases, got {config['bias']!r}."
        )
    if config["normalization"] is not True:
        got = config["normalization"]
        raise ValueError(f"normalization of config.json must be true: a Llama always has its RMSNorms, got {got!r}.")
    if sizes["d_model"] % sizes["n_head"] or sizes["d_model"] // sizes["n_head"] % 2:
        raise ValueError(
            "d_model of config.json must be n_head times an even number, for rotary embeddings, got"
            f" d_model={sizes['d_model']} and n_head={sizes['n_head']}."
        )
    return sizes


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
        rope_parameters={"rope_type": "default", "rope_theta": _ROPE_BASE},
        tie_word_embeddings=False,
        dtype=dtype,
        **special,
    )


def _hook_name(config: Mapping[str, Any], layer: int | None) -> str:
    """Name of the published point in TransformerLens; an attention point would not say whether it is scaled."""
    point, known = config["point"], config.get("layer")
    if not isinstance(point, str) or point not in HOOK_NAMES:
        raise ValueError(
            f"point of config.json must be one of {', '.join(HOOK_NAMES)}, got {point!r}: no hook of the imported model"
            " is known to be that place."
        )
    if layer is not None and known is not None and layer != known:
        raise ValueError(f"layer must be that of config.json, {known}, got {layer}.")
    layer = known if layer is None else layer
    if type(layer) is not int or layer < 0:
        raise ValueError(f"layer must be a whole number from 0 for the point {point}, got {layer}. Pass --layer.")
    return f"blocks.{layer}.{HOOK_NAMES[point]}"


def _scale(config: Mapping[str, Any]) -> float:
    value = config.get("normalize")
    if value is None:
        return 1.0
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value < math.inf:
        raise ValueError(f"normalize of config.json must be null or a positive number, got {value!r}.")
    return float(value)


def _dictionary_sizes(tensors: Mapping[str, Tensor], config: Mapping[str, Any]) -> tuple[int, int]:
    """Features and width, from the encoder, checked against the expansion."""
    if "w_enc.weight" not in tensors:
        raise ValueError(f"weights must hold w_enc.weight, got only {', '.join(tensors) or 'none'}.")
    expansion, shape = _positive(config, "expansion"), tuple(tensors["w_enc.weight"].shape)
    if len(shape) != 2 or shape[0] != shape[1] * expansion:
        raise ValueError(
            f"w_enc.weight must be ({expansion} d_in, d_in), by the {expansion=} of config.json, got {shape}."
        )
    return shape[0], shape[1]
