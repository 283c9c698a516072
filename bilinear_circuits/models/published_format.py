"""The format of published bilinear models and dictionaries: which keys they hold and which values can be imported.

What the keys mean is read off the publishing code, github.com/tdooms/bilinear-decomposition (src/language, src/sae).
Every key is known or refused by name, because an unknown one may change what is computed.
"""

import json
import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

HOOK_NAMES = {
    "mlp-in": "mlp.hook_in",
    "mlp-out": "mlp.hook_out",
    "resid-pre": "hook_resid_pre",
    "resid-mid": "hook_resid_mid",
    "resid-post": "hook_resid_post",
}
ROPE_BASE = 10000.0
_DTYPES = (torch.float64, torch.float32, torch.float16, torch.bfloat16)
_SIZES = ("n_head", "n_layer", "n_ctx", "d_model", "d_hidden")
_HOUSEKEEPING = (
    *("architectures", "auto_map", "dtype", "model_type", "torch_dtype", "transformers_version", "_name_or_path"),
    *("use_cache", "return_dict", "bos_token_id", "eos_token_id", "pad_token_id", "repo", "tokenizer"),
)
TRAINING_KEYS = (  # of a dictionary: how it was trained, and what it is called
    *("lr", "in_batch", "out_batch", "n_batches", "n_buffers", "n_ctx", "val_steps", "dead_thresh", "init_scale"),
    *("decoder_decay", "normalize_decoder", "tag"),
)
_REQUIRED_VALUES: Mapping[str, tuple[Any, str]] = {
    "bilinear": (True, "an MLP without a product of two projections is not bilinear"),
    "gate": (None, "a gate is a nonlinearity, so that the model is not bilinear"),
    "bias": (False, "published models have none, and none are read here"),
    "normalization": (True, "a Llama always has its RMSNorms"),
    "scale_attn": (True, "the attention output is scaled by 1 / sqrt(2 n_layer)"),
    "bilinear_encoder": (False, "a bilinear encoder has no encoder row per feature"),
    "token_lookup": (False, "a lookup of tokens is no function of the activation"),
    "kwargs": ({}, "options unknown to the publishing code may change what is computed"),
}
"""Values that the other keys of a config.json must have, where it holds them, and why no others can be imported."""


def check_keys(config: Mapping[str, Any], required: Sequence[str], optional: Sequence[str]) -> None:
    """Refuse missing and unknown keys of config.json, and values of known ones under which nothing can be imported."""
    for key in required:
        if key not in config:
            raise ValueError(f"config.json must hold {', '.join(required)}, got none named {key}.")
    for key, value in config.items():
        if key in _REQUIRED_VALUES:
            needed, reason = _REQUIRED_VALUES[key]
            if value != needed or type(value) is not type(needed):
                raise ValueError(f"{key} of config.json must be {json.dumps(needed)}, got {value!r:.60}: {reason}.")
        elif key not in (*required, *optional, *_HOUSEKEEPING):
            raise ValueError(
                f"config.json must hold only keys that are understood ({', '.join((*required, *optional))}), got"
                f" {key}={value!r:.60}, which may change what is computed: this folder is of another format."
            )


def check_tensors(tensors: Mapping[str, Tensor], shapes: Mapping[str, tuple[int, ...]]) -> torch.dtype:
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
        if name not in shapes:
            raise ValueError(
                f"weights must hold only names that are understood, got {name}, {tuple(tensors[name].shape)}, which may"
                " change what is computed: this folder is of another format."
            )
    dtypes = {tensors[name].dtype for name in shapes}
    if len(dtypes) > 1:
        raise ValueError(f"weights must have one dtype, got {', '.join(sorted(map(str, dtypes)))}.")
    return dtypes.pop()


