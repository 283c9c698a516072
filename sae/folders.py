"""A dictionary as a SAELens folder that SAELens and `Dictionary.load` read alike."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from bilinear_circuits.dictionaries.dictionary import Dictionary, UnsupportedSAEError

_ARCHITECTURES = {"relu": "standard", "jumprelu": "jumprelu", "topk": "topk", "abstopk": "abstopk"}
_RELOAD = (
    "model: bilinear_circuits.load_model({model!r}), a TransformerBridge that is not in compatibility mode;"
    " dictionary: sae_lens.SAE.load_from_disk(folder) or bilinear_circuits.Dictionary.load(folder)"
)


def unit_rows(dictionary: Dictionary) -> Dictionary:
    """The same function with decoder rows of norm 1, where the sparsity rule permits it; as it is otherwise."""
    try:
        return dictionary.unit_norm()
    except UnsupportedSAEError:
        return dictionary


def reload_text(model_name: str) -> str:
    """How to read model and dictionary again, for the metadata."""
    return _RELOAD.format(model=model_name)


def write_dictionary(
    dictionary: Dictionary, folder: str | Path, metadata: Mapping[str, Any], dtype: torch.dtype = torch.float16
) -> None:
    """Write a SAELens inference folder: cfg.json and sae_weights.safetensors.

    The decoder bias is already folded into the encoder's, and no rescaling is left to do, so that SAELens computes
    the same activation(x W_enc + b_enc) W_dec + b_dec.

    Args:
        dictionary: The dictionary.
        folder: Where to write; made if missing.
        metadata: SAELens metadata. The version of SAELens is added: without it SAELens drops all of it when loading.
        dtype: Precision of the weights. Loaded, they are float32.

    Raises:
        ValueError: If a weight is too large for `dtype`.
    """
    import sae_lens
    from safetensors.torch import save_file

    tensors = {name: getattr(dictionary, name) for name in ("W_enc", "b_enc", "W_dec", "b_dec")}
    config: dict[str, Any] = {
        "architecture": _ARCHITECTURES[dictionary.activation.kind],
        "d_in": dictionary.d_in,
        "d_sae": dictionary.d_sae,
        "dtype": "float32",
        "device": "cpu",
        "apply_b_dec_to_input": False,
        "normalize_activations": "none",
        "reshape_activations": "none",
    }
    if dictionary.activation.k is not None:
        config |= {"k": dictionary.activation.k, "rescale_acts_by_decoder_norm": False}
    if dictionary.activation.threshold is not None:
        tensors["threshold"] = dictionary.activation.threshold
    config["metadata"] = {
        "hook_name": dictionary.hook_name,
        **metadata,
        "sae_lens_version": sae_lens.__version__,
    }
    saved = {name: tensor.detach().to("cpu", dtype).contiguous() for name, tensor in tensors.items()}
    for name, tensor in saved.items():
        if not tensor.isfinite().all():
            raise ValueError(f"{name} of {dictionary.name} must be finite in {dtype}, got entries that are not.")
    Path(folder).mkdir(parents=True, exist_ok=True)
    save_file(saved, Path(folder) / "sae_weights.safetensors")
    text = json.dumps(config, indent=1, ensure_ascii=False, allow_nan=False)
    (Path(folder) / "cfg.json").write_text(text + "\n", encoding="utf-8")
