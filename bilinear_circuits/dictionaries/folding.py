"""SAELens SAEs as four plain tensors and an activation rule, proved equal to the SAE."""

import copy
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from bilinear_circuits.dictionaries.activation import Activation

if TYPE_CHECKING:
    from sae_lens import SAE

_FOLD_TOLERANCE = 1e-8
_SUPPORTED = ("standard", "topk", "abstopk", "jumprelu", "gated")
_INPUT_DEPENDENT = ("layer_norm", "constant_norm_rescale")
_FOLDABLE = {
    "expected_average_only_in": "sae.fold_activation_norm_scaling_factor(factor)",
    "covariance_whitening": "sae.fold_activation_whitening(mean, whitening_matrix, unwhitening_matrix)",
}


class UnsupportedSAEError(ValueError):
    """The SAE is not one affine encoder, a sparsity rule and one affine decoder."""


def check_architecture(folder: Path, config: Mapping[str, Any]) -> None:
    """Refuse a folder of an architecture that SAELens does not load, before it tries.

    Raises:
        UnsupportedSAEError: If it is.
    """
    from sae_lens.registry import SAE_CLASS_REGISTRY, SAE_TRAINING_CLASS_REGISTRY

    architecture = config.get("architecture", "standard")
    _refuse_unknown(architecture, {*SAE_CLASS_REGISTRY, *SAE_TRAINING_CLASS_REGISTRY})
    if architecture not in SAE_CLASS_REGISTRY and "sae_lens_version" not in (config.get("metadata") or {}):
        raise UnsupportedSAEError(
            f"dictionary must be saved for inference, got {folder} of the architecture {architecture}, which SAELens"
            " has in training only, without the version that wrote it. Save it with sae.save_inference_model(path)."
        )


def load_sae(folder: Path, config: Mapping[str, Any], device: str) -> "SAE[Any]":
    """Load a SAELens SAE from its folder: its inference form, or the training form of an architecture with no other."""
    from sae_lens import SAE
    from sae_lens.registry import SAE_CLASS_REGISTRY
    from sae_lens.saes.sae import TrainingSAE

    training = config.get("architecture", "standard") not in SAE_CLASS_REGISTRY
    return (TrainingSAE if training else SAE).load_from_disk(folder, device=device, dtype="float32")


def inference_form(sae: "SAE[Any]") -> "SAE[Any]":
    """Bring an SAE still in training into the form that `save_inference_model` would write."""
    from sae_lens import SAE
    from sae_lens.saes.sae import TrainingSAE

    if not isinstance(sae, SAE):
        raise TypeError(f"sae must be a SAELens SAE or a Dictionary, got {type(sae).__name__}.")
    if not isinstance(sae, TrainingSAE):
        return sae
    config = sae.cfg.get_inference_sae_cfg_dict()
    state = {key: value.detach().clone() for key, value in sae.state_dict().items()}
    sae.process_state_dict_for_saving_inference(state)
    inference = SAE.from_dict(config)
    inference.load_state_dict(state)
    return inference


def _refuse_unknown(architecture: Any, known: Collection[str]) -> None:
    """Refuse an architecture that SAELens does not have, or that is no dictionary of one place."""
    if isinstance(architecture, str) and "transcoder" in architecture:
        raise UnsupportedSAEError(
            f"sae must decode the place it encodes, got a {architecture}: it reads one hook and writes another, so that"
            " what it writes are no directions of what it reads. Train a dictionary on each side of the MLP."
        )
    if architecture not in known:
        raise UnsupportedSAEError(
            f"architecture of a dictionary must be one of {', '.join(sorted(known))}, got {architecture!r:.40} in"
            " cfg.json. Save it with SAELens, or make its tensors a bilinear_circuits.Dictionary."
        )


