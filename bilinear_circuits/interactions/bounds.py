"""Certified bounds for truncated features.

1. p(x) - p_r(x) = sum_{i>r} lambda_i (v_i . x)^2 lies between the least and the largest discarded eigenvalue, each
   times |x_perp|^2 = |x|^2 - sum_{i<=r} (v_i . x)^2. Two-sided and signed, and never wider than 2 |lambda_{r+1}| |x|^2.
2. An RMSNorm with weight w gives inputs x = w * n with |n|^2 <= d_model, which bounds the error of any input at all.

Both are computed in float64, and a stated rounding term makes them hold for the numbers computed.
"""

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from bilinear_circuits.algebra.matrix import InteractionMatrix
from bilinear_circuits.algebra.spectra import Spectrum
from bilinear_circuits.interactions.activity import LayerActivity
from bilinear_circuits.models.probe import RMSNorm
from bilinear_circuits.utilities.display import Brief
from bilinear_circuits.utilities.feature import OfFeature

QUANTILES = (0.0, 0.05, 0.25, 0.5, 0.75, 0.95, 1.0)
_UNIT = 2.0**-53


@dataclass(frozen=True)
class Summary:
    """Mean and quantiles of a quantity over tokens; NaN where there are none.

    Attributes:
        n: Number of tokens.
        mean: Mean.
        quantiles: At `QUANTILES`: minimum, 5, 25, 50, 75, 95 %, maximum.
    """

    n: int
    mean: float
    quantiles: tuple[float, ...]

    @classmethod
    def of(cls, values: Float[Tensor, " n"]) -> "Summary":
        """Summarise values, in float64."""
        if len(values) == 0:
            return cls(0, float("nan"), (float("nan"),) * len(QUANTILES))
        ordered = values.cpu().double().sort().values  # torch.quantile refuses more than 2^24 entries
        at = torch.tensor(QUANTILES, dtype=torch.double) * (len(ordered) - 1)
        low, high = ordered[at.floor().long()], ordered[at.ceil().long()]
        return cls(len(ordered), ordered.mean().item(), tuple((low + (high - low) * (at - at.floor())).tolist()))

    @property
    def median(self) -> float:
        """The middle quantile."""
        return self.quantiles[QUANTILES.index(0.5)]

    @property
    def largest(self) -> float:
        """The maximum."""
        return self.quantiles[-1]


@dataclass(frozen=True, eq=False, repr=False)
class TruncationBound(Brief):
    """The error p(x) - p_r(x) of a quadratic form cut to its r eigenpairs of largest magnitude, bounded on both sides.

    Attributes:
        matrix: The form, in float64.
        kept: Its r leading eigenpairs.
        discarded: The others.
        rounding: Added on either side, times |x|^2: measured residual of the decomposition and the rounding of
            evaluating the form through its neurons and eigenvectors in float64.
    """

    matrix: InteractionMatrix
    kept: Spectrum
    discarded: Spectrum
    rounding: float

    @property
    def lowest(self) -> float:
        """Least discarded eigenvalue; 0 where none is discarded."""
        return self.discarded.eigenvalues.min().item() if len(self.discarded) else 0.0

    @property
    def highest(self) -> float:
        """Largest discarded eigenvalue; 0 where none is discarded."""
        return self.discarded.eigenvalues.max().item() if len(self.discarded) else 0.0

    def error(self, x: Float[Tensor, "*n d"]) -> Float[Tensor, "*n"]:
        """The error itself, in float64. Linear and constant parts are not truncated, and drop out."""
        return self.matrix(x.double()) - self.kept(x.double())

    def __call__(self, x: Float[Tensor, "*n d"]) -> tuple[Float[Tensor, "*n"], Float[Tensor, "*n"]]:
        """Lower and upper bound of the error at inputs, from r projections of each: O(d r) per row."""
        x = x.double()
        square = x.square().sum(-1)
        rest = (square - (x @ self.kept.eigenvectors).square().sum(-1)).clamp_min(0)
        slack = self.rounding * square
        return self.lowest * rest - slack, self.highest * rest + slack

    def within(self, radius: float) -> tuple[float, float]:
        """Lower and upper bound of the error over all inputs with |x| <= radius.

        Raises:
            ValueError: If the radius is negative or not finite.
        """
        if not 0 <= radius < float("inf"):
            raise ValueError(f"radius must be a finite number of at least 0, got {radius}.")
        slack = self.rounding * radius**2
        return min(0.0, self.lowest) * radius**2 - slack, max(0.0, self.highest) * radius**2 + slack

    def after_norm(self, norm: RMSNorm) -> tuple[float, float]:
        """Lower and upper bound of the error over everything an RMSNorm can let through: no data at all.

        With x = w * n the error is a form of n, bounded by |n|^2 times the extreme eigenvalues of diag(w) E diag(w), E
        the discarded part. Never wider than `within(norm_radius(norm))` beyond rounding; O(d^3).

        Raises:
            ValueError: If the norm has another width than the form.
        """
        weight = norm.weight.double()
        if weight.shape != (self.matrix.dim,):
            raise ValueError(f"norm must have d={self.matrix.dim} weights, got {tuple(weight.shape)}.")
        values = torch.linalg.eigvalsh(self.discarded.to_dense() * weight * weight.unsqueeze(1))
        square = _normed_square(norm)
        # Also the rounding of these eigenvalues, which is within that of the whole form.
        slack = 2 * self.rounding * norm_radius(norm) ** 2
        return square * values[0].clamp_max(0).item() - slack, square * values[-1].clamp_min(0).item() + slack


