"""Similarity of quadratic forms and of bilinear layers as functions of Gaussian inputs, in closed form.

For p(x) = x^T Q x + l . x + c and q(x) = x^T R x + l' . x + c' with x ~ N(0, S),

    E[p] = tr(Q S) + c,    Cov[p, q] = 2 tr(Q S R S) + l^T S l',    E[p q] = Cov[p, q] + E[p] E[q]

(Isserlis 1918). With x = z A + mean and z standard normal, both forms are read in z, where S is the identity. No form
is made dense: 2 tr(Q R) = sum_mn c_m c'_n K_mn over the neurons m and n of the two, with the Gram matrix of neurons
K_mn = (g_m . g'_n)(h_m . h'_n) + (g_m . h'_n)(h_m . g'_n), so that all pairs of two batches of forms are C K C'^T. A
layer is the batch of its outputs. Weight-based similarity of bilinear layers: Pearce et al. 2024 (arXiv 2410.08417).
"""

from dataclasses import dataclass
from typing import Literal, get_args

import torch
from jaxtyping import Float
from torch import Tensor

from bilinear_circuits.algebra.matrix import InteractionMatrix
from bilinear_circuits.algebra.tensor import InteractionTensor, QuadraticForm

SimilarityKind = Literal["cosine", "correlation"]
_TOLERANCE = 1e-6


@torch.no_grad()
def quadratic_form_similarity(
    first: InteractionMatrix | QuadraticForm,
    second: InteractionMatrix | QuadraticForm,
    covariance: Float[Tensor, "d d"] | None = None,
    mean: Float[Tensor, " d"] | None = None,
    kind: SimilarityKind = "cosine",
) -> Float[Tensor, "..."]:
    """Similarity of two forms, or of all pairs of two batches of forms, for inputs x ~ N(mean, covariance).

    "cosine" is E[p q] / sqrt(E[p^2] E[q^2]); "correlation" is Cov[p, q] / sqrt(Var[p] Var[q]). For matrices and
    standard normal inputs the correlation is <Q, R> / (|Q| |R|) in the Frobenius inner product.

    Cost, in float64: O(d_mlp^2 (d + n)) for n forms of d_mlp neurons, and O(d^3) for a covariance.

    Args:
        first: A form, or a batch of forms; an InteractionMatrix is a form without linear and constant part.
        second: Another on the same space, of any number of neurons.
        covariance: Covariance of the inputs; the identity by default.
        mean: Mean of the inputs; zero by default.
        kind: Which of the two.

    Returns:
        Batch shape of the first, then that of the second, in the dtype of the first; between -1 and 1, and NaN where a
        form is zero (for the correlation: constant).

    Raises:
        ValueError: If the two have different sides, `covariance` or `mean` does not fit them, or `kind` is unknown.

    Examples:
        >>> tensor = InteractionTensor(torch.randn(5, 7), torch.randn(5, 7), torch.randn(7, 3))
        >>> Q = tensor.matrix(torch.eye(3))
        >>> quadratic_form_similarity(Q, Q[0]).shape
        torch.Size([3])
    """
    one, other = _pair(first, second, covariance, mean)
    centred = _is_centred(kind)
    sizes = one.squares(centred).unsqueeze(1) * other.squares(centred)
    cosine = _clipped(one.products(other, centred), sizes)
    return cosine.reshape(_batch(first) + _batch(second)).to(_matrix(first).left.dtype)


@torch.no_grad()
def gaussian_product(
    first: InteractionMatrix | QuadraticForm,
    second: InteractionMatrix | QuadraticForm,
    covariance: Float[Tensor, "d d"] | None = None,
    mean: Float[Tensor, " d"] | None = None,
    *,
    centred: bool = False,
) -> Float[Tensor, "..."]:
    """E[p q], or Cov[p, q], of all pairs of two batches of forms for x ~ N(mean, covariance), in float64.

    Arguments, cost and errors are those of `quadratic_form_similarity`.
    """
    one, other = _pair(first, second, covariance, mean)
    return one.products(other, centred).reshape(_batch(first) + _batch(second))


