"""Probing a layer: what its MLP reads and writes on random tokens, so that nothing is taken from a configuration."""

from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from bilinear_circuits.models.running import capture_mlp, full_precision, hooked, model_device, vocabulary_size
from bilinear_circuits.utilities.display import Brief

TOLERANCE = {torch.float64: 1e-4, torch.float32: 1e-4, torch.float16: 1e-2, torch.bfloat16: 5e-2}
_LARGE_GATE = 4.0  # where a gate that is nearly linear at small inputs, as tanh and SiLU are, is far from it


@dataclass(frozen=True, eq=False, repr=False)
class RMSNorm(Brief):
    """The norm in front of an MLP: x -> x / sqrt(mean(x^2) + eps) * weight.

    Attributes:
        weight: Norm weight; ones where it has been folded into the MLP.
        eps: Added to the mean square.
    """

    weight: Float[Tensor, " d_model"]
    eps: float

    def scale(self, residual: Float[Tensor, "*n d_model"]) -> Float[Tensor, "*n 1"]:
        """The divisor sqrt(mean(x^2) + eps), `hook_scale` in TransformerLens."""
        return (residual.square().mean(-1, keepdim=True) + self.eps).sqrt()

    def __call__(self, residual: Float[Tensor, "*n d_model"]) -> Float[Tensor, "*n d_model"]:
        """Normalise and apply the weight."""
        return residual / self.scale(residual) * self.weight


@torch.no_grad()
def read_norm(module: Any, residual: Tensor | None, x: Tensor, tolerance: float) -> RMSNorm | None:
    """The RMSNorm in front of the MLP, if it makes the MLP input of the probe batch out of what it reads.

    Some norms centre, or stand elsewhere: those are no RMSNorm in front of the MLP. Those of Gemma multiply with 1 plus
    their weight.
    """
    if residual is None or "RMS" not in type(module).__name__:
        return None
    weight = getattr(module, "w", getattr(module, "weight", None))
    if weight is None:
        weight = x.new_ones(x.shape[-1])
    eps = getattr(module, "variance_epsilon", getattr(module, "eps", None))
    weight, eps = full_precision(weight.detach()), eps if isinstance(eps, float) else module.config.eps
    found = (RMSNorm(weight, eps), RMSNorm(1 + weight, eps))
    return next((norm for norm in found if relative_error(norm(residual), x) < tolerance), None)


@torch.no_grad()
def probe(model: nn.Module, layer: int, n_rows: int, norm: Any) -> tuple[Tensor, Tensor, Tensor | None]:
    """MLP input and output on random tokens, as the model computes them, and what the norm module reads."""
    tokens = torch.randint(vocabulary_size(model), (n_rows, 8), generator=torch.Generator().manual_seed(0))
    seen: list[Tensor] = []
    with hooked([(norm, lambda module, args, output: seen.append(args[0].detach()))] if norm is not None else []):
        captured = capture_mlp(model, tokens.to(model_device(model)), [layer])[layer]
    residual = full_precision(seen[0].flatten(0, -2)) if seen else None
    for what, activation in (("input", captured.x), ("output", captured.y)):
        if not activation.isfinite().all():
            raise ValueError(
                f"model must give finite activations, got infinite or undefined numbers in the MLP {what} of layer"
                f" {layer} on random tokens, in {next(model.parameters()).dtype}. Weights before it may not be finite;"
                " in float16 numbers end at 65504: load the model in float32."
            )
    return captured.x.flatten(0, -2), captured.y.flatten(0, -2), residual


@torch.no_grad()
def large_probe(mlp: Any, W_gate: Tensor, x: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """MLP input scaled up until its gates are large, and what the module makes of it."""
    size = (x @ W_gate).square().mean().sqrt()
    scaled = (x * (_LARGE_GATE / size).clamp_min(1)).to(dtype) if size > 0 else x.to(dtype)
    return full_precision(scaled), full_precision(mlp(scaled))


def relative_error(got: Tensor, want: Tensor) -> float:
    """Compare two tensors in the Frobenius norm, as a share of the second."""
    return ((got - want).float().norm() / want.float().norm().clamp_min(1e-30)).item()
