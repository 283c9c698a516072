"""Whether a dictionary fits one side of an MLP, and a layer the MLP that it stands for."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch

from bilinear_circuits.algebra.tensor import InteractionTensor
from bilinear_circuits.dictionaries.dictionary import Dictionary, as_dictionary
from bilinear_circuits.models.approximation import Approximation, CubicMLP
from bilinear_circuits.models.bilinear_mlp import BilinearMLP, output_aliases

if TYPE_CHECKING:
    from sae_lens import SAE

LEAST_RECOVERED = 0.5
"""Of the variance of an MLP's output, by a layer fitted to it. Below, numbers say more of the fit than of the MLP."""


def check_fits(
    argument: str, dictionary: Dictionary, width: int, hook_name: str, aliases: tuple[str, ...], layer: int
) -> None:
    """Refuse a dictionary of another place than one side of an MLP.

    Args:
        argument: Name of the argument, for the error.
        dictionary: The dictionary.
        width: Width of the side.
        hook_name: Its hook.
        aliases: Other names of that hook.
        layer: Layer of the MLP.

    Raises:
        ValueError: If the width is another, or the dictionary was trained elsewhere.
    """
    if dictionary.d_in != width:
        raise ValueError(
            f"{argument} must fit layer {layer}, whose {hook_name} has width {width}, got {dictionary.name} with"
            f" W_enc {tuple(dictionary.W_enc.shape)}, of width {dictionary.d_in}."
        )
    if dictionary.hook_name is None or dictionary.hook_name in (hook_name, *aliases):
        return
    hint = ""
    if dictionary.hook_name == f"blocks.{layer}.ln2.hook_normalized":
        hint = " Read the MLP there with mlp.before_norm_weight()."
    raise ValueError(
        f"{argument} must be trained on {hook_name} of width {width}, got {dictionary.name} trained on"
        f" {dictionary.hook_name} with W_enc {tuple(dictionary.W_enc.shape)}.{hint}"
    )


def sides_of(
    mlp: BilinearMLP | CubicMLP,
    weights: InteractionTensor,
    sae_in: "Dictionary | SAE[Any] | None",
    sae_out: "Dictionary | SAE[Any] | None",
) -> tuple[Dictionary, Dictionary]:
    """Fold the dictionaries of an MLP's input and output, and check that they belong to it; None for coordinates.

    Both come in the widest dtype among them and the MLP, on its device.

    Args:
        mlp: The layer.
        weights: Its matrices.
        sae_in: Dictionary of its input.
        sae_out: Dictionary of its output.

    Raises:
        ValueError: See `check_fits`.
        UnsupportedSAEError: If an SAE cannot be folded.
    """
    inner = Dictionary.coordinates(weights.d_in, mlp.hook_in) if sae_in is None else as_dictionary(sae_in)
    outer = Dictionary.coordinates(weights.d_out, mlp.hook_out) if sae_out is None else as_dictionary(sae_out)
    check_fits("sae_in", inner, weights.d_in, mlp.hook_in, mlp.input_aliases, mlp.layer)
    check_fits("sae_out", outer, weights.d_out, mlp.hook_out, output_aliases(mlp.layer), mlp.layer)
    dtype, device = weights.W_gate.dtype, weights.W_gate.device
    for dictionary in (inner, outer):
        dtype = torch.promote_types(dtype, dictionary.W_enc.dtype)
    return inner.to(dtype).to(device), outer.to(dtype).to(device)


def described(name: str, mlp: BilinearMLP | CubicMLP, sae_in: Dictionary, sae_out: Dictionary) -> str:
    """Show a layer between its dictionaries, and what it recovers where it is a fit."""
    fit = "" if mlp.approximation is None else f"; {mlp.approximation}"
    sides = f"{sae_in.name!r} -> {sae_out.name!r}, features {sae_in.d_sae} -> {sae_out.d_sae}"
    return f"{name}(layer {mlp.layer}, {sides}{fit})"


def check_recovered(fit: Approximation | None, layer: int, least: float) -> None:
    """Refuse a layer fitted to a gated MLP that recovers too little of its output.

    Raises:
        ValueError: If it does.
    """
    if fit is not None and not fit.recovered >= least:
        nearer = "P"
        if "transcoder" not in fit.method:
            nearer = "Fit it nearer, as a transcoder (TranscoderSettings(), --approximate transcoder), or p"
        raise ValueError(
            f"mlp must recover {least:.2f} of the variance of the MLP output or more, got {fit.recovered:.3g} in layer"
            f" {layer}: {fit}. {nearer}ass a lower least_recovered (--least-recovered)."
        )


def approximations(mlps: Sequence[BilinearMLP]) -> dict[str, dict[str, str]]:
    """Say in a provenance which layers are fits to others, and what they recover; nothing where none is."""
    fits = {str(mlp.layer): str(mlp.approximation) for mlp in mlps if mlp.approximation is not None}
    return {"approximations": fits} if fits else {}
