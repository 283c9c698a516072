"""What a search of the interaction tensor returns."""

from collections.abc import Iterator
from dataclasses import dataclass, replace

import torch
from jaxtyping import Float, Int
from torch import Tensor

from bilinear_circuits.utilities.display import Result


@dataclass(frozen=True)
class Certificate:
    """Why nothing larger was missed.

    An interaction was left out only if its coarse value plus the bound on its error stayed below the threshold.

    Attributes:
        threshold: Smallest score kept, of all or, where the largest of each output were asked for, the smallest of
            these thresholds. 0 where fewer interactions exist than were asked for.
        error_bound: Largest bound on the error of a coarse score, without its relative rounding.
        relative_error: Relative rounding of a coarse score, besides.
        candidates: Interactions computed in full precision.
        interactions: Interactions there are, each pair of inputs once.
        precision: Precision of the coarse products.
    """

    threshold: float
    error_bound: float
    relative_error: float
    candidates: int
    interactions: int
    precision: str


@dataclass(frozen=True, eq=False, repr=False)
class TopInteractions(Result):
    """The largest interactions, each pair of input features once.

    Attributes:
        output: Output feature of each.
        first: Input feature a of each, a <= b.
        second: Input feature b; equal to a for a self-interaction.
        weights: Coefficient of z_a z_b in the feature's pre-activation, T_aa for a self-interaction and 2 T_ab for a
            pair.
        scores: What they are ordered by, largest magnitude first; where the largest of each output were asked for,
            output by output. The weights, times the second moments E[z_a z_b] where these were given.
        certificate: Why nothing larger was missed.
    """

    output: Int[Tensor, " n"]
    first: Int[Tensor, " n"]
    second: Int[Tensor, " n"]
    weights: Float[Tensor, " n"]
    scores: Float[Tensor, " n"]
    certificate: Certificate

    def __len__(self) -> int:
        return len(self.weights)

    def __iter__(self) -> Iterator[tuple[int, int, int, float]]:
        """Yield (output, first, second, weight)."""
        columns = (self.output, self.first, self.second, self.weights)
        return zip(*(column.tolist() for column in columns), strict=True)

    def of(self, output: int) -> "TopInteractions":
        """Those of one output feature."""
        mine = self.output == output
        names = ("output", "first", "second", "weights", "scores")
        return replace(self, **{name: getattr(self, name)[mine] for name in names})


def sorted_by(*keys: Tensor) -> Int[Tensor, " n"]:
    """Indices in rising order of the keys: the last one first of all, each of the others where those after it tie."""
    order = torch.arange(len(keys[0]), device=keys[0].device)
    for key in keys:
        order = order[key[order].argsort(stable=True)]
    return order