@torch.no_grad()
def layer_similarity(
    first: InteractionTensor,
    second: InteractionTensor,
    covariance: Float[Tensor, "d d"] | None = None,
    mean: Float[Tensor, " d"] | None = None,
    kind: SimilarityKind = "cosine",
) -> float:
    """Similarity of two bilinear layers as functions f, g of inputs x ~ N(mean, covariance), biases included.

    "cosine" is E[f . g] / sqrt(E|f|^2 E|g|^2), with sums over outputs; "correlation" takes the means of both layers
    out first. It does not change with what is no part of the function: the order of neurons, their number, or factors
    moved between W_gate, W_in and W_out. Both layers must read and write the same bases: those of one model, or of
    dictionaries (`read_from`, `write_to`) whose features are matched.

    Cost, in float64: O(d_mlp^2 (d_in + d_out)), and O(d_in^3) for a covariance.

    Args:
        first: A layer.
        second: Another of the same d_in and d_out, of any d_mlp.
        covariance: Covariance of the inputs; the identity by default.
        mean: Mean of the inputs; zero by default.
        kind: Which of the two.

    Returns:
        Between -1 and 1; NaN where a layer is zero (for the correlation: constant).

    Raises:
        ValueError: If the layers have different sizes, `covariance` or `mean` does not fit, or `kind` is unknown.

    Examples:
        >>> layer = InteractionTensor(torch.randn(5, 7), torch.randn(5, 7), torch.randn(7, 3))
        >>> swapped = InteractionTensor(layer.W_in, 2 * layer.W_gate, layer.W_out)
        >>> round(layer_similarity(layer, swapped), 6)
        1.0
    """
    sizes = (first.d_in, first.d_out), (second.d_in, second.d_out)
    if sizes[0] != sizes[1]:
        raise ValueError(f"second must have the d_in and d_out of first, {sizes[0]}, got {sizes[1]}.")
    centred = _is_centred(kind)
    one, other = _pair(_outputs(first), _outputs(second), covariance, mean)
    product = one.paired(other, centred).sum()
    return _clipped(product, one.squares(centred).sum() * other.squares(centred).sum()).item()


@dataclass(frozen=True, eq=False)
class _NormalForms:
    """Forms of standard normal inputs, in float64, flat over the batch.

    Attributes:
        matrix: Quadratic parts.
        linear: Linear parts.
        mean: E[p] of each.
    """

    matrix: InteractionMatrix
    linear: Float[Tensor, "n d"]
    mean: Float[Tensor, " n"]

    def products(self, other: "_NormalForms", centred: bool) -> Float[Tensor, "n n_other"]:
        """E[p q], or the covariance, of all pairs."""
        covariance = self._through(other) @ other.matrix.weights.T + self.linear @ other.linear.T
        return covariance if centred else covariance + torch.outer(self.mean, other.mean)

    def paired(self, other: "_NormalForms", centred: bool) -> Float[Tensor, " n"]:
        """Compare each form with the one in its place."""
        covariance = (self._through(other) * other.matrix.weights).sum(1) + (self.linear * other.linear).sum(1)
        return covariance if centred else covariance + self.mean * other.mean

    def squares(self, centred: bool) -> Float[Tensor, " n"]:
        """E[p^2], or the variance."""
        return self.paired(self, centred)

    def _through(self, other: "_NormalForms") -> Float[Tensor, "n d_mlp_other"]:
        """Weights times the Gram matrix of neurons."""
        left, right = self.matrix.left, self.matrix.right
        gram = (left.T @ other.matrix.left) * (right.T @ other.matrix.right)
        gram += (left.T @ other.matrix.right) * (right.T @ other.matrix.left)
        return self.matrix.weights @ gram


