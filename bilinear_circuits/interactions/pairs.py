"""Pairs of input features in the form of one output feature, with their coefficients."""

from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from bilinear_circuits.algebra.matrix import InteractionMatrix
from bilinear_circuits.utilities.display import Brief


@dataclass(frozen=True, eq=False, repr=False)
class Pairs(Brief):
    """Pairs of input features in the form of one output feature, each pair once.

    Attributes:
        first: Input feature a, a <= b.
        second: Input feature b.
        weight: Coefficient of z_a z_b: 2 T_ab, or T_aa for a square.
    """

    first: Int[Tensor, " pair"]
    second: Int[Tensor, " pair"]
    weight: Float[Tensor, " pair"]

    def __len__(self) -> int:
        return len(self.first)

    def contributions(self, z: Float[Tensor, "n d_sae"]) -> Float[Tensor, "n pair"]:
        """w_ab z_a z_b of every pair at feature activations z, in float64."""
        return self.weight * z[:, self.first].double() * z[:, self.second].double()


def pairs_of(matrix: InteractionMatrix, first: Int[Tensor, " n"], second: Int[Tensor, " n"]) -> Pairs:
    """Look up pairs in the weights, in float64: each unordered pair once, in the order given. O(n d_mlp).

    Args:
        matrix: Interactions of the output feature between input features.
        first: One input feature of each pair.
        second: The other.
    """
    pairs = torch.stack([torch.minimum(first, second), torch.maximum(first, second)], dim=1).to(matrix.left.device)
    a, b = pairs[_first_occurrences(pairs)].unbind(1)
    left, right = matrix.left.double(), matrix.right.double()
    T = (left[a] * right[b] + left[b] * right[a]) @ matrix.weights.double() / 2
    return Pairs(a, b, coefficients(T, a, b))


def coefficients(
    T: Float[Tensor, " pair"], first: Int[Tensor, " pair"], second: Int[Tensor, " pair"]
) -> Float[Tensor, " pair"]:
    """Coefficients of z_a z_b from entries T_ab of a symmetric matrix: both orders of a pair, and a square once."""
    return torch.where(first == second, 1, 2) * T


def _first_occurrences(pairs: Int[Tensor, "n 2"]) -> Int[Tensor, " kept"]:
    """Indices of the rows that no earlier row equals, in order."""
    seen: set[tuple[int, ...]] = set()
    kept = []
    for index, pair in enumerate(map(tuple, pairs.tolist())):
        if pair not in seen:
            seen.add(pair)
            kept.append(index)
    return torch.tensor(kept, dtype=torch.long, device=pairs.device)
