"""What a layer with a polynomial on each gate stands for, and how near it is."""

from dataclasses import dataclass, replace
from typing import Protocol, runtime_checkable

import torch
from jaxtyping import Float
from torch import Tensor

from bilinear_circuits.algebra.cubic import CubicTensor
from bilinear_circuits.algebra.gate_fits import GateFit
from bilinear_circuits.algebra.layer_fits import AffineMap
from bilinear_circuits.algebra.tensor import InteractionTensor
from bilinear_circuits.models.probe import RMSNorm
from bilinear_circuits.utilities.display import Brief


@runtime_checkable
class Original(Protocol):
    """A gated MLP that layers are fitted to: a `GatedMLP`."""

    @property
    def weights(self) -> InteractionTensor:
        """Its matrices and biases."""
        ...

    @property
    def gate(self) -> str:
        """Name of the function on its gate."""
        ...

    def __call__(self, x: Float[Tensor, "*n d_in"]) -> Float[Tensor, "*n d_model"]:
        """Output of the MLP."""
        ...

    def to(self, target: torch.dtype | torch.device | str) -> "Original":
        """Copy it in another dtype or to another device."""
        ...

    def read_from(self, basis: Float[Tensor, "d_new d_in"], hook_in: str) -> "Original":
        """Read it as a function of z, where its input is z @ basis."""
        ...


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

    original: Original
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

    def __repr__(self) -> str:
        return f"Approximation({self})"

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

    def to(self, target: torch.dtype | torch.device | str) -> "CubicMLP":
        """Copy the MLP in another dtype or to another device."""
        fit = replace(self.approximation, original=self.approximation.original.to(target))
        norm = None if self.norm is None else RMSNorm(self.norm.weight.to(target), self.norm.eps)
        tensor = CubicTensor(self.tensor.weights.to(target), self.tensor.coefficients.to(target))
        return replace(self, tensor=tensor, norm=norm, approximation=fit)
