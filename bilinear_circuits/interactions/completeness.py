"""Completeness of a circuit: which share of a feature's activation its interactions explain, of all that feed it."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Bool
from torch import Tensor

from bilinear_circuits.interactions.activity import LayerActivity
from bilinear_circuits.interactions.bounds import Summary
from bilinear_circuits.interactions.ledger import PairContributions
from bilinear_circuits.utilities.display import Shown
from bilinear_circuits.utilities.feature import OfFeature
from bilinear_circuits.utilities.progress import Progress, silent

Edge = tuple[int, int]


@dataclass(frozen=True, repr=False)
class CircuitCompleteness(OfFeature, Shown):
    """How much of an output feature the interactions of a circuit explain, where the feature is active.

    Shares are of the pre-activation before TopK or ReLU, the total of the ledger. They can exceed 1 or be negative:
    other terms work against the feature.

    Attributes:
        layer: Layer of the MLP.
        feature: Output feature.
        n_edges: Pairs of input features in the circuit, self-interactions included.
        n_active: Tokens at which the feature is active.
        pairs: Share of all pairs of input features, at each of the tokens measured.
        circuit: Share of the circuit's pairs alone.
        pairs_total: Sum over the tokens of what all pairs add, over the sum of pre-activations.
        circuit_total: The same of the circuit's pairs.
        covered: Share of the pairs' magnitude, sum |T_ab z_a z_b|, that lies in the circuit, over all those tokens.
        seed: Seed of the choice of tokens.
    """

    layer: int
    feature: int
    n_edges: int
    n_active: int
    pairs: Summary
    circuit: Summary
    pairs_total: float
    circuit_total: float
    covered: float
    seed: int


def group_edges(first: Sequence[int], second: Sequence[int] | None = None) -> set[Edge]:
    """All pairs (a, b) with a in the first group and b in the second, or both in the first; each once, a <= b."""
    return {(min(a, b), max(a, b)) for a in first for b in (first if second is None else second)}


@torch.no_grad()
def circuit_completeness(
    activity: LayerActivity,
    feature: int,
    edges: Iterable[Edge],
    max_tokens: int = 400,
    seed: int = 0,
    progress: Progress = silent,
) -> CircuitCompleteness:
    """Measure which share of an output feature some of its interactions explain.

    Args:
        activity: Its layer on a corpus.
        feature: Output feature.
        edges: Pairs of input features, in any order; see `group_edges`.
        max_tokens: Most active tokens measured; a random sample where there are more.
        seed: Seed of the sample.
        progress: Wraps the tokens.

    Cost: O(n^2 d_mlp) for each token, with n active input features.

    Raises:
        ValueError: If there is no such feature, an edge names no input feature, or `max_tokens` is not positive.
    """
    interactions = activity.interactions
    interactions.check_feature(feature)
    if max_tokens < 1:
        raise ValueError(f"max_tokens must be at least 1, got {max_tokens}.")
    d_sae = interactions.sae_in.d_sae
    keys = _keys(edges, d_sae)
    token = activity.outputs[feature][0]
    chosen = torch.randperm(len(token), generator=torch.Generator().manual_seed(seed))[:max_tokens]
    x = activity.x[token[chosen.to(token.device)]]
    ledger = interactions.ledger(x, feature)
    sums = torch.zeros(len(x), 3, dtype=torch.double)
    for index in progress(range(len(x)), "complete"):
        pairs = interactions.pair_contributions(x[index], feature)
        inside = _inside(pairs, keys, d_sae)
        size = pairs.contributions.abs()
        sums[index] = torch.stack([pairs.contributions[inside].sum(), size[inside].sum(), size.sum()])
    within, covered, size = sums.unbind(1)
    total, pairs_sum = ledger.total.cpu(), ledger.feature_feature.cpu()
    return CircuitCompleteness(
        layer=interactions.mlp.layer,
        feature=feature,
        n_edges=len(keys),
        n_active=len(token),
        pairs=Summary.of(ledger.completeness.cpu()),
        circuit=Summary.of(within / total),
        pairs_total=(pairs_sum.sum() / total.sum()).item(),
        circuit_total=(within.sum() / total.sum()).item(),
        covered=(covered.sum() / size.sum()).item(),
        seed=seed,
    )


def _keys(edges: Iterable[Edge], d_sae: int) -> Tensor:
    """One number for each pair, whichever of the two comes first."""
    keys = set()
    for a, b in edges:
        if not (0 <= a < d_sae and 0 <= b < d_sae):
            raise ValueError(f"edges must be pairs of input features between 0 and {d_sae - 1}, got ({a}, {b}).")
        keys.add(min(a, b) * d_sae + max(a, b))
    return torch.tensor(sorted(keys), dtype=torch.long)


def _inside(pairs: PairContributions, keys: Tensor, d_sae: int) -> Bool[Tensor, " pair"]:
    """Which pairs belong to the circuit; the first of each is the smaller one."""
    return torch.isin(pairs.first * d_sae + pairs.second, keys.to(pairs.first.device))