def norm_radius(norm: RMSNorm) -> float:
    """Largest |x| that an RMSNorm can let through: sqrt(d_model) max|weight|, as |n|^2 <= d_model before its weight."""
    return _normed_square(norm) ** 0.5 * norm.weight.double().abs().max().item()


def _normed_square(norm: RMSNorm) -> float:
    """Bound on |n|^2: d_model, and the rounding of a norm that works in the dtype of its weight, at best float32."""
    unit = max(torch.finfo(norm.weight.dtype).eps, torch.finfo(torch.float32).eps) / 2
    return len(norm.weight) * (1 + (len(norm.weight) + 8) * unit) ** 2


@torch.no_grad()
def truncation_bound(matrix: InteractionMatrix, rank: int) -> TruncationBound:
    """Bound the error of cutting a form to its `rank` eigenpairs of largest magnitude, from its full decomposition.

    Cost: one d x d eigendecomposition in float64.

    Args:
        matrix: The quadratic part of a feature, for instance `interactions.form(feature).matrix`. No batch.
        rank: Eigenpairs kept.

    Raises:
        ValueError: If the matrix has a batch, or `rank` is not between 0 and d.
    """
    if matrix.weights.ndim != 1:
        raise ValueError(f"matrix must be a single form, got a batch {tuple(matrix.weights.shape[:-1])}. Index it.")
    d, d_mlp = matrix.left.shape
    if not 0 <= rank <= d:
        raise ValueError(f"rank must be between 0 and d={d}, got {rank}.")
    matrix = InteractionMatrix(matrix.left.double(), matrix.right.double(), matrix.weights.double())
    dense = matrix.to_dense()
    spectrum = Spectrum.of_dense(dense)
    values, vectors = spectrum.eigenvalues, spectrum.eigenvectors
    residual = torch.linalg.matrix_norm(dense - spectrum.to_dense())
    tilt = torch.linalg.matrix_norm(vectors.T @ vectors - torch.eye(d).to(vectors))
    sizes = (matrix.weights.abs() * matrix.left.norm(dim=0) * matrix.right.norm(dim=0)).sum()
    # Sums of d terms and of d_mlp terms, each evaluated twice: to form the matrix, and at x.
    sums = 4 * (d + d_mlp + 4) * _UNIT * (sizes + values.abs().sum())
    rounding = (residual + tilt * values.abs().sum() + sums).item()
    parts = (slice(None, rank), slice(rank, None))
    kept, discarded = (Spectrum(values[part], vectors[:, part]) for part in parts)
    return TruncationBound(matrix, kept, discarded, rounding)


@dataclass(frozen=True)
class TruncationError(OfFeature):
    """The bound on a truncated feature next to the error observed on tokens. Pre-activation units.

    Attributes:
        layer: Layer of the MLP.
        feature: Output feature.
        rank: Eigenpairs kept.
        lowest: Least discarded eigenvalue.
        highest: Largest discarded eigenvalue.
        rounding: What was added to the bounds, times |x|^2.
        n_violations: Tokens at which the error lies outside its bounds: 0.
        error: Observed error p(x) - p_r(x).
        size: Its magnitude.
        bound: The larger magnitude of its two bounds.
        plain_bound: |lambda_{r+1}| |x|^2, the bound that does not look at x_perp or at signs.
        any_input: Bounds for any input the norm in front can give, or None where there is no RMSNorm.
        looseness: Mean bound over mean magnitude of the error: 1 where it is tight.
        plain_looseness: The same of the plain bound.
        certified: Share of tokens where the bound is below |p(x)|, so that the truncated form is sure to have the sign
            of the whole one.
    """

    layer: int
    feature: int
    rank: int
    lowest: float
    highest: float
    rounding: float
    n_violations: int
    error: Summary
    size: Summary
    bound: Summary
    plain_bound: Summary
    any_input: tuple[float, float] | None
    looseness: float
    plain_looseness: float
    certified: float


@torch.no_grad()
def truncation_error(activity: LayerActivity, feature: int, rank: int, active_only: bool = True) -> TruncationError:
    """Compare the certified bound of a truncated feature with what its truncation does on tokens.

    Args:
        activity: Its layer on a corpus.
        feature: Output feature.
        rank: Eigenpairs kept.
        active_only: Only the tokens at which the feature is active, otherwise all of them.

    Raises:
        ValueError: If there is no such feature, or `rank` is out of range.
    """
    interactions = activity.interactions
    form = interactions.form(feature)
    bound = truncation_bound(form.matrix, rank)
    x = (activity.x[activity.outputs[feature][0]] if active_only else activity.x).double()
    error, (low, high) = bound.error(x), bound(x)
    size, either = error.abs(), torch.maximum(low.abs(), high.abs())
    largest = max(abs(bound.lowest), abs(bound.highest))
    plain = largest * x.square().sum(-1)
    whole = bound.matrix(x) + x @ form.linear.double() + form.constant.double()
    norm = interactions.mlp.norm
    return TruncationError(
        layer=interactions.mlp.layer,
        feature=feature,
        rank=rank,
        lowest=bound.lowest,
        highest=bound.highest,
        rounding=bound.rounding,
        n_violations=int(((error < low) | (error > high)).sum()),
        error=Summary.of(error),
        size=Summary.of(size),
        bound=Summary.of(either),
        plain_bound=Summary.of(plain),
        any_input=None if norm is None else bound.after_norm(norm),
        looseness=(either.mean() / size.mean()).item(),
        plain_looseness=(plain.mean() / size.mean()).item(),
        certified=(either < whole.abs()).double().mean().item(),
    )
