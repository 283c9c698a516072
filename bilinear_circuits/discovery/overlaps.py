"""How near the leading planes of forms lie to each other."""

from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from bilinear_circuits.utilities.display import Brief

_ROWS = 512


@dataclass(frozen=True, eq=False, repr=False)
class PlaneOverlaps(Brief):
    """Every plane with the one nearest to it.

    Attributes:
        best: Mean squared cosine of the angles between the two.
        partner: The nearest.
        null: The same as `best` of planes of a null.
    """

    best: Float[Tensor, " n"]
    partner: Int[Tensor, " n"]
    null: Float[Tensor, " m"]


def best_overlaps(planes: Float[Tensor, "n d 2"]) -> tuple[Float[Tensor, " n"], Int[Tensor, " n"]]:
    """Find the largest overlap of every plane with another, and which that is: 8 n^2 d operations."""
    n, d, _ = planes.shape
    flat = planes.mT.reshape(2 * n, d)
    best, partner = [], []
    for rows in torch.arange(n, device=planes.device).split(_ROWS):
        cosines = (planes[rows].mT.reshape(-1, d) @ flat.T).view(len(rows), 2, n, 2)
        overlap = cosines.square().sum((1, 3)) / 2
        overlap[torch.arange(len(rows)), rows] = -1
        value, index = overlap.max(1)
        best.append(value)
        partner.append(index)
    return torch.cat(best), torch.cat(partner)
