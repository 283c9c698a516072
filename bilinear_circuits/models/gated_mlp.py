"""Binding: one gated MLP of an ordinary model, with the function on its gate proved on a probe batch."""

from dataclasses import dataclass, replace

import torch
from jaxtyping import Float
from torch import Tensor, nn

from bilinear_circuits.algebra.layer_fits import TranscoderSettings
from bilinear_circuits.algebra.tensor import InteractionTensor
from bilinear_circuits.models.approximation import CubicMLP, bilinear_fit, cubic_fit
from bilinear_circuits.models.bilinear_mlp import BilinearMLP, ProbedMLP
from bilinear_circuits.models.gates import GATES
from bilinear_circuits.models.probe import RMSNorm, relative_error
from bilinear_circuits.utilities.display import Brief
from bilinear_circuits.utilities.progress import Progress, silent


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
        errors = {
            name: max(relative_error(found.weights.gated(x, gate), y) for x, y in found.batches)
            for name, gate in GATES.items()
        }
        best = min(errors, key=errors.__getitem__)
        if not errors[best] < found.tolerance:
            raise ValueError(
                f"layer {layer} must apply one of {', '.join(GATES)} to its gate, but the nearest, {best}, differs from"
                f" its output by {errors[best]:.2g} relative on a probe batch. Other gates cannot be read."
            )
        x, y = found.batches[0]
        norm = found.norm()
        error = relative_error(found.weights.gated(x, GATES[best]), y)
        return cls(found.weights, best, layer, *found.hook_names, norm, error, found.input_aliases(norm))

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
        solve_output: bool = False,
        transcoder: TranscoderSettings | None = None,
        progress: Progress = silent,
    ) -> BilinearMLP:
        """Fit a bilinear layer to this one: an affine function c0 + c1 g in place of the one on each gate.

        The functions are fitted neuron by neuron on the gates that occur, weighted with the other factor squared. The
        layer has the matrices of the MLP, W_gate scaled by c1 and b_gate by it and shifted by c0; a bilinear MLP comes
        back as it is. The last tenth of the inputs is held out, and `approximation` says what is recovered there.
        Cost: two passes over the inputs; d_mlp^2 (n + d_mlp) more where W_out is solved.

        Args:
            activity: Inputs of the MLP, such as `mlp_inputs` collects; the more, the better.
            solve_output: Solve W_out and b_out again, by least squares for the new neurons.
            transcoder: Go on from there and fit all matrices by gradient descent.
            progress: Wraps the steps of that.

        Raises:
            TypeError: If the inputs are no tensor.
            ValueError: If they are not finite rows of d_in numbers, or fewer than two.
        """
        return bilinear_fit(self, activity, solve_output, transcoder, progress)

    def cubic(self, activity: Float[Tensor, "n d_in"]) -> CubicMLP:
        """Fit a cubic layer to this one: a quadratic function c0 + c1 g + c2 g^2 in place of the one on each gate.

        It is held as the matrices of the MLP and three numbers a neuron. See `bilinear` for the fit.

        Raises:
            TypeError: If the inputs are no tensor.
            ValueError: If they are not finite rows of d_in numbers, or fewer than two.
        """
        return cubic_fit(self, activity)

    def with_tensor(self, tensor: InteractionTensor) -> BilinearMLP:
        """Put a bilinear layer in its place, at the same hooks; `probe_error` is nan, since it is no copy."""
        return BilinearMLP(tensor, self.layer, self.hook_in, self.hook_out, self.norm, float("nan"), self.input_aliases)
