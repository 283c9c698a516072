"""Interference weights: large interactions between input features that are never active together."""

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from bilinear_circuits.interactions.active import ActiveTokens
from bilinear_circuits.interactions.feature_interactions import FeatureInteractions
from bilinear_circuits.statistics.correlations import rank_correlation
from bilinear_circuits.utilities.progress import Progress, silent


@dataclass(frozen=True)
class Interference:
    """The largest interactions of a layer, raw and weighted by co-activation.

    Attributes:
        layer: Layer of the MLP.
        k: Largest interactions looked at.
        never: Share of them whose two input features are never active together on the corpus.
        never_random: The same share of as many random pairs.
        rank_correlation: Spearman correlation of |T_ab| with |T_ab| E[z_a z_b] over them.
        kept: Share of the k with the largest |T_ab| E[z_a z_b] among the 10 k largest raw ones that are among the k
            largest raw ones too.
    """

    layer: int
    k: int
    never: float
    never_random: float
    rank_correlation: float
    kept: float


@torch.no_grad()
def interference(
    interactions: FeatureInteractions,
    inputs: ActiveTokens,
    n_tokens: int,
    k: int = 1000,
    seed: int = 0,
    progress: Progress = silent,
) -> Interference:
    """Compare the 10 k largest interactions between different features, found exactly, with how often they meet.

    Args:
        interactions: The layer between its dictionaries.
        inputs: Activations of the input dictionary on a corpus.
        n_tokens: Its tokens.
        k: How many.
        seed: Seed of the random pairs.
        progress: Wraps the search.

    Raises:
        ValueError: If `k` is not positive.
    """
    if k < 1:
        raise ValueError(f"k must be at least 1, got {k}.")
    found = interactions.top(20 * k, progress=progress)
    cross = (found.first != found.second).nonzero().squeeze(1)[: 10 * k]
    moments = inputs.second_moments(n_tokens)
    raw = found.weights[cross].abs()
    weighted = raw * moments[found.first[cross], found.second[cross]]
    generator = torch.Generator().manual_seed(seed)
    pairs = torch.randint(len(moments), (2, k), generator=generator).to(moments.device)
    best = weighted.argsort(descending=True)[:k]
    return Interference(
        layer=interactions.mlp.layer,
        k=k,
        never=_never(weighted[:k]),
        never_random=_never(moments[pairs[0], pairs[1]]),
        rank_correlation=rank_correlation(raw[:k].double(), weighted[:k].double()),
        kept=(best < k).double().mean().item(),
    )


def _never(values: Float[Tensor, " n"]) -> float:
    return (values == 0).double().mean().item()
