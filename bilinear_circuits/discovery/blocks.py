"""The blocks of a template on a corpus: which features interact in them, how much, and whether they meet."""

from collections.abc import Mapping

import torch

from bilinear_circuits.algebra.matrix import InteractionMatrix
from bilinear_circuits.discovery.results import Block
from bilinear_circuits.interactions.active import ActiveTokens

Members = tuple[tuple[int, ...], tuple[float, ...]]
"""Features of a group and their weights."""


@torch.no_grad()
def described(
    matrix: InteractionMatrix,
    inputs: ActiveTokens,
    n_tokens: int,
    groups: Mapping[int, Members],
    strengths: Mapping[tuple[int, int], float],
    min_together: int,
) -> tuple[Block, ...]:
    """Describe the blocks of one form's template.

    Cost: what all blocks read is looked up once, O(n^2 t) for n members of the groups, active on t tokens.

    Args:
        matrix: Interactions of the output feature between input features.
        inputs: Activations of the input dictionary on a corpus.
        n_tokens: Its tokens.
        groups: Members of the groups by their ends.
        strengths: The blocks, by their two ends, and the strength of each.
        min_together: Tokens on which two features must be active together to count as meeting.
    """
    chosen = torch.tensor([feature for members, _ in groups.values() for feature in members])
    T = matrix.block(chosen, chosen)
    weight = T.new_tensor([one for _, weights in groups.values() for one in weights])
    mass = T.abs() * torch.outer(weight, weight)
    _, z = inputs.columns_where_active(chosen)
    active = (z != 0).to(z.dtype)
    meets = active.T @ active >= min_together
    weighted = T.double() * (z.T @ z / n_tokens)
    places = torch.arange(len(chosen)).split([len(members) for members, _ in groups.values()])
    parts = dict(zip(groups, places, strict=True))
    any_active = {end: active[:, part].amax(1) for end, part in parts.items()}
    blocks = []
    for (first, second), strength in strengths.items():
        rows, columns = parts[first].unsqueeze(1), parts[second]
        own = mass[rows, columns]
        blocks.append(
            Block(
                first=groups[first][0],
                second=groups[second][0],
                first_weights=groups[first][1],
                second_weights=groups[second][1],
                strength=strength,
                together=int(any_active[first] @ any_active[second]),
                meeting=(own[meets[rows, columns]].sum() / own.sum()).item(),
                weighted=weighted[rows, columns].sum().item(),
            )
        )
    return tuple(blocks)
