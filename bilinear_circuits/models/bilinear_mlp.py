"""Binding: one MLP of a hooked or plain model as an InteractionTensor, proved bilinear on a probe batch."""

from dataclasses import dataclass, replace
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from bilinear_circuits.algebra.tensor import InteractionTensor
from bilinear_circuits.models.approximation import Approximation
from bilinear_circuits.models.gates import GATES
from bilinear_circuits.models.host import Host, host_of
from bilinear_circuits.models.probe import TOLERANCE, RMSNorm, large_probe, probe, read_norm, relative_error
from bilinear_circuits.models.running import full_precision
from bilinear_circuits.utilities.display import Brief


class NotBilinearError(ValueError):
    """The layer does not compute ((x W_gate + b_gate) * (x W_in + b_in)) W_out + b_out."""


@dataclass(frozen=True, eq=False, repr=False)
class ProbedMLP(Brief):
    """The weights of one gated MLP, and what it makes of a probe batch: what a binding is proved by.

    Attributes:
        weights: Its matrices and biases, as of a layer whose gate is linear.
        layer: Index of the block.
        hook_names: Hook names of its input and output.
        batches: Inputs and outputs on random tokens, and on the same inputs scaled up until the gates are large.
        residual: What the norm in front reads on the random tokens, or None.
        host: The model.
    """

    weights: InteractionTensor
    layer: int
    hook_names: tuple[str, str]
    batches: tuple[tuple[Tensor, Tensor], tuple[Tensor, Tensor]]
    residual: Tensor | None
    host: Host

    @classmethod
    def of(cls, model: nn.Module, layer: int, probe_rows: int) -> "ProbedMLP":
        """Read and run one MLP.

        Raises:
            NotBilinearError: If it has no gate.
            ValueError: If there is no such layer, or weights or activations are not finite.
            TypeError: If the model is of none of the three kinds.
        """
        host = host_of(model)
        n_layers = len(host.blocks)
        if isinstance(layer, bool) or not isinstance(layer, int) or not 0 <= layer < n_layers:
            raise ValueError(f"layer must be between 0 and {n_layers - 1} ({n_layers=}), got {layer!r}.")
        weights = read_weights(host, layer)
        x, y, residual = probe(model, layer, probe_rows, host.norm(layer))
        batches = ((x, y), large_probe(host.blocks[layer].mlp, weights.W_gate, x, host.dtype))
        return cls(weights, layer, host.hook_names(layer), batches, residual, host)

    @property
    def tolerance(self) -> float:
        """Relative error that rounding in the model's precision may make."""
        return TOLERANCE[self.host.dtype]

    def norm(self) -> RMSNorm | None:
        """Read the RMSNorm in front, if there is one."""
        return read_norm(self.host.norm(self.layer), self.residual, self.batches[0][0], self.tolerance)

    def input_aliases(self, norm: RMSNorm | None) -> tuple[str, ...]:
        """Name other hooks that see the input."""
        return _input_aliases(self.host.blocks[self.layer], self.layer, norm)


