"""Necessity, sufficiency, and the complement: what is left of a feature's effect when parts of its form are removed.

The whole effect of a feature's form at the sites is that of removing all its terms at once. A part of it is lost when a
circuit's edges are removed (necessity), and a part is kept when nothing but them is left (sufficiency). Since terms
add up before the rest of the model sees them, the worst subset of the complement for the feature's mean pre-activation
is known exactly: all pairs whose mean term has the sign of the form itself. No search is needed.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from bilinear_circuits.circuits.query import QueryTokens
from bilinear_circuits.interactions.feature_interactions import FeatureInteractions
from bilinear_circuits.interactions.pairs import Pairs
from bilinear_circuits.interventions.edges import write_direction, written
from bilinear_circuits.interventions.terms import Terms, terms_at
from bilinear_circuits.runs import Runs
from bilinear_circuits.statistics.effects import Effect, bootstrap, bootstrap_ratio


@dataclass(frozen=True)
class EdgeSet:
    """How much of a feature's effect a set of edges carries.

    Attributes:
        name: Name of the set.
        n_edges: Number of its edges that are active at one site or more.
        share: Its part of the form, mean over the sites over mean.
        removed: Effect of removing its edges.
        alone: Effect of removing everything else of the form.
        alone_mean: Effect of replacing everything else by its mean over the sites.
        lost: Share of the whole effect that is lost without it: removed over whole.
        kept: Share that is kept by it alone: 1 - alone over whole.
    """

    name: str
    n_edges: int
    share: float
    removed: Effect
    alone: Effect
    alone_mean: Effect
    lost: Effect
    kept: Effect


@dataclass(frozen=True)
class ComplementSubset:
    """A subset of the complement removed, with the circuit left in place.

    Attributes:
        kind: "random"; "worst", the pairs that support the form most, or all that do; "best", all that work against it.
        size: Share of the complement's pairs that is removed.
        shift: Mean change of the form at the sites.
        effect: Mean effect on the pole logit difference.
        survived: Share of the whole effect of the form that is left: 1 - effect over whole.
        circuit: Effect of removing the circuit in the model that lacks the subset, over its effect in the full model.
    """

    kind: str
    size: float
    shift: float
    effect: float
    survived: float
    circuit: float


@dataclass(frozen=True)
class ComplementTests:
    """Necessity, sufficiency and complement tests of one feature's circuit.

    Attributes:
        form: Mean of the form at the sites: the pre-activation less its constant.
        whole: Effect of removing the whole form at the sites.
        sets: Sets of edges, the circuit first, all pairs of input features last.
        subsets: Subsets of the circuit's complement.
    """

    form: float
    whole: Effect
    sets: tuple[EdgeSet, ...]
    subsets: tuple[ComplementSubset, ...]


@torch.no_grad()
def complement_tests(
    runs: Runs[QueryTokens],
    interactions: FeatureInteractions,
    feature: int,
    sets: Mapping[str, Pairs],
    sizes: Sequence[float],
    n_draws: int,
    seed: int,
) -> ComplementTests:
    """Test sets of edges, and remove random and extreme subsets of the complement of the first of them.

    Args:
        runs: The layer at the sites.
        interactions: The layer between its dictionaries.
        feature: Output feature.
        sets: Sets of edges by name; the first is the circuit.
        sizes: Shares of the complement's pairs that random subsets hold.
        n_draws: Random subsets of each size.
        seed: Seed of the subsets and of the bootstrap.
    """
    generator = torch.Generator().manual_seed(seed)
    terms = terms_at(interactions, feature, runs.x)
    row = write_direction(interactions, feature)

    def effects(deltas: Sequence[Tensor]) -> Float[Tensor, "variant site"]:
        return runs.effects(written(torch.stack(list(deltas)).to(row.device), row))

    everything = terms.sum()
    whole = effects([-everything])[0]
    masks = {name: terms.among(edges) for name, edges in sets.items()} | {"all pairs of features": terms.of_features}
    found = tuple(_edge_set(name, terms, mask, whole, effects, generator) for name, mask in masks.items())
    circuit = next(iter(masks.values()))
    chosen = _subsets(terms, circuit, sizes, n_draws, generator)
    inside = terms.sum(circuit)
    deltas = [-terms.sum(subset) for _, subset in chosen]
    left, both = effects(deltas), effects([delta - inside for delta in deltas])
    alone, n_complement = effects([-inside])[0].mean(), int((~circuit).sum())
    subsets = tuple(
        ComplementSubset(
            kind, int(subset.sum()) / max(1, n_complement), delta.mean().item(), effect.mean().item(),
            (1 - effect.mean() / whole.mean()).item(), ((together - effect).mean() / alone).item(),
        )
        for (kind, subset), delta, effect, together in zip(chosen, deltas, left, both, strict=True)
    )  # fmt: skip
    return ComplementTests(everything.mean().item(), bootstrap(whole, generator), found, subsets)


def worst_subset(
    terms: Terms, kept: Bool[Tensor, " pair"], sign: int, most: int | None = None
) -> Bool[Tensor, " pair"]:
    """The pairs outside of `kept` whose removal moves the mean of the form furthest against the sign.

    Exactly those whose mean over the sites has that sign, or the largest of them: the mean of a sum of terms is the sum
    of their means.

    Args:
        terms: The terms.
        kept: Pairs that are left in place.
        sign: 1 or -1.
        most: Most pairs of the subset; any number by default.
    """
    support = torch.where(kept, 0, terms.mean * sign)
    chosen = support > 0
    if most is not None:
        chosen = torch.zeros_like(kept).index_fill(0, support.topk(min(most, int(chosen.sum()))).indices, True)
    return chosen


def _subsets(
    terms: Terms, circuit: Bool[Tensor, " pair"], sizes: Sequence[float], n_draws: int, generator: torch.Generator
) -> list[tuple[str, Bool[Tensor, " pair"]]]:
    """Random and worst subsets of the complement of every size, and the two extreme ones."""
    outside = (~circuit).nonzero().squeeze(1)
    chosen = []
    for size in sizes:
        for _ in range(n_draws):
            subset = torch.zeros_like(circuit)
            subset[outside[torch.randperm(len(outside), generator=generator)[: round(size * len(outside))]]] = True
            chosen.append(("random", subset))
    sign = 1 if terms.sum().mean() > 0 else -1
    worst, best = worst_subset(terms, circuit, sign), worst_subset(terms, circuit, -sign)
    for size in sizes:
        if (most := round(size * len(outside))) < int(worst.sum()):
            chosen.append(("worst", worst_subset(terms, circuit, sign, most)))
    return [*chosen, ("worst", worst), ("best", best)]


def _edge_set(
    name: str,
    terms: Terms,
    chosen: Bool[Tensor, " pair"],
    whole: Float[Tensor, " site"],
    effects: Callable[[Sequence[Tensor]], Tensor],
    generator: torch.Generator,
) -> EdgeSet:
    """Necessity and sufficiency of one set."""
    inside, rest = terms.sum(chosen), terms.sum(~chosen)
    removed, alone, alone_mean = effects([-inside, -rest, rest.mean() - rest])
    lost = bootstrap_ratio(removed, whole, generator)
    gone = bootstrap_ratio(alone, whole, generator)
    kept = Effect(1 - gone.mean, 1 - gone.high, 1 - gone.low, gone.n)
    share = (inside.mean() / (inside + rest).mean()).item()
    return EdgeSet(
        name, int(chosen.sum()), share, bootstrap(removed, generator), bootstrap(alone, generator),
        bootstrap(alone_mean, generator), lost, kept,
    )  # fmt: skip
