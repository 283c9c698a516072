"""Folders of dictionaries: what SAELens reads too, and directions of the rule "identity", which it does not know."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from bilinear_circuits.dictionaries.activation import Activation
from bilinear_circuits.utilities.folders import check_safetensors, ordinary_mode, read_json

CONFIG, WEIGHTS = "cfg.json", "sae_weights.safetensors"
_ARCHITECTURES = {"relu": "standard"}  # others are called alike
_TENSORS = ("W_enc", "b_enc", "W_dec", "b_dec")


def check_folder(folder: Path) -> dict[str, Any]:
    """Read the configuration of a folder whose two files are there and sound.

    Raises:
        FileNotFoundError: If one of them is missing.
        ValueError: If one of them is damaged.
    """
    for file in (CONFIG, WEIGHTS):
        if not (folder / file).is_file():
            raise FileNotFoundError(f"{folder} must be a SAELens folder, but has no {file}.")
    config = read_json(folder / CONFIG, CONFIG)
    check_safetensors(folder / WEIGHTS)
    return config


def read_directions(folder: Path, config: Mapping[str, Any], device: str) -> tuple[str | None, dict[str, Tensor]]:
    """Read the hook name and the four tensors of a folder of the rule "identity".

    Raises:
        ValueError: If the tensors are others.
    """
    from safetensors.torch import load_file

    tensors = load_file(folder / WEIGHTS, device)
    if set(tensors) != set(_TENSORS) or [tensors[name].ndim for name in _TENSORS] != [2, 1, 2, 1]:
        held = ", ".join(f"{name} {tuple(tensor.shape)}" for name, tensor in sorted(tensors.items())) or "none"
        raise ValueError(f"{WEIGHTS} must hold the matrices W_enc and W_dec and their biases, got {held} in {folder}.")
    return (config.get("metadata") or {}).get("hook_name"), {name: tensor.float() for name, tensor in tensors.items()}


def write_folder(
    folder: str | Path,
    activation: Activation,
    tensors: Mapping[str, Tensor],
    metadata: Mapping[str, Any],
    dtype: torch.dtype,
    name: str,
) -> None:
    """Write cfg.json and sae_weights.safetensors.

    Args:
        folder: Where to write; made if missing.
        activation: The activation rule.
        tensors: W_enc, b_enc, W_dec and b_dec.
        metadata: SAELens metadata. The version of SAELens is added: without it SAELens drops all of it when loading.
        dtype: Precision of the weights.
        name: Name of the dictionary for the error.

    Raises:
        ValueError: If a weight is too large for `dtype`.
    """
    import sae_lens
    from safetensors.torch import save_file

    d_in, d_sae = tensors["W_enc"].shape
    held = dict(tensors)
    config: dict[str, Any] = {
        "architecture": _ARCHITECTURES.get(activation.kind, activation.kind),
        "d_in": d_in,
        "d_sae": d_sae,
        "dtype": "float32",
        "device": "cpu",
        "apply_b_dec_to_input": False,
        "normalize_activations": "none",
        "reshape_activations": "none",
    }
    if activation.k is not None:
        config |= {"k": activation.k, "rescale_acts_by_decoder_norm": False}
    if activation.threshold is not None:
        held["threshold"] = activation.threshold
    config["metadata"] = {**metadata, "sae_lens_version": sae_lens.__version__}
    saved = {key: tensor.detach().to("cpu", dtype).contiguous() for key, tensor in held.items()}
    for key, tensor in saved.items():
        if not tensor.isfinite().all():
            raise ValueError(f"{key} of {name} must be finite in {dtype}, got entries that are not.")
    Path(folder).mkdir(parents=True, exist_ok=True)
    save_file(saved, Path(folder) / WEIGHTS)
    ordinary_mode([Path(folder) / WEIGHTS])
    text = json.dumps(config, indent=1, ensure_ascii=False, allow_nan=False)
    (Path(folder) / CONFIG).write_text(text + "\n", encoding="utf-8")
