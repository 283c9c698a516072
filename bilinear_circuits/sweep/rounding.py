"""How large matrices and what rounding takes from them can be: upper bounds on their norms."""

import torch
from jaxtyping import Float
from torch import Tensor

from bilinear_circuits.algebra.precision import UNIT

SQUARES_UNDERFLOW = 2.0**-62  # what flushing to zero takes from the squares in a norm, for each root of their number


def frobenius_norms(matrices: Float[Tensor, "n d d"]) -> Float[Tensor, " n"]:
    """An upper bound on the norms of matrices: those of rows first, which are side by side in memory."""
    d = matrices.shape[1]
    norms = torch.linalg.vector_norm(matrices, dim=2).norm(dim=1)
    return norms * (1 + d * UNIT["float32"]) + d * SQUARES_UNDERFLOW


def row_norms(rows: Float[Tensor, "row output d"]) -> Float[Tensor, "row output"]:
    """An upper bound on the norm of each row: squares are summed in float32, and the root is rounded to the dtype."""
    unit = UNIT["bfloat16" if rows.dtype == torch.bfloat16 else "float32"]
    return torch.linalg.vector_norm(rows, dim=2).float() * (1 + 4 * unit + rows.shape[2] * UNIT["float32"])


def spectral_bound(E: Float[Tensor, "n d d"], room: Float[Tensor, "3 n d d"]) -> Float[Tensor, " n"]:
    """An upper bound on the spectral norms of symmetric matrices, |E|_2 <= tr(E^8)^(1/8), by two coarse squarings.

    For a matrix of rounding errors it is about a seventh of the Frobenius norm at d = 512, and the bound on an
    interaction is mostly made of it. Each rounding is charged for. In float32 it is the Frobenius norm.

    Args:
        E: The matrices, whose memory is used.
        room: Room for their powers, in the precision of the squarings.
    """
    size = frobenius_norms(E)
    if room.dtype != torch.bfloat16:
        return size
    unit, gamma = UNIT["bfloat16"] * (1 + 2.0**-6), 2 * (E.shape[1] + 2) * UNIT["float32"]
    first = room[0].copy_(E.div_(size[:, None, None]))
    second = torch.bmm(first, first, out=room[1])
    fourth = torch.bmm(second, second, out=room[2])
    norms = [row_norms(one).norm(dim=1) * (1 + unit) for one in (first, second, fourth)]
    square = (norms[2] + gamma * norms[1] ** 2).sqrt() + unit * norms[1] + gamma * norms[0] ** 2
    return size * torch.minimum(square.sqrt() + unit, torch.ones_like(size)) * (1 + 2.0**-10)
