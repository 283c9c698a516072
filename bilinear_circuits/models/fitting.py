"""How bilinear and cubic layers are fitted to a gated MLP, and measured on inputs held out."""

from dataclasses import replace

import torch
from jaxtyping import Float
from torch import Tensor

from bilinear_circuits.algebra.cubic import CubicTensor
from bilinear_circuits.algebra.gate_fits import GateFit, fit_gates
from bilinear_circuits.algebra.layer_fits import TranscoderSettings, fit_affine, fit_transcoder
from bilinear_circuits.algebra.tensor import InteractionTensor
from bilinear_circuits.models.approximation import Approximation, Original
from bilinear_circuits.models.gates import GATES
from bilinear_circuits.utilities.kinds import check_finite, check_kind
from bilinear_circuits.utilities.progress import Progress

HELD_OUT = 0.1
"""Share of inputs, or of stories, that fits are measured on where no others are given."""
METHODS = {
    "gates": "affine functions",
    "output": "affine functions, W_out solved again,",
    "transcoder": "a bilinear transcoder",
}
"""How a bilinear layer is made, in words, by how much of it is fitted."""
_ROWS = 1024


def fitted_bilinear(
    original: Original,
    gates: GateFit,
    x: Float[Tensor, "n d_in"],
    solve_output: bool,
    transcoder: TranscoderSettings | None,
    progress: Progress,
) -> tuple[InteractionTensor, str]:
    """Fit a bilinear layer to an MLP; the layer, and how it was made."""
    if original.gate == "linear":
        return original.weights, METHODS["gates"]
    tensor = CubicTensor(original.weights, torch.nn.functional.pad(gates.coefficients, (0, 1))).quadratic
    if not solve_output and transcoder is None:
        return tensor, METHODS["gates"]
    tensor = _output_solved(original, tensor, x)
    if transcoder is None:
        return tensor, METHODS["output"]
    return fit_transcoder(tensor, x, original, transcoder, progress), METHODS["transcoder"]


def fitted_and_held_out(original: Original, x: Tensor, held_out: Tensor | None) -> tuple[Tensor, Tensor]:
    """Check inputs, and divide them into those to fit on and those to measure on."""
    d_in = original.weights.d_in
    for name, rows in (("activity", x), ("held_out", held_out)):
        if rows is None:
            continue
        check_kind(
            name, rows, Tensor, "Pass inputs of the MLP, (n, d_in): mlp_inputs(model, tokens, [layer]) has them."
        )
        if rows.ndim != 2 or rows.shape[1] != d_in or len(rows) < 2:
            raise ValueError(f"{name} must be two rows or more of d_in={d_in} entries, got shape {tuple(rows.shape)}.")
        check_finite(name, rows)
    x = x.to(original.weights.W_gate)
    if held_out is not None:
        return x, held_out.to(x)
    n = max(2, round(HELD_OUT * len(x)))
    if len(x) < n + 2:
        raise ValueError(f"activity must be four rows or more where none are held out besides, got {len(x)}.")
    return x[:-n], x[-n:]


def fitted_gates(original: Original, x: Tensor, order: int) -> GateFit:
    """Fit polynomials to the gates; exact ones where the gate is linear."""
    fit = fit_gates((original.weights.projections(rows) for rows in x.split(_ROWS)), GATES[original.gate], order)
    if original.gate != "linear":
        return fit
    exact = torch.zeros_like(fit.coefficients)
    exact[:, 1] = 1
    return replace(fit, coefficients=exact, remainder=torch.zeros_like(fit.remainder))


def _output_solved(original: Original, tensor: InteractionTensor, x: Tensor) -> InteractionTensor:
    """The layer with W_out and b_out that are best for its own neurons."""

    def neurons(rows: Tensor) -> Tensor:
        gate, other = tensor.projections(rows)
        return gate * other

    solved = fit_affine((neurons(rows), original(rows)) for rows in x.split(_ROWS))
    return replace(tensor, W_out=solved.weight.to(tensor.W_out), b_out=solved.bias.to(tensor.W_out))


def measured(
    original: Original,
    tensor: InteractionTensor | CubicTensor,
    method: str,
    gates: GateFit,
    fitted: Tensor,
    held_out: Tensor,
) -> Approximation:
    """Measure how near a layer is, and the control."""
    linear = fit_affine((rows, original(rows)) for rows in fitted.split(_ROWS))
    n, square, total = len(held_out), 0.0, torch.zeros(held_out.shape[1], dtype=torch.double, device=held_out.device)
    missed = {"layer": 0.0, "linear": 0.0}
    for rows in held_out.split(_ROWS):
        wanted = original(rows).double()
        total, square = total + wanted.sum(0), square + wanted.square().sum().item()
        for name, layer in (("layer", tensor), ("linear", linear)):
            missed[name] += (layer(rows).double() - wanted).square().sum().item()
    variance = square - (total.square().sum() / n).item()
    if not variance > 0:
        raise ValueError(f"held_out must be inputs at which the MLP gives different outputs, got {n} alike.")
    fvu, linear_fvu = (one / variance for one in missed.values())
    return Approximation(original, method, gates, fvu, linear_fvu, linear, len(fitted), n)
