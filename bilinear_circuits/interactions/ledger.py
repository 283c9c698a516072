"""The complete account of one feature's pre-activation: every term, summing to what the model computes."""

from dataclasses import dataclass, fields

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from bilinear_circuits.algebra.tensor import QuadraticForm
from bilinear_circuits.utilities.display import Drawn


class SumOfTerms:
    """A pre-activation as named terms: the fields of a dataclass but `active`, and those that are not None."""

    @property
    def terms(self) -> dict[str, Float[Tensor, "*n"]]:
        """Every term by name."""
        found = {one.name: getattr(self, one.name) for one in fields(self) if one.name != "active"}  # type: ignore[arg-type]
        return {name: value for name, value in found.items() if value is not None}

    @property
    def total(self) -> Float[Tensor, "*n"]:
        """Sum of all terms: the pre-activation, before TopK or ReLU."""
        return torch.stack(list(self.terms.values())).sum(0)


@dataclass(frozen=True, eq=False, repr=False)
class Ledger(SumOfTerms, Drawn):
    """Where the pre-activation of an output feature comes from.

    The MLP input is split as x = features + bias + error: the active decoder rows weighted by their activations, the
    decoder bias, and what the dictionary misses. The quadratic form p(x) = x^T Q x + linear . x + constant then splits
    into the terms below, in float64. Cross terms hold both orders: `feature_error` is 2 features^T Q error.

    Attributes:
        feature_feature: Pairs of input features, the circuit proper.
        feature_bias: Input features against the decoder bias.
        feature_error: Input features against the reconstruction error.
        bias_bias: Decoder bias with itself.
        bias_error: Decoder bias against the error.
        error_error: The error with itself.
        feature_linear: Input features through the biases of the MLP's own projections; zero for a Llama.
        bias_linear: Decoder bias through those biases.
        error_linear: The error through those biases.
        constant: Encoder bias of the output dictionary, less its decoder bias, plus the constant of the MLP.
        active: Whether the output dictionary lets the feature through; not a term.
        gate_remainder: Where the form is that of a layer fitted to gates that are not linear, what the model's own MLP
            gives more than the form. None for a bilinear MLP, whose form is the whole.
    """

    feature_feature: Float[Tensor, "*n"]
    feature_bias: Float[Tensor, "*n"]
    feature_error: Float[Tensor, "*n"]
    bias_bias: Float[Tensor, "*n"]
    bias_error: Float[Tensor, "*n"]
    error_error: Float[Tensor, "*n"]
    feature_linear: Float[Tensor, "*n"]
    bias_linear: Float[Tensor, "*n"]
    error_linear: Float[Tensor, "*n"]
    constant: Float[Tensor, "*n"]
    active: Bool[Tensor, "*n"]
    gate_remainder: Float[Tensor, "*n"] | None = None

    @property
    def completeness(self) -> Float[Tensor, "*n"]:
        """Share of the pre-activation that pairs of input features explain: feature_feature / total.

        Above 1 where the other terms work against the feature, negative where the signs differ. NaN where the feature
        is off: there is no activation to explain.
        """
        return (self.feature_feature / self.total).where(self.active, torch.nan)


@dataclass(frozen=True, eq=False, repr=False)
class PairContributions(Drawn):
    """What each pair of active input features adds to one pre-activation; they sum to `feature_feature`.

    Attributes:
        first: Input feature a of each pair, a <= b.
        second: Input feature b.
        weights: Coefficient of z_a z_b: T_aa for a self-interaction, 2 T_ab for a pair.
        contributions: Coefficient times z_a z_b, sorted by falling magnitude.
    """

    first: Int[Tensor, " pair"]
    second: Int[Tensor, " pair"]
    weights: Float[Tensor, " pair"]
    contributions: Float[Tensor, " pair"]


@torch.no_grad()
def account(
    form: QuadraticForm,
    x: Float[Tensor, "*n d_in"],
    features: Float[Tensor, "*n d_in"],
    bias: Float[Tensor, " d_in"],
    active: Bool[Tensor, "*n"],
    gate_remainder: Float[Tensor, "*n"] | None = None,
) -> Ledger:
    """Split p(x) over x = features + bias + error, in float64.

    Args:
        form: The quadratic form of the output feature, encoder bias in its constant.
        x: MLP inputs.
        features: Their reconstruction by the input dictionary without its bias.
        bias: Decoder bias of the input dictionary.
        active: Whether the feature is active.
        gate_remainder: What is added to the form of a fitted layer.
    """
    matrix = form.matrix
    weights, linear = matrix.weights.double(), form.linear.double()
    x, features = x.double(), features.double()
    bias = bias.double().expand_as(x)
    parts = {"feature": features, "bias": bias, "error": x - features - bias}
    gate = {name: part @ matrix.left.double() for name, part in parts.items()}
    other = {name: part @ matrix.right.double() for name, part in parts.items()}

    def pair(p: str, q: str) -> Tensor:
        product = gate[p] * other[q] if p == q else gate[p] * other[q] + gate[q] * other[p]
        return product @ weights

    return Ledger(
        feature_feature=pair("feature", "feature"),
        feature_bias=pair("feature", "bias"),
        feature_error=pair("feature", "error"),
        bias_bias=pair("bias", "bias"),
        bias_error=pair("bias", "error"),
        error_error=pair("error", "error"),
        feature_linear=features @ linear,
        bias_linear=bias @ linear,
        error_linear=parts["error"] @ linear,
        constant=form.constant.double().expand(x.shape[:-1]),
        active=active,
        gate_remainder=gate_remainder,
    )
