"""Motif scores of all output features of a layer, beside those of its nulls."""

import itertools
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from bilinear_circuits.discovery.motifs import MotifScores, motif_scores
from bilinear_circuits.discovery.nulls import (
    SAME_FORMS,
    Null,
    forms_in_groups,
    null_forms,
    randomised_layer,
    refitted_encoders,
)
from bilinear_circuits.discovery.overlaps import PlaneOverlaps, best_overlaps
from bilinear_circuits.discovery.results import DiscoverySettings
from bilinear_circuits.interactions.activity import ActiveTokens, FeatureActivity
from bilinear_circuits.interactions.feature_interactions import FeatureInteractions
from bilinear_circuits.statistics.false_discovery import empirical_p_values
from bilinear_circuits.utilities.display import Brief
from bilinear_circuits.utilities.progress import Progress, silent

FORMS_TOGETHER = 64
OVERLAP_NULL: Null = "refit"  # whose features fire together as the real ones do


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
    layer = interactions.mlp.layer
    own = [motif_scores(Q, rows) for Q in forms_in_groups(tensor, encoders, FORMS_TOGETHER)]
    scores, planes = MotifScores.cat(own), [one.plane for one in own]
    nulls = dict.fromkeys((*settings.nulls, OVERLAP_NULL))
    draws = [(null, draw) for null in nulls for draw in range(settings.replicates)]
    null_scores, null_overlaps = [], []
    for null, draw in progress(draws, f"nulls of layer {layer}"):
        forms = null_draws(null, interactions, activity, features, seed + draw)
        known = planes if null in SAME_FORMS else itertools.repeat(None)
        drawn = [motif_scores(Q, directions, plane) for (Q, directions), plane in zip(forms, known, strict=False)]
        if null in settings.nulls:
            null_scores.append(torch.cat([one.score for one in drawn]))
        if null == OVERLAP_NULL:
            null_overlaps.append(best_overlaps(torch.cat([one.plane[1] for one in drawn]))[0])
    by_null = torch.stack(null_scores).view(len(settings.nulls), -1, scores.score.shape[1])
    overlaps = PlaneOverlaps(*best_overlaps(scores.plane[1]), torch.cat(null_overlaps))
    norms = tensor.matrix(encoders.T).frobenius_norm()
    return LayerScores(features, scores, by_null, p_values(scores.score, by_null), norms, overlaps)


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
    null: Null,
    interactions: FeatureInteractions,
    activity: FeatureActivity,
    features: Int[Tensor, " feature"],
    seed: int,
) -> Iterator[tuple[Float[Tensor, "feature d_in d_in"], Float[Tensor, "d_sae_in d_in"]]]:
    """Forms of some output features under one draw of a null, and the decoder rows they are read with, in groups."""
    generator = torch.Generator().manual_seed(seed)
    tensor, rows = interactions.mlp.tensor, unit_rows(interactions, activity.inputs)
    if null != "refit":
        encoders = interactions.sae_out.W_enc[:, features]
        yield from null_forms(null, tensor, encoders, rows, generator, FORMS_TOGETHER)
        return
    layer = randomised_layer(tensor, generator)
    encoders = refitted_encoders(layer(activity.x.to(tensor.W_gate.dtype)), activity.outputs)[:, features]
    for Q in forms_in_groups(layer, encoders, FORMS_TOGETHER):
        yield Q, rows
