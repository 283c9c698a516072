"""Directions as groups of input features: sparse mixtures of decoder rows with positive weights."""

import math
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from bilinear_circuits.utilities.display import Brief

GROUP_STEPS = 8


@dataclass(frozen=True, eq=False, repr=False)
class Groups(Brief):
    """The group of each of some directions.

    Attributes:
        direction: Sum of the group's unit decoder rows with their weights, of norm 1; zero where the group is empty.
        feature: Input features in the order they were chosen, -1 where fewer were. One may be chosen again.
        weight: Weight of each, positive; 0 where there is none.
    """

    direction: Float[Tensor, "*batch d"]
    feature: Int[Tensor, "*batch step"]
    weight: Float[Tensor, "*batch step"]

    def members(self, *index: int) -> tuple[tuple[int, ...], tuple[float, ...]]:
        """Features of one group and their weights, heaviest first, each once."""
        total: dict[int, float] = {}
        for feature, weight in zip(self.feature[index].tolist(), self.weight[index].tolist(), strict=True):
            if feature >= 0:
                total[feature] = total.get(feature, 0.0) + weight
        ordered = sorted(total.items(), key=lambda item: -item[1])
        return tuple(feature for feature, _ in ordered), tuple(weight for _, weight in ordered)


@torch.no_grad()
def group_directions(
    targets: Float[Tensor, "*batch d"], rows: Float[Tensor, "n_features d"], steps: int = GROUP_STEPS
) -> Groups:
    """Approximate each direction by a few input features, by matching pursuit (Mallat and Zhang 1993).

    At each step the row nearest to what is left joins, with the weight that leaves least. The pursuit of a direction
    ends where no row is nearer to what is left than sqrt(2 ln(n_features) / d), which the nearest of as many random
    rows would be: from there on it would fit noise. Weights are positive, since features are.

    Cost: 2 n_features d operations per direction and step, of those whose pursuit has not ended.

    Args:
        targets: Directions of any norm; a zero direction has an empty group.
        rows: Unit decoder rows; rows of zeros are never chosen.
        steps: Most features of a group.
    """
    rest = targets.flatten(0, -2).clone()
    noise = math.sqrt(2 * math.log(max(2, len(rows))) / rows.shape[1])
    feature = torch.full((len(rest), steps), -1, dtype=torch.long, device=rest.device)
    weight = rest.new_zeros(len(rest), steps)
    going = torch.arange(len(rest), device=rest.device)
    for step in range(steps):
        nearest, index = (rest[going] @ rows.T).max(1)
        joins = nearest > noise * rest[going].norm(dim=1)
        going, nearest, index = going[joins], nearest[joins], index[joins]
        feature[going, step], weight[going, step] = index, nearest
        rest[going] -= nearest.unsqueeze(1) * rows[index]
    direction = torch.nn.functional.normalize(targets.flatten(0, -2) - rest, dim=1)
    direction = direction * (weight[:, :1] > 0)
    shape = targets.shape[:-1]
    return Groups(direction.view_as(targets), feature.view(*shape, steps), weight.view(*shape, steps))
