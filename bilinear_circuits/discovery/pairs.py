"""Pairs of output features that read the same plane: antipodal ones, like not-good and not-bad, and other relatives."""

from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Int
from torch import Tensor

from bilinear_circuits.algebra.similarity import quadratic_form_similarity
from bilinear_circuits.discovery.scoring import LayerScores
from bilinear_circuits.interactions.feature_interactions import FeatureInteractions
from bilinear_circuits.statistics.false_discovery import empirical_p_values, q_values

_ROWS = 512
_ALIKE = 0.5


@dataclass(frozen=True)
class PlanePair:
    """Two output features of a layer whose leading planes, of the eigenvectors v+ and v-, overlap.

    Attributes:
        layer: Layer of the MLP.
        features: The two, the smaller number first.
        overlap: Mean squared cosine of the angles between the planes: 1 for the same plane.
        correlation: Cosine between the two forms: near -1 for an antipodal pair.
        decoder_cosine: Cosine between their decoder rows.
        kind: "antipodal" or "parallel" where the correlation is beyond a half, else "shared plane".
        p: Share of null features whose best partner overlaps at least as much.
        q: Smallest false-discovery rate at which the pair is reported.
    """

    layer: int
    features: tuple[int, int]
    overlap: float
    correlation: float
    decoder_cosine: float
    kind: Literal["antipodal", "parallel", "shared plane"]
    p: float
    q: float


@torch.no_grad()
def plane_pairs(interactions: FeatureInteractions, scores: LayerScores) -> tuple[PlanePair, ...]:
    """Pair each output feature with the one whose leading plane overlaps its own most, beyond chance or not.

    The null is the best overlap of features of the "refit" null, which fire together as the real ones do: encoders
    that are alike have forms that are alike already in a random layer.

    Args:
        interactions: The layer between its dictionaries.
        scores: What `score_layer` found for it.

    Returns:
        Every pair once, largest overlap first, significant or not.
    """
    features, (best, partner) = scores.features, (scores.overlaps.best, scores.overlaps.partner)
    encoders = interactions.sae_out.W_enc[:, features]
    p = empirical_p_values(best, scores.overlaps.null)
    q = q_values(p)
    pairs: dict[tuple[int, ...], int] = {}
    for place in range(len(q)):
        key = tuple(sorted((place, int(partner[place]))))
        if key not in pairs or q[place] < q[pairs[key]]:
            pairs[key] = place
    matrices = interactions.mlp.tensor.matrix(encoders.T)
    correlations = quadratic_form_similarity(matrices, matrices, kind="correlation")
    found = [
        _pair(interactions, features, key, correlations[key].item(), best[at], p[at], q[at])
        for key, at in pairs.items()
    ]
    return tuple(sorted(found, key=lambda one: -one.overlap))


def _pair(
    interactions: FeatureInteractions,
    features: Int[Tensor, " feature"],
    places: tuple[int, ...],
    correlation: float,
    overlap: Tensor,
    p: Tensor,
    q: Tensor,
) -> PlanePair:
    first, second = sorted(int(features[place]) for place in places)
    rows = interactions.sae_out.W_dec
    return PlanePair(
        layer=interactions.mlp.layer,
        features=(first, second),
        overlap=overlap.item(),
        correlation=correlation,
        decoder_cosine=torch.nn.functional.cosine_similarity(rows[first], rows[second], dim=0).item(),
        kind="antipodal" if correlation < -_ALIKE else "parallel" if correlation > _ALIKE else "shared plane",
        p=p.item(),
        q=q.item(),
    )
