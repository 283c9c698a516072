"""Several circuits taken out at once, of one layer or more: do their effects add up?

Each is removed from what its own layer reads in the edited run, so that a later circuit is that of a model which lacks
the earlier ones.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from bilinear_circuits.circuits.experiments import Edit, Sites
from bilinear_circuits.circuits.query import QueryTokens
from bilinear_circuits.models.running import hooked, model_blocks, model_device, run_logits
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
def edited_difference(
    model: Any, sites: Sites, tokens: QueryTokens, edits: Sequence[tuple[int, Edit]]
) -> Float[Tensor, " site"]:
    """Pole logit difference at every site in runs of the whole model with edits of its MLPs at the site.

    Args:
        model: The model.
        sites: Where the edits act and where the difference is measured.
        tokens: The query.
        edits: Layer and edit; each sees what its MLP reads in the edited run.
    """
    blocks, device = model_blocks(model), model_device(model)
    out = [torch.zeros(0, dtype=torch.double)]
    for batch in sites.batches():
        with hooked([(blocks[layer].mlp, _edits_at(edit, batch.at)) for layer, edit in edits]):
            logits = run_logits(model, batch.ids.to(device))[batch.at]
        out.append(tokens.difference(logits.double()).cpu())
    return torch.cat(out)


@torch.no_grad()
def joint_removal(
    model: Any, sites: Sites, tokens: QueryTokens, edits: Mapping[str, tuple[int, Edit]], seed: int
) -> JointRemoval:
    """Remove circuits one by one and all together.

    Args:
        model: The model.
        sites: Where the edits act and where the difference is measured.
        tokens: The query.
        edits: Layer and edit of each circuit, by name.
        seed: Seed of the bootstrap.
    """
    generator = torch.Generator().manual_seed(seed)
    base = edited_difference(model, sites, tokens, [])
    together = edited_difference(model, sites, tokens, list(edits.values())) - base
    alone = sum((edited_difference(model, sites, tokens, [edit]) - base for edit in edits.values()), 0 * base)
    return JointRemoval(tuple(edits), bootstrap(together, generator), bootstrap(alone, generator))


def _edits_at(edit: Edit, at: tuple[Tensor, Tensor]) -> Callable[[nn.Module, tuple[Tensor, ...], Tensor], Tensor]:
    """A hook that edits the output of an MLP at some places."""

    def hook(module: nn.Module, args: tuple[Tensor, ...], output: Tensor) -> Tensor:
        output = output.clone()
        output[at] += edit(args[0][at], output[at])
        return output

    return hook
