"""Gated MLPs with a polynomial in place of the function on each gate: bilinear and cubic layers, and what they miss."""

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import torch
from jaxtyping import Float
from torch import Tensor

from bilinear_circuits.algebra.cubic import CubicTensor
from bilinear_circuits.algebra.gate_fits import GateFit, fit_gates
from bilinear_circuits.algebra.layer_fits import AffineMap, TranscoderSettings, fit_affine, fit_transcoder
from bilinear_circuits.algebra.tensor import InteractionTensor
from bilinear_circuits.models.bilinear_mlp import BilinearMLP
from bilinear_circuits.models.gates import GATES
from bilinear_circuits.models.probe import RMSNorm
from bilinear_circuits.utilities.display import Brief
from bilinear_circuits.utilities.kinds import check_finite, check_kind
from bilinear_circuits.utilities.progress import Progress, silent

if TYPE_CHECKING:
    from bilinear_circuits.models.gated_mlp import GatedMLP

HELD_OUT = 0.1
_ROWS = 4096


@dataclass(frozen=True, eq=False, repr=False)
class Approximation(Brief):
    """What a layer stands for, and how near it is, on inputs that it was not fitted on.

    Attributes:
        original: The gated MLP.
        method: How the layer was made, in words.
        gates: The polynomials on its gates, with the error of each neuron on the inputs of the fit; for a layer fitted
            by gradient descent those it began with.
        fvu: Fraction of the variance of the MLP output that is unexplained.
        linear_fvu: The same of the best affine map of the input: what the layer has to beat.
        linear: That map.
        n_fitted: Inputs of the fit.
        n_held_out: Inputs of the two fractions.
    """

    original: "GatedMLP"
    method: str
    gates: GateFit
    fvu: float
    linear_fvu: float
    linear: AffineMap
    n_fitted: int
    n_held_out: int

    @property
    def recovered(self) -> float:
        """Share of the variance of the MLP output that the layer recovers: 1 - fvu."""
        return 1 - self.fvu

    def __str__(self) -> str:
        return (
            f"{self.method} in place of {self.original.gate} gates, {100 * self.recovered:.1f} % of the MLP output's"
            f" variance recovered (an affine map: {100 * (1 - self.linear_fvu):.1f} %)"
        )


@dataclass(frozen=True, eq=False, repr=False)
class CubicMLP(Brief):
    """One gated MLP with a quadratic polynomial on each gate.

    Attributes:
        tensor: The layer as a function of the activation at `hook_in`.
        layer: Index of the block.
        hook_in: Hook name of the MLP input.
        hook_out: Hook name of the MLP output.
        norm: The RMSNorm in front of the MLP, or None.
        approximation: The MLP that it stands for, and how near it is.
        input_aliases: Other hook names for the MLP input.
    """

    tensor: CubicTensor
    layer: int
    hook_in: str
    hook_out: str
    norm: RMSNorm | None
    approximation: Approximation
    input_aliases: tuple[str, ...] = ()

    def __call__(self, x: Float[Tensor, "*n d_in"]) -> Float[Tensor, "*n d_model"]:
        """Output of the layer for activations at `hook_in`."""
        return self.tensor(x)


@torch.no_grad()
def bilinear_fit(
    original: "GatedMLP",
    x: Float[Tensor, "n d_in"],
    solve_output: bool,
    transcoder: TranscoderSettings | None,
    progress: Progress = silent,
) -> BilinearMLP:
    """Put an affine function on every gate; see `GatedMLP.bilinear`."""
    fitted, held_out = _divided(original, x)
    gates = _gate_fit(original, fitted, 1)
    weights = original.weights
    tensor = weights if original.gate == "linear" else CubicTensor(weights, _three(gates)).quadratic
    method = "affine functions"
    if solve_output or transcoder is not None:
        tensor, method = _output_solved(original, tensor, fitted), f"{method}, W_out solved again,"
    if transcoder is not None:
        tensor, method = fit_transcoder(tensor, fitted, original(fitted), transcoder, progress), "a bilinear transcoder"
    return replace(
        original.with_tensor(tensor), approximation=_measured(original, tensor, method, gates, fitted, held_out)
    )


@torch.no_grad()
def cubic_fit(original: "GatedMLP", x: Float[Tensor, "n d_in"]) -> CubicMLP:
    """Put a quadratic function on every gate; see `GatedMLP.cubic`."""
    fitted, held_out = _divided(original, x)
    gates = _gate_fit(original, fitted, 2)
    tensor = CubicTensor(original.weights, gates.coefficients.to(original.weights.W_gate))
    approximation = _measured(original, tensor, "quadratic functions", gates, fitted, held_out)
    return CubicMLP(
        tensor, original.layer, original.hook_in, original.hook_out, original.norm, approximation,
        original.input_aliases,
    )  # fmt: skip


def _divided(original: "GatedMLP", x: Tensor) -> tuple[Tensor, Tensor]:
    """Inputs to fit on, and the last of them to measure on."""
    check_kind("activity", x, Tensor, "Pass inputs of the MLP, (n, d_in): mlp_inputs(model, tokens, layer) makes them.")
    d_in = original.weights.d_in
    if x.ndim != 2 or x.shape[1] != d_in or len(x) < 2:
        raise ValueError(f"activity must be two rows or more of d_in={d_in} entries, got shape {tuple(x.shape)}.")
    check_finite("activity", x)
    x = x.to(original.weights.W_gate)
    n = max(1, round(HELD_OUT * len(x)))
    return x[:-n], x[-n:]


def _gate_fit(original: "GatedMLP", x: Tensor, order: int) -> GateFit:
    """Polynomials on the gates; exact ones where the gate is linear."""
    fit = fit_gates((original.weights.projections(rows) for rows in x.split(_ROWS)), GATES[original.gate], order)
    if original.gate != "linear":
        return fit
    exact = torch.zeros_like(fit.coefficients)
    exact[:, 1] = 1
    return replace(fit, coefficients=exact, remainder=torch.zeros_like(fit.remainder))


def _three(gates: GateFit) -> Tensor:
    """Coefficients of an affine function as those of a quadratic one."""
    return torch.nn.functional.pad(gates.coefficients, (0, 1))


def _output_solved(original: "GatedMLP", tensor: InteractionTensor, x: Tensor) -> InteractionTensor:
    """The layer with W_out and b_out that are best for its own neurons."""

    def neurons(rows: Tensor) -> Tensor:
        gate, other = tensor.projections(rows)
        return gate * other

    solved = fit_affine((neurons(rows), original(rows)) for rows in x.split(_ROWS))
    return replace(tensor, W_out=solved.weight.to(tensor.W_out), b_out=solved.bias.to(tensor.W_out))


def _measured(
    original: "GatedMLP",
    tensor: InteractionTensor | CubicTensor,
    method: str,
    gates: GateFit,
    fitted: Tensor,
    held_out: Tensor,
) -> Approximation:
    """How near a layer is, and the control."""
    linear = fit_affine((rows, original(rows)) for rows in fitted.split(_ROWS))
    wanted = original(held_out).double()
    variance = (wanted - wanted.mean(0)).square().sum().clamp_min(1e-300)
    fvu, linear_fvu = (
        ((layer(held_out).double() - wanted).square().sum() / variance).item() for layer in (tensor, linear)
    )
    return Approximation(original, method, gates, fvu, linear_fvu, linear, len(fitted), len(held_out))