@dataclass(frozen=True, eq=False, repr=False)
class BilinearMLP(Brief):
    """One bilinear MLP of a model, with the names of the two places it connects.

    Attributes:
        tensor: The layer as a function of the activation at `hook_in`.
        layer: Index of the block.
        hook_in: Hook name of the space the tensor reads, by default the MLP input after the norm and its weight.
        hook_out: Hook name of the MLP output.
        norm: The RMSNorm in front of the MLP; None where the model has none, or one that is not an RMSNorm.
        probe_error: Relative error of the tensor against the model's own MLP on the probe batch.
        input_aliases: Other hook names for the space the tensor reads.
        approximation: Where the tensor is a fit to an MLP that is not bilinear: that MLP, and how near it is.
    """

    tensor: InteractionTensor
    layer: int
    hook_in: str
    hook_out: str
    norm: RMSNorm | None
    probe_error: float
    input_aliases: tuple[str, ...] = ()
    approximation: Approximation | None = None

    @classmethod
    def from_model(cls, model: nn.Module, layer: int, probe_rows: int = 8) -> "BilinearMLP":
        """Read the MLP of a layer and prove on a probe batch that it is bilinear.

        Random tokens (fixed seed) are run through the model; the MLP output is rebuilt from the three matrices and
        compared with what the model computed, and once more on the same inputs scaled up until the gates have a root
        mean square of 4, where no nonlinearity is nearly linear. No configuration string is trusted. Weights of a model
        in half precision are read in float32.

        Args:
            model: A TransformerBridge, a HookedTransformer or a Hugging Face Llama (`LlamaForCausalLM`).
            layer: Index of the block.
            probe_rows: Number of rows, of 8 tokens each, in the probe batch.

        Raises:
            NotBilinearError: If the layer has no gate, or its output is not that of the three matrices (relative error
                above 1e-4 in float32 or float64, 1e-2 in float16, 5e-2 in bfloat16).
            ValueError: If there is no such layer, or its weights or what it writes on the probe batch are not finite.
            TypeError: If the model is of none of the three kinds.
        """
        found = ProbedMLP.of(model, layer, probe_rows)
        for x, y in found.batches:
            if not relative_error(found.weights(x), y) < found.tolerance:
                raise NotBilinearError(_explain(model, layer, found.weights, x, y, found.tolerance))
        x, y = found.batches[0]
        norm = found.norm()
        error = relative_error(found.weights(x), y)
        return cls(found.weights, layer, *found.hook_names, norm, error, found.input_aliases(norm))

    def __call__(self, x: Float[Tensor, "*n d_in"]) -> Float[Tensor, "*n d_model"]:
        """MLP output for activations at `hook_in`, as the model computes it: that of the MLP it is a fit to, if any."""
        return self.tensor(x) if self.approximation is None else self.approximation.original(x)

    @property
    def recovered(self) -> float:
        """Share of the variance of the MLP output that the tensor recovers: 1, unless it is a fit."""
        return 1.0 if self.approximation is None else self.approximation.recovered

    @property
    def reads_residual(self) -> bool:
        """True if the tensor reads the residual stream, so that its output lacks the norm's scale."""
        return self.hook_in == f"blocks.{self.layer}.hook_resid_mid"

    @property
    def output_aliases(self) -> tuple[str, ...]:
        """Other hook names for the MLP output."""
        return output_aliases(self.layer)

    def to(self, target: torch.dtype | torch.device | str) -> "BilinearMLP":
        """Copy the MLP in another dtype or to another device."""
        norm = None if self.norm is None else RMSNorm(self.norm.weight.to(target), self.norm.eps)
        fit = self.approximation
        fit = None if fit is None else replace(fit, original=fit.original.to(target))
        return replace(self, tensor=self.tensor.to(target), norm=norm, approximation=fit)

    def before_norm_weight(self) -> "BilinearMLP":
        """The MLP read at `ln2.hook_normalized`: the norm weight is folded into W_gate and W_in.

        Raises:
            ValueError: If the layer has no RMSNorm, or is not read at the MLP input.
        """
        if self.hook_in != f"blocks.{self.layer}.mlp.hook_in":
            raise ValueError(
                f"the norm weight of layer {self.layer} must still be in front of the tensor, but it is already read at"
                f" {self.hook_in}."
            )
        weight = self._require_norm().weight.to(self.tensor.W_gate.dtype)
        name, fit = f"blocks.{self.layer}.ln2.hook_normalized", self.approximation
        if fit is not None:
            fit = replace(fit, original=fit.original.read_from(weight.diag(), name))
        tensor = self.tensor.read_from(weight.diag())
        return replace(self, tensor=tensor, hook_in=name, input_aliases=(), approximation=fit)

    def on_residual(self) -> "BilinearMLP":
        """The MLP read from the residual stream before the norm, without the norm's scale.

        RMSNorm is one positive scalar per token, so MLP(norm(r)) = tensor(r) / norm.scale(r)^2: exact for a layer
        without biases, whose output is homogeneous of degree two.

        Raises:
            ValueError: If the layer has no RMSNorm, has biases, or is not read at the MLP input.
        """
        if self.tensor.has_bias:
            raise ValueError(
                f"layer {self.layer} must have no biases to be read on the residual stream: with them the norm scale"
                " does not factor out. Use before_norm_weight()."
            )
        return replace(self.before_norm_weight(), hook_in=f"blocks.{self.layer}.hook_resid_mid")

    def _require_norm(self) -> RMSNorm:
        if self.norm is None:
            raise ValueError(f"layer {self.layer} must have an RMSNorm in front of its MLP, but none was found.")
        return self.norm


