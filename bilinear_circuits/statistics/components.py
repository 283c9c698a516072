"""Principal components."""

import torch
from jaxtyping import Float
from torch import Tensor

from bilinear_circuits.utilities.kinds import check_finite


def principal_components(
    x: Float[Tensor, "n d"], k: int | None = None
) -> tuple[Float[Tensor, "k d"], Float[Tensor, " d"], Float[Tensor, " k"]]:
    """Find the k leading principal components of rows, largest variance first, each with its largest entry positive.

    Cost: n d^2 operations and an eigendecomposition of size d, in float64.

    Args:
        x: The rows.
        k: How many; by default all along which n rows can vary, min(d, n - 1).

    Returns:
        Components as rows, the mean of x, and the share of the variance along each component, zero where there is no
        variance, in the dtype of x and float32 at least.

    Raises:
        ValueError: If there are fewer than two rows, one is not finite, or `k` is not between 1 and min(d, n - 1).
    """
    n, d = x.shape
    if n < 2:
        raise ValueError(f"x must have two rows or more, got {n}.")
    check_finite("x", x)
    most = min(d, n - 1)
    k = most if k is None else k
    if not 1 <= k <= most:
        raise ValueError(f"k must be between 1 and {most}, since x has {n} rows of {d} columns, got {k}.")
    mean = x.double().mean(0)
    centred = x.double() - mean
    variances, vectors = torch.linalg.eigh(centred.T @ centred / n)
    rows, variances = vectors.T.flip(0)[:k], variances.clamp_min(0)
    rows = rows * rows.gather(1, rows.abs().argmax(1, keepdim=True)).sign()
    total = variances.sum()
    shares = variances.flip(0)[:k] / total.where(total > 0, 1)
    dtype = torch.promote_types(x.dtype, torch.float32)
    return rows.to(dtype), mean.to(dtype), shares.to(dtype)
