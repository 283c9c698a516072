"""Binding: one gated MLP of an ordinary model, with the function on its gate proved on a probe batch."""

import copy
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from jaxtyping import Float
from torch import Tensor, nn

from bilinear_circuits.algebra.cubic import CubicTensor
from bilinear_circuits.algebra.layer_fits import TranscoderSettings
from bilinear_circuits.algebra.tensor import InteractionTensor
from bilinear_circuits.models.approximation import CubicMLP
from bilinear_circuits.models.bilinear_mlp import BilinearMLP, ProbedMLP, read_weights
from bilinear_circuits.models.fitting import fitted_and_held_out, fitted_bilinear, fitted_gates, measured
from bilinear_circuits.models.gates import GATES
from bilinear_circuits.models.host import Host
from bilinear_circuits.models.probe import TOLERANCE, RMSNorm, large_probe, relative_error
from bilinear_circuits.models.running import full_precision
from bilinear_circuits.utilities.display import Brief
from bilinear_circuits.utilities.kinds import check_kind
from bilinear_circuits.utilities.progress import Progress, silent

_PROBED = 64


@dataclass(frozen=True, eq=False, repr=False)
class GatedMLP(Brief):
    """One MLP x -> (act(x W_gate + b_gate) * (x W_in + b_in)) W_out + b_out, as of Llama, Qwen, Mistral and Gemma.

    Attributes:
        weights: Its matrices and biases, held as those of a layer whose gate is linear.
        gate: Name of act, a key of `GATES`.
        layer: Index of the block.
        hook_in: Hook name of the MLP input after the norm and its weight.
        hook_out: Hook name of the MLP output.
        norm: The RMSNorm in front of the MLP, or None.
        probe_error: Relative error against the model's own MLP on the probe batch.
        input_aliases: Other hook names for the MLP input.
    """

    weights: InteractionTensor
    gate: str
    layer: int
    hook_in: str
    hook_out: str
    norm: RMSNorm | None
    probe_error: float
    input_aliases: tuple[str, ...] = ()

    @classmethod
    @torch.no_grad()
    def from_model(cls, model: nn.Module, layer: int, probe_rows: int = 8) -> "GatedMLP":
        """Read the MLP of a layer and prove on a probe batch which function its gate applies.

        The output is rebuilt with every function of `GATES`, on random tokens and on the same inputs scaled up until
        the gates have a root mean square of 4, where the functions differ. No configuration string is trusted.

        Args:
            model: A TransformerBridge, a HookedTransformer or a Hugging Face model with Llama's modules.
            layer: Index of the block.
            probe_rows: Number of rows, of 8 tokens each, in the probe batch.

        Raises:
            NotBilinearError: If the layer has no gate.
            ValueError: If no function fits (relative error as for `BilinearMLP.from_model`), there is no such layer, or
                weights or activations are not finite.
            TypeError: If the model is of none of the three kinds.
        """
        found = ProbedMLP.of(model, layer, probe_rows)
        batches: Sequence[tuple[Tensor, Tensor]] = found.batches
        tolerance = found.tolerance
        if found.host.dtype in (torch.float16, torch.bfloat16):  # whose rounding is as large as gates differ
            mlp = copy.deepcopy(found.host.blocks[layer].mlp).float()
            batches = [(x, full_precision(mlp(x))) for x, _ in found.batches]
            tolerance = TOLERANCE[torch.float32]
        best, error = _proved_gate(found.weights, batches, layer, tolerance)
        norm = found.norm()
        return cls(found.weights, best, layer, *found.hook_names, norm, error, found.input_aliases(norm))

    @classmethod
    @torch.no_grad()
    def from_inputs(cls, host: Host, layer: int, x: Float[Tensor, "n d_in"]) -> "GatedMLP":
        """Read the MLP of a block and prove its gate on given inputs, where the model is not there as a whole.

        Args:
            host: A model with the weights of this block.
            layer: Index of the block.
            x: Inputs of its MLP.

        Raises:
            NotBilinearError: If the layer has no gate.
            ValueError: See `from_model`.
        """
        weights, mlp = read_weights(host, layer), host.blocks[layer].mlp
        if not x.isfinite().all():
            raise ValueError(
                f"model must give finite activations, got others in front of the MLP of layer {layer}. Weights before"
                " it may not be finite."
            )
        some = x[:_PROBED]
        batches = ((some, mlp(some)), large_probe(mlp, weights.W_gate, some, some.dtype))
        best, error = _proved_gate(weights, batches, layer, TOLERANCE[some.dtype])
        return cls(weights, best, layer, *host.hook_names(layer), None, error)

    def __call__(self, x: Float[Tensor, "*n d_in"]) -> Float[Tensor, "*n d_model"]:
        """MLP output for activations at `hook_in`."""
        return self.weights.gated(x, GATES[self.gate])

    def to(self, target: torch.dtype | torch.device | str) -> "GatedMLP":
        """Copy the MLP in another dtype or to another device."""
        norm = None if self.norm is None else RMSNorm(self.norm.weight.to(target), self.norm.eps)
        return replace(self, weights=self.weights.to(target), norm=norm)

    def bilinear(
        self,
        activity: Float[Tensor, "n d_in"],
        *,
        held_out: Float[Tensor, "m d_in"] | None = None,
        solve_output: bool = False,
        transcoder: TranscoderSettings | None = None,
        progress: Progress = silent,
    ) -> BilinearMLP:
        """Fit a bilinear layer to this one: an affine function c0 + c1 g in place of the one on each gate.

        The functions are fitted neuron by neuron on the gates that occur, weighted with the other factor squared. The
        layer has the matrices of the MLP, W_gate scaled by c1 and b_gate by it and shifted by c0; a bilinear MLP comes
        back as it is. `approximation` says what is recovered on inputs held out.
        Cost: two passes over the inputs; d_mlp^2 (n + d_mlp) more where W_out is solved.

        Args:
            activity: Inputs of the MLP, such as `mlp_inputs` collects; the more, the better.
            held_out: Others to measure on; by default the last tenth of the inputs, which is left out of the fit.
            solve_output: Solve W_out and b_out again, by least squares for the new neurons.
            transcoder: Go on from there and fit all matrices by gradient descent.
            progress: Wraps the steps of that.

        Raises:
            TypeError: If the inputs are no tensor.
            ValueError: If they are not finite rows of d_in numbers, or fewer than two.
        """
        if transcoder is not None:
            check_kind("transcoder", transcoder, TranscoderSettings, "Pass TranscoderSettings() for the defaults.")
        fitted, measured_on = fitted_and_held_out(self, activity, held_out)
        gates = fitted_gates(self, fitted, 1)
        tensor, method = fitted_bilinear(self, gates, fitted, solve_output, transcoder, progress)
        fit = measured(self, tensor, method, gates, fitted, measured_on)
        return replace(self.with_tensor(tensor), approximation=fit)

    @torch.no_grad()
    def approximated_by(
        self,
        tensor: InteractionTensor,
        activity: Float[Tensor, "n d_in"],
        method: str,
        held_out: Float[Tensor, "m d_in"] | None = None,
    ) -> BilinearMLP:
        """Put a bilinear layer that was fitted elsewhere in the place of this one, and measure it as `bilinear` does.

        Args:
            tensor: The layer.
            activity: Inputs of the MLP.
            method: How the layer was made, in words.
            held_out: Others to measure on; by default the last tenth of the inputs.

        Raises:
            TypeError: If the inputs are no tensor.
            ValueError: If they are not finite rows of d_in numbers, or fewer than two.
        """
        check_kind("tensor", tensor, InteractionTensor, "It holds the matrices of a bilinear layer.")
        fitted, measured_on = fitted_and_held_out(self, activity, held_out)
        fit = measured(self, tensor, method, fitted_gates(self, fitted, 1), fitted, measured_on)
        return replace(self.with_tensor(tensor), approximation=fit)

    @torch.no_grad()
    def cubic(self, activity: Float[Tensor, "n d_in"], *, held_out: Float[Tensor, "m d_in"] | None = None) -> CubicMLP:
        """Fit a cubic layer to this one: a quadratic function c0 + c1 g + c2 g^2 in place of the one on each gate.

        It is held as the matrices of the MLP and three numbers a neuron. See `bilinear` for the fit.

        Raises:
            TypeError: If the inputs are no tensor.
            ValueError: If they are not finite rows of d_in numbers, or fewer than two.
        """
        fitted, measured_on = fitted_and_held_out(self, activity, held_out)
        gates = fitted_gates(self, fitted, 2)
        tensor = CubicTensor(self.weights, gates.coefficients.to(self.weights.W_gate))
        fit = measured(self, tensor, "quadratic functions", gates, fitted, measured_on)
        return CubicMLP(tensor, self.layer, self.hook_in, self.hook_out, self.norm, fit, self.input_aliases)

    def read_from(self, basis: Float[Tensor, "d_new d_in"], hook_in: str) -> "GatedMLP":
        """Read the MLP as a function of z, where its input is z @ basis."""
        return replace(self, weights=self.weights.read_from(basis), hook_in=hook_in, input_aliases=())

    def with_tensor(self, tensor: InteractionTensor) -> BilinearMLP:
        """Put a bilinear layer in its place, at the same hooks; `probe_error` is nan, since it is no copy."""
        return BilinearMLP(tensor, self.layer, self.hook_in, self.hook_out, self.norm, float("nan"), self.input_aliases)


def _proved_gate(
    weights: InteractionTensor, batches: Sequence[tuple[Tensor, Tensor]], layer: int, tolerance: float
) -> tuple[str, float]:
    """Name of the function on a gate, and the relative error of the layer rebuilt with it on the first batch."""
    errors = {name: max(relative_error(weights.gated(x, gate), y) for x, y in batches) for name, gate in GATES.items()}
    best = min(errors, key=errors.__getitem__)
    if not errors[best] < tolerance:
        raise ValueError(
            f"layer {layer} must apply one of {', '.join(GATES)} to its gate, but the nearest, {best}, differs from"
            f" its output by {errors[best]:.2g} relative on a probe batch. Other gates cannot be read."
        )
    x, y = batches[0]
    return best, relative_error(weights.gated(x, GATES[best]), y)