def _pair(
    first: InteractionMatrix | QuadraticForm,
    second: InteractionMatrix | QuadraticForm,
    covariance: Tensor | None,
    mean: Tensor | None,
) -> tuple[_NormalForms, _NormalForms]:
    d, other = _matrix(first).dim, _matrix(second).dim
    if d != other:
        raise ValueError(f"second must read the space of first, d={d}, got d={other}.")
    factor = None if covariance is None else _factor(covariance, d)
    if mean is not None and (mean.shape != (d,) or not mean.isfinite().all()):
        raise ValueError(f"mean must have d={d} finite entries, got shape {tuple(mean.shape)}.")
    return _normal(first, factor, mean), _normal(second, factor, mean)


def _normal(form: InteractionMatrix | QuadraticForm, factor: Tensor | None, mean: Tensor | None) -> _NormalForms:
    """Forms as functions of z, where x = z factor + mean: A Q A^T, A (l + 2 Q mean), and their constant."""
    part = _matrix(form)
    weights = part.weights.double().reshape(-1, part.weights.shape[-1])
    Q = InteractionMatrix(part.left.double(), part.right.double(), weights)
    linear, constant = Q.left.new_zeros(len(Q.weights), Q.dim), Q.left.new_zeros(len(Q.weights))
    if isinstance(form, QuadraticForm):
        linear, constant = form.linear.double().reshape(linear.shape), form.constant.double().reshape(-1)
    if mean is not None:
        mean = mean.to(Q.left)
        constant = constant + linear @ mean + Q(mean)
        linear = linear + 2 * (Q @ mean)
    if factor is not None:
        factor = factor.to(Q.left.device)
        Q, linear = Q.change_basis(factor), linear @ factor.T
    return _NormalForms(Q, linear, Q.trace() + constant)


def _factor(covariance: Float[Tensor, "d d"], d: int) -> Float[Tensor, "rank d"]:
    """A with A^T A = covariance, one row for each direction in which the inputs vary.

    Raises:
        ValueError: If the covariance is not a symmetric d x d matrix without negative eigenvalues.
    """
    if covariance.shape != (d, d) or not covariance.isfinite().all():
        raise ValueError(f"covariance must be ({d}, {d}) and finite, got shape {tuple(covariance.shape)}.")
    covariance = covariance.double()
    slack = _TOLERANCE * covariance.abs().max().item()
    if (covariance - covariance.T).abs().max() > slack:
        raise ValueError("covariance must be symmetric, got one that differs from its transpose.")
    values, vectors = torch.linalg.eigh((covariance + covariance.T) / 2)
    if values[0] < -d * slack:
        raise ValueError(f"covariance must have no negative eigenvalue, got {values[0]:.3g}.")
    kept = values > 0
    return values[kept].sqrt().unsqueeze(1) * vectors[:, kept].T


def _outputs(layer: InteractionTensor) -> QuadraticForm:
    """Every output of a layer as a form."""
    layer = layer.to(torch.float64)
    return layer.quadratic_form(torch.eye(layer.d_out, dtype=torch.float64, device=layer.W_out.device))


def _clipped(products: Tensor, sizes: Tensor) -> Tensor:
    """Products over the roots of products of squares: within [-1, 1] in spite of rounding, NaN where a size is zero."""
    return (products / sizes.clamp_min(0).sqrt()).where(sizes > 0, torch.nan).clamp(-1, 1)


def _matrix(form: InteractionMatrix | QuadraticForm) -> InteractionMatrix:
    return form.matrix if isinstance(form, QuadraticForm) else form


def _batch(form: InteractionMatrix | QuadraticForm) -> torch.Size:
    return _matrix(form).weights.shape[:-1]


def _is_centred(kind: str) -> bool:
    if kind not in get_args(SimilarityKind):
        raise ValueError(f"kind must be one of {', '.join(get_args(SimilarityKind))}, got {kind}.")
    return kind == "correlation"