def without_rotary(tensors: Mapping[str, Tensor], sizes: Mapping[str, int]) -> dict[str, Tensor]:
    """Leave out the stored frequencies of rotary embeddings, which must be those of the base known here."""
    d_head = sizes["d_model"] // sizes["n_head"]
    frequencies = ROPE_BASE ** (-torch.arange(0, d_head, 2).double() / d_head)
    names = [f"transformer.h.{i}.attn.rotary.inv_freq" for i in range(sizes["n_layer"])]
    for name in names:
        stored = tensors.get(name)
        if stored is not None and (
            stored.shape != frequencies.shape or not torch.allclose(stored.double(), frequencies, rtol=1e-2)
        ):
            raise ValueError(f"{name} must be that of the base {ROPE_BASE:.0f} at d_head={d_head}, got other numbers.")
    return {name: tensor for name, tensor in tensors.items() if name not in names}


def positive(config: Mapping[str, Any], key: str) -> int:
    """Read a whole number above 0."""
    value = config[key]
    if type(value) is not int or value < 1:
        raise ValueError(f"{key} of config.json must be a positive whole number, got {value!r}.")
    return value


def model_sizes(config: Mapping[str, Any]) -> dict[str, int]:
    """Read the sizes of a model, all other keys checked."""
    check_keys(config, (*_SIZES, "bias", "normalization"), ())
    sizes = {key: positive(config, key) for key in _SIZES}
    if sizes["d_model"] % sizes["n_head"] or sizes["d_model"] // sizes["n_head"] % 2:
        raise ValueError(
            "d_model of config.json must be n_head times an even number, for rotary embeddings, got"
            f" d_model={sizes['d_model']} and n_head={sizes['n_head']}."
        )
    return sizes


def published_hook_name(config: Mapping[str, Any], layer: int | None) -> str:
    """Name the published point as TransformerLens does; an attention point would not say whether it is scaled."""
    point, known = _point(config, "point")
    if point not in HOOK_NAMES:
        raise ValueError(
            f"point of config.json must be one of {', '.join(HOOK_NAMES)}, got {config['point']!r}: no hook of the"
            " imported model is known to be that place."
        )
    if config.get("target") is not None and _point(config, "target") != (point, known):
        raise ValueError(
            f"target of config.json must be null or the point {config['point']!r}, got {config['target']!r}: what reads"
            " one place and writes another is a transcoder and no dictionary of either."
        )
    if layer is not None and known is not None and layer != known:
        raise ValueError(f"layer must be that of config.json, {known}, got {layer}.")
    layer = known if layer is None else layer
    if type(layer) is not int or layer < 0:
        raise ValueError(f"layer must be a whole number from 0 for the point {point}, got {layer}. Pass --layer.")
    return f"blocks.{layer}.{HOOK_NAMES[point]}"


def _point(config: Mapping[str, Any], key: str) -> tuple[Any, Any]:
    """Name and layer of a point, written as a name beside `layer`, or as a list of both."""
    value = config[key]
    name, layer = value if isinstance(value, list) and len(value) == 2 else (value, config.get("layer"))
    return name.replace("_", "-") if isinstance(name, str) else None, layer


def input_scale(config: Mapping[str, Any]) -> float:
    """Read `normalize`, 1 where it is null."""
    value = config.get("normalize")
    if value is None:
        return 1.0
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value < math.inf:
        raise ValueError(f"normalize of config.json must be null or a positive number, got {value!r}.")
    return float(value)


def dictionary_sizes(tensors: Mapping[str, Tensor], config: Mapping[str, Any]) -> tuple[int, int]:
    """Read the number of features and the width off the encoder, checked against config.json."""
    if "w_enc.weight" not in tensors:
        raise ValueError(f"weights must hold w_enc.weight, got only {', '.join(tensors) or 'none'}.")
    expansion, shape = positive(config, "expansion"), tuple(tensors["w_enc.weight"].shape)
    if (d_model := config.get("d_model", shape[-1])) != shape[-1]:
        raise ValueError(f"d_model of config.json must be the width of w_enc.weight, {shape[-1]}, got {d_model!r}.")
    if len(shape) != 2 or shape[0] != shape[1] * expansion:
        raise ValueError(
            f"w_enc.weight must be ({expansion} d_in, d_in), by the {expansion=} of config.json, got {shape}."
        )
    return shape[0], shape[1]