def _refuse_unsupported(sae: "SAE[Any]") -> None:
    architecture, normalisation = sae.cfg.architecture(), sae.cfg.normalize_activations
    _refuse_unknown(architecture, {architecture})
    if architecture not in _SUPPORTED:
        raise UnsupportedSAEError(
            f"sae must be one affine encoder and decoder ({', '.join(_SUPPORTED)}; batchtopk and matryoshka as saved),"
            f" got architecture {architecture!r}, which has no encoder row per feature."
        )
    if normalisation in _INPUT_DEPENDENT:
        raise UnsupportedSAEError(
            f"sae must read activations as they are, got normalize_activations={normalisation!r}, which rescales each"
            " row by its own norm: no fixed encoder row does that. Train with normalize_activations='none'."
        )
    if normalisation in _FOLDABLE:
        raise UnsupportedSAEError(
            f"sae must have its activation scaling folded in, got normalize_activations={normalisation!r}."
            f" Call {_FOLDABLE[normalisation]} first."
        )
    if sae.cfg.reshape_activations != "none":
        raise UnsupportedSAEError(
            f"sae must read flat activations, got reshape_activations={sae.cfg.reshape_activations!r}."
            " Dictionaries on attention heads do not fit an MLP."
        )


def fold(sae: "SAE[Any]") -> tuple[Tensor, Tensor, Tensor, Tensor, Activation]:
    """Fold an SAE into W_enc, b_enc, W_dec, b_dec and an activation rule, in float64.

    Args:
        sae: An SAE in its inference form.

    Raises:
        UnsupportedSAEError: If its architecture or its input normalisation is not affine.
    """
    _refuse_unsupported(sae)
    W_enc, b_enc, W_dec, activation = _parts(sae)
    b_dec = sae.b_dec.detach().double()
    if sae.cfg.apply_b_dec_to_input:
        b_enc = b_enc - b_dec @ W_enc
    return W_enc, b_enc, W_dec, b_dec, activation


def _parts(sae: Any) -> tuple[Tensor, Tensor, Tensor, Activation]:
    """Encoder, encoder bias (decoder bias not yet subtracted), decoder and rule, in float64."""
    architecture = sae.cfg.architecture()
    W_enc, W_dec = sae.W_enc.detach().double(), sae.W_dec.detach().double()
    if architecture == "gated":
        scale = sae.r_mag.detach().double().exp()
        threshold = sae.b_mag.detach().double() - scale * sae.b_gate.detach().double()
        return W_enc * scale, sae.b_mag.detach().double(), W_dec, Activation("jumprelu", threshold=threshold)
    b_enc = sae.b_enc.detach().double()
    if architecture == "standard":
        return W_enc, b_enc, W_dec, Activation("relu")
    if architecture == "jumprelu":
        return W_enc, b_enc, W_dec, Activation("jumprelu", threshold=sae.threshold.detach().double())
    if sae.cfg.rescale_acts_by_decoder_norm:
        norm = W_dec.norm(dim=-1)
        W_enc, b_enc, W_dec = W_enc * norm, b_enc * norm, W_dec / norm.unsqueeze(1)
    return W_enc, b_enc, W_dec, Activation(architecture, k=sae.cfg.k)


@torch.no_grad()
def prove_folding(dictionary: Any, sae: Any, rows: int = 64) -> None:
    """Compare a folded dictionary with its SAE in float64, where rounding cannot change which features a top-k keeps.

    Raises:
        UnsupportedSAEError: If activations or reconstructions differ.
    """
    reference = copy.deepcopy(sae).to(dtype=torch.float64)
    generator = torch.Generator().manual_seed(0)
    scale = dictionary.b_dec.norm() / dictionary.d_in**0.5 + 1
    x = torch.randn(rows, dictionary.d_in, generator=generator, dtype=torch.float64).to(scale.device) * scale
    expected = reference.encode(x)
    for what, got, want in (
        ("activations", dictionary.encode(x), expected),
        ("reconstructions", dictionary.decode(dictionary.encode(x)), reference.decode(expected)),
    ):
        error = ((got - want).norm() / want.norm().clamp_min(1e-12)).item()
        if not error < _FOLD_TOLERANCE:
            raise UnsupportedSAEError(
                f"{dictionary.name} must fold into encoder rows, decoder rows and biases, but its {what} differ from"
                f" those of the SAE by {error:.2g} relative on random input. Is it a subclass with its own encode?"
            )
