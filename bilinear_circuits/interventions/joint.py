"""Several circuits taken out at once, of one layer or more: do their effects add up?

Each is removed from what its own layer reads in the edited run, so that a later circuit is that of a model which lacks
the earlier ones.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import torch

from bilinear_circuits.circuits.query import QueryTokens
from bilinear_circuits.runs import Edit, Runs
from bilinear_circuits.statistics.effects import Effect, bootstrap


@dataclass(frozen=True)
class JointRemoval:
    """Circuits of the same pole removed together, at the sites where at least one of their features is active.

    Attributes:
        names: The circuits.
        together: Effect of removing all of them.
        sum: Sum of the effects of removing each alone, at the same sites.
    """

    names: tuple[str, ...]
    together: Effect
    sum: Effect


@torch.no_grad()
def joint_removal(runs: Runs[QueryTokens], edits: Mapping[str, tuple[int, Edit]], seed: int) -> JointRemoval:
    """Remove circuits one by one and all together.

    Args:
        runs: The sites where the edits act, at the first of their layers or an earlier one.
        edits: Layer and edit of each circuit, by name.
        seed: Seed of the bootstrap.
    """
    generator = torch.Generator().manual_seed(seed)
    together = runs.effect(list(edits.values()), "sites")
    alone = sum((runs.effect([edit], "sites") for edit in edits.values()), 0 * together)
    return JointRemoval(tuple(edits), bootstrap(together, generator), bootstrap(alone, generator))