def input_aliases(model: nn.Module, layer: int) -> tuple[str, ...]:
    """Name the other hooks of a model at which the input of an MLP, bilinear or not, is seen."""
    host = host_of(model)
    x, _, residual = probe(model, layer, 2, host.norm(layer))
    norm = read_norm(host.norm(layer), residual, x, TOLERANCE[host.dtype])
    return _input_aliases(host.blocks[layer], layer, norm)


def output_aliases(layer: int) -> tuple[str, ...]:
    """Name the hooks at which the output of an MLP is seen."""
    return tuple(f"blocks.{layer}.{name}" for name in ("mlp.hook_out", "hook_mlp_out", "mlp.out.hook_out"))


def read_weights(host: Host, layer: int) -> InteractionTensor:
    """Read the weights of a gated MLP in x @ W orientation, as of a layer with a linear gate.

    Raises:
        NotBilinearError: If one of the three matrices is missing.
        ValueError: If a weight is not finite.
    """
    weights = host.weights(layer)
    for name in ("W_gate", "W_in", "W_out"):
        if weights[name] is None:
            raise NotBilinearError(
                f"layer {layer} must have the three matrices W_gate, W_in, W_out, got"
                f" {type(host.blocks[layer].mlp).__name__} without {name}. A plain MLP has no gate: train a gated one"
                " with hidden_act='linear'."
            )
    for name, weight in weights.items():
        if weight is not None and (n_bad := int((~weight.isfinite()).sum())):
            raise ValueError(
                f"{name} of layer {layer} must be finite, got {n_bad} infinite or undefined entries. Training may have"
                " diverged, or the file is damaged."
            )
    return InteractionTensor(**{name: _read(weight) for name, weight in weights.items()})


def _read(weight: Any) -> Any:
    """A weight in float32 at least; None for a bias that is missing or zero."""
    return None if weight is None or (weight.ndim == 1 and not weight.any()) else full_precision(weight.detach())


def _input_aliases(block: Any, layer: int, norm: RMSNorm | None) -> tuple[str, ...]:
    """Name the hooks that see the same activation: after the norm, and before its weight where that is folded."""
    names = ["ln2.hook_out", "mlp.gate.hook_in"]
    weightless = norm is not None and bool((norm.weight == 1).all())
    if weightless or type(getattr(block, "ln2", None)).__name__.endswith("NormPre"):
        names.append("ln2.hook_normalized")
    if isinstance(getattr(block, "ln2", None), nn.Identity):
        names += ["hook_resid_mid", "hook_mlp_in"]
    return tuple(f"blocks.{layer}.{name}" for name in names)


def _explain(model: nn.Module, layer: int, tensor: InteractionTensor, x: Tensor, y: Tensor, tolerance: float) -> str:
    """Say what the layer computes instead, as far as it can be told, and what to do about it."""
    message = (
        f"layer {layer} must compute (x W_gate * x W_in) W_out, but its output differs from that by"
        f" {relative_error(tensor(x), y):.2g} relative on a probe batch."
    )
    for name, gate in GATES.items():
        if relative_error(tensor.gated(x, gate), y) < tolerance:
            message += f" It applies a {name} gate."
            break
    if getattr(model, "compatibility_mode", False):
        return (
            f"{message} This TransformerBridge is in compatibility mode, where an activation it does not know is"
            " replaced by SiLU without a word. Load it with bilinear_circuits.load_model(path), or call"
            " enable_compatibility_mode(no_processing=True)."
        )
    return (
        f"{message} Only layers without a nonlinearity can be read exactly: train with hidden_act='linear'. Others are"
        " read through bilinear layers fitted to them: GatedMLP.from_model(model, layer).bilinear(inputs), in verbs"
        " --approximate gates, and `bilinear-circuits approximate` writes a model of such layers."
    )
