"""Motif scores of all output features of a layer, beside those of its nulls."""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import TypeVar

import torch
from jaxtyping import Float, Int
from torch import Tensor

from bilinear_circuits.discovery.motifs import MotifScores, motif_scores
from bilinear_circuits.discovery.nulls import (
    SAME_FORMS,
    Null,
    forms_in_groups,
    null_forms,
    null_rows,
    randomised_layer,
    refitted_encoders,
)
from bilinear_circuits.discovery.overlaps import PlaneOverlaps, best_overlaps
from bilinear_circuits.discovery.results import DiscoverySettings
from bilinear_circuits.interactions.active import ActiveTokens
from bilinear_circuits.interactions.activity import FeatureActivity
from bilinear_circuits.interactions.feature_interactions import FeatureInteractions
from bilinear_circuits.statistics.false_discovery import empirical_p_values
from bilinear_circuits.utilities.display import Brief
from bilinear_circuits.utilities.progress import Progress, silent

FORMS_TOGETHER = 64
OVERLAP_NULL: Null = "refit"  # whose features fire together as the real ones do

Draw = tuple[Null, int]
"""A null, and the number of a draw of it."""

Key = TypeVar("Key")


@dataclass(frozen=True, eq=False, repr=False)
class LayerScores(Brief):
    """Motif scores of one layer and of its nulls.

    Attributes:
        features: Output features tested.
        scores: Their scores.
        null: Scores of each motif under each null, in the order of the settings, all draws together.
        p: P-value of each score: the largest of those against each null.
        norms: Frobenius norm of each form.
        overlaps: Of the plane of each form with the one nearest to it, and under the null "refit" of every plane of
            every draw, whether p-values use that null or not; see `pairs`.
    """

    features: Int[Tensor, " feature"]
    scores: MotifScores
    null: Float[Tensor, "null null_feature motif"]
    p: Float[Tensor, "feature motif"]
    norms: Float[Tensor, " feature"]
    overlaps: PlaneOverlaps


@torch.no_grad()
def score_layer(
    interactions: FeatureInteractions,
    activity: FeatureActivity,
    settings: DiscoverySettings | None = None,
    seed: int = 0,
    progress: Progress = silent,
) -> LayerScores:
    """Score the output features of a layer against all motifs, and as many features of each draw of each null.

    Args:
        interactions: The layer between its dictionaries.
        activity: The layer on a corpus.
        settings: How the search is done.
        seed: Seed of the nulls.
        progress: Wraps the draws.

    Cost: (1 + nulls x draws) times `motif_scores` of all features.

    Raises:
        ValueError: If no output feature is active often enough.
    """
    settings = settings or DiscoverySettings()
    features = tested_features(activity, settings)
    tensor, rows = interactions.mlp.tensor, unit_rows(interactions, activity.inputs)
    encoders = interactions.sae_out.W_enc[:, features]
    nulls = dict.fromkeys((*settings.nulls, OVERLAP_NULL))
    draws = [(null, draw) for null in nulls for draw in range(settings.replicates)]
    own: dict[Draw | None, Float[Tensor, "d_sae_in d_in"]] = {None: rows}
    own |= {(null, draw): null_rows(null, rows, seed + draw) for null, draw in draws if null in SAME_FORMS}
    found: dict[Draw | None, MotifScores] = {}
    passes = [None, *(draw for draw in draws if draw not in own)]
    for draw in progress(passes, f"motifs of layer {interactions.mlp.layer}, and of nulls"):
        if draw is None:
            found |= _motifs(forms_in_groups(tensor, encoders, FORMS_TOGETHER), own)
        else:
            found |= _motifs(null_draws(draw, interactions, activity, features, seed), {draw: rows})
    scores = found[None]
    by_null = torch.stack(
        [torch.cat([found[null, draw].score for draw in range(settings.replicates)]) for null in settings.nulls]
    )
    drawn = [found[OVERLAP_NULL, draw].plane[1] for draw in range(settings.replicates)]
    overlaps = PlaneOverlaps(*best_overlaps(scores.plane[1]), torch.cat([best_overlaps(planes)[0] for planes in drawn]))
    norms = tensor.matrix(encoders.T).frobenius_norm()
    return LayerScores(features, scores, by_null, p_values(scores.score, by_null), norms, overlaps)


def _motifs(
    forms: Iterable[Float[Tensor, "feature d_in d_in"]], rows: Mapping[Key, Float[Tensor, "d_sae_in d_in"]]
) -> dict[Key, MotifScores]:
    """Score forms, read with each of some sets of decoder rows; their leading planes are found once."""
    parts: dict[Key, list[MotifScores]] = {key: [] for key in rows}
    for Q in forms:
        plane = None
        for key, directions in rows.items():
            parts[key].append(motif_scores(Q, directions, plane))
            plane = parts[key][-1].plane
    return {key: MotifScores.cat(part) for key, part in parts.items()}


def tested_features(activity: FeatureActivity, settings: DiscoverySettings) -> Int[Tensor, " feature"]:
    """Output features that are active often enough.

    Raises:
        ValueError: If none is.
    """
    features = (activity.outputs.counts > settings.min_active).nonzero().squeeze(1)
    if len(features) == 0:
        raise ValueError(
            f"outputs must hold features active on more than {settings.min_active} tokens, got none. Use more text."
        )
    return features


def unit_rows(interactions: FeatureInteractions, inputs: ActiveTokens) -> Float[Tensor, "d_sae_in d_in"]:
    """Decoder rows of norm 1 of the input features that are ever active, zero for the others."""
    rows = torch.nn.functional.normalize(interactions.sae_in.W_dec, dim=1)
    return rows * (inputs.counts > 0).unsqueeze(1)


def p_values(
    scores: Float[Tensor, "feature motif"], null: Float[Tensor, "null null_feature motif"]
) -> Float[Tensor, "feature motif"]:
    """The largest of the p-values of each score against the scores of its motif under each null."""
    by_null = [torch.stack([empirical_p_values(s, n) for s, n in zip(scores.T, one.T, strict=True)], 1) for one in null]
    return torch.stack(by_null).amax(0)


def null_draws(
    draw: Draw,
    interactions: FeatureInteractions,
    activity: FeatureActivity,
    features: Int[Tensor, " feature"],
    seed: int,
) -> Iterator[Float[Tensor, "feature d_in d_in"]]:
    """Forms of some output features under one draw of a null that changes them, in groups."""
    null, number = draw
    generator = torch.Generator().manual_seed(seed + number)
    tensor = interactions.mlp.tensor
    if null != "refit":
        return null_forms(null, tensor, interactions.sae_out.W_enc[:, features], generator, FORMS_TOGETHER)
    layer = randomised_layer(tensor, generator)
    encoders = refitted_encoders(layer(activity.x.to(tensor.W_gate.dtype)), activity.outputs)[:, features]
    return forms_in_groups(layer, encoders, FORMS_TOGETHER)
