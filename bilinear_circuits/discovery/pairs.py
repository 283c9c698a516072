"""Pairs of output features that read the same plane: antipodal ones, like not-good and not-bad, and other relatives."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor

from bilinear_circuits.algebra.similarity import quadratic_form_similarity
from bilinear_circuits.discovery.motifs import leading_plane
from bilinear_circuits.discovery.nulls import forms_in_groups
from bilinear_circuits.discovery.results import DiscoverySettings
from bilinear_circuits.discovery.scoring import FORMS_TOGETHER, FeatureActivity, null_draws, tested_features
from bilinear_circuits.interactions.feature_interactions import FeatureInteractions
from bilinear_circuits.statistics.false_discovery import empirical_p_values, q_values
from bilinear_circuits.utilities.progress import Progress, silent

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
def plane_pairs(
    interactions: FeatureInteractions,
    activity: FeatureActivity,
    settings: DiscoverySettings | None = None,
    seed: int = 0,
    progress: Progress = silent,
) -> tuple[PlanePair, ...]:
    """Each output feature with the one whose leading plane overlaps its own most, and how far that is beyond chance.

    The null is the best overlap of features of the "refit" null, which fire together as the real ones do: encoders
    that are alike have forms that are alike already in a random layer.

    Args:
        interactions: The layer between its dictionaries.
        activity: The layer on a corpus.
        settings: Draws of the null, and which features are tested.
        seed: Seed of the null.
        progress: Wraps the draws.

    Returns:
        Every pair once, largest overlap first, significant or not.

    Raises:
        ValueError: If no output feature is active often enough.
    """
    settings = settings or DiscoverySettings()
    features = tested_features(activity, settings)
    encoders = interactions.sae_out.W_enc[:, features]
    best, partner = _best_overlap(_planes(forms_in_groups(interactions.mlp.tensor, encoders, FORMS_TOGETHER)))
    null = []
    for draw in progress(range(settings.replicates), f"null pairs of layer {interactions.mlp.layer}"):
        forms = null_draws("refit", interactions, activity, features, seed + draw)
        null.append(_best_overlap(_planes(Q for Q, _ in forms))[0])
    p = empirical_p_values(best, torch.cat(null))
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


def _planes(forms: Iterable[Float[Tensor, "feature d d"]]) -> Float[Tensor, "feature d 2"]:
    """Leading eigenvectors of either sign of every form."""
    return torch.cat([leading_plane(Q)[1] for Q in forms])


def _best_overlap(planes: Float[Tensor, "n d 2"]) -> tuple[Float[Tensor, " n"], Int[Tensor, " n"]]:
    """Largest overlap of every plane with another, and which that is: 8 n^2 d operations."""
    n, d, _ = planes.shape
    flat = planes.mT.reshape(2 * n, d)
    best, partner = [], []
    for rows in torch.arange(n, device=planes.device).split(_ROWS):
        cosines = (planes[rows].mT.reshape(-1, d) @ flat.T).view(len(rows), 2, n, 2)
        overlap = cosines.square().sum((1, 3)) / 2
        overlap[torch.arange(len(rows)), rows] = -1
        value, index = overlap.max(1)
        best.append(value)
        partner.append(index)
    return torch.cat(best), torch.cat(partner)


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
