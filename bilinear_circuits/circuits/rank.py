"""Ranking the output features of a layer for a query."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from bilinear_circuits.algebra.spectra import Spectrum
from bilinear_circuits.circuits.query import QueryTokens
from bilinear_circuits.dictionaries.dictionary import Dictionary
from bilinear_circuits.interactions.activity import LayerActivity
from bilinear_circuits.interactions.shape import and_shape
from bilinear_circuits.statistics.correlations import pearson
from bilinear_circuits.utilities.display import Brief
from bilinear_circuits.utilities.feature import OfFeature
from bilinear_circuits.utilities.progress import Progress, silent

MIN_TRIGGER_TOKENS = 10


@dataclass(frozen=True, repr=False)
class Evidence(OfFeature, Brief):
    """Why an output feature is, or is not, a candidate for a query.

    Attributes:
        layer: Layer of the MLP.
        feature: Output feature.
        trigger_share: Share of its activation that lies on trigger tokens.
        pole_shift: How far its decoder row moves the positive pole against the negative one through the unembedding:
            mean logit of the positive words less that of the negative words, in standard deviations of the row's
            logits over the vocabulary.
        outlier_ratio: Smaller magnitude of the leading eigenvalue pair of opposite signs, over the semicircle edge of a
            random symmetric matrix of the same norm. Interaction matrices are no such matrices: most features of any
            layer, trained or not, lie above 1, so the percentile is what tells.
        outlier_percentile: Share of a random sample of the layer's features with a smaller ratio.
        and_shape: Share of the interaction mass between the two groups of input features; see `AndShape`.
        and_percentile: Share of the same sample with a smaller one.
        rank2_correlation: Active-only correlation of the rank-2 form with the activation.
        n_active: Tokens at which the feature is active.
        n_trigger: Trigger tokens among them.
        eigenvalues: The leading eight, by magnitude.
        score: Geometric mean of trigger_share, |pole_shift|, outlier_ratio, and_shape and rank2_correlation (0 where
            negative): strong in every respect, with no weights to choose.
    """

    layer: int
    feature: int
    trigger_share: float
    pole_shift: float
    outlier_ratio: float
    outlier_percentile: float
    and_shape: float
    and_percentile: float
    rank2_correlation: float
    n_active: int
    n_trigger: int
    eigenvalues: tuple[float, ...]
    score: float

    @property
    def sign(self) -> int:
        """The pole it pushes to: +1 positive, -1 negative."""
        return 1 if self.pole_shift > 0 else -1


def trigger_share(activity: LayerActivity, tokens: QueryTokens) -> Float[Tensor, " d_sae"]:
    """Share of every output feature's activation that lies on trigger tokens; 0 for features never active."""
    on_trigger = tokens.is_trigger(activity.token_ids).to(activity.x.device, torch.float32)
    total = activity.outputs.sum_over_tokens(torch.ones_like(on_trigger))
    return activity.outputs.sum_over_tokens(on_trigger) / total.clamp_min(1e-12)


def pole_shift(
    dictionary: Dictionary, unembedding: Float[Tensor, "d_model d_vocab"], tokens: QueryTokens
) -> Float[Tensor, " d_sae"]:
    """Project every decoder row on the difference of the poles; see `Evidence.pole_shift`."""
    shifts = []
    for rows in dictionary.W_dec.split(512):
        logits = rows @ unembedding.to(rows.dtype)
        shifts.append(tokens.difference(logits) / logits.std(1).clamp_min(1e-12))
    return torch.cat(shifts)


@dataclass(frozen=True, eq=False, repr=False)
class Screen(Brief):
    """What is known of every output feature of a layer before any is decomposed.

    Attributes:
        share: Trigger share.
        shift: Pole shift.
        n_trigger: Trigger tokens at which the feature is active.
        norm: Frobenius norm of its interaction matrix.
    """

    share: Float[Tensor, " d_sae"]
    shift: Float[Tensor, " d_sae"]
    n_trigger: Int[Tensor, " d_sae"]
    norm: Float[Tensor, " d_sae"]


@torch.no_grad()
def screen_features(
    activity: LayerActivity, tokens: QueryTokens, unembedding: Float[Tensor, "d_model d_vocab"]
) -> Screen:
    """Trigger share, pole shift, trigger tokens and norm of every output feature of a layer."""
    interactions = activity.interactions
    share = trigger_share(activity, tokens)
    shift = pole_shift(interactions.sae_out, unembedding, tokens).double()
    on_trigger = tokens.is_trigger(activity.token_ids).double().to(share.device)
    norm = interactions.mlp.tensor.matrix(interactions.sae_out.W_enc.T).frobenius_norm()
    return Screen(share, shift, _active_count(activity, on_trigger), norm)


@torch.no_grad()
def rank_features(
    activity: LayerActivity, screen: Screen, n_shortlist: int, n_baseline: int, seed: int, progress: Progress = silent
) -> list[Evidence]:
    """Rank the output features of one layer, best first.

    All features are screened by trigger share and pole shift; the best `n_shortlist` of either sign, active on more
    than ten trigger tokens, are then decomposed and scored in full, and compared with `n_baseline` random features.
    """
    product = screen.share * screen.shift.abs() * (screen.n_trigger > MIN_TRIGGER_TOKENS)
    shortlist: list[int] = []
    for sign in (1, -1):
        best = (product * (screen.shift.sign() == sign)).topk(min(n_shortlist, len(product)))
        shortlist += best.indices[best.values > 0].tolist()
    if not shortlist:
        return []
    alive = (activity.outputs.counts > MIN_TRIGGER_TOKENS).nonzero().squeeze(1).cpu()
    sample = alive[torch.randperm(len(alive), generator=torch.Generator().manual_seed(seed))[:n_baseline]].tolist()
    layer = activity.interactions.mlp.layer
    baseline = [_form_of(activity, feature) for feature in progress(sample, f"baseline layer {layer}")]
    evidence = [_score(activity, feature, screen, baseline) for feature in progress(shortlist, f"score layer {layer}")]
    return sorted(evidence, key=lambda one: -one.score)


@dataclass(frozen=True, eq=False)
class _Form:
    """What the decomposition of one feature shows."""

    spectrum: Spectrum
    outlier_ratio: float
    and_shape: float


def _form_of(activity: LayerActivity, feature: int) -> _Form:
    spectrum = activity.interactions.spectrum(feature)
    return _Form(spectrum, spectrum.outlier_ratio().item(), and_shape(activity, feature, spectrum).score)


def _active_count(activity: LayerActivity, chosen: Tensor) -> Int[Tensor, " d_sae"]:
    """Number of chosen tokens at which every output feature is active."""
    outputs = activity.outputs
    count = torch.zeros(len(outputs.counts), dtype=torch.double, device=chosen.device)
    return count.index_add(0, outputs.feature, chosen[outputs.token]).long()


def _score(activity: LayerActivity, feature: int, screen: Screen, baseline: Sequence[_Form]) -> Evidence:
    form = _form_of(activity, feature)
    token, value = activity.outputs[feature]
    x = activity.x[token]
    predicted = form.spectrum.truncate(2)(x) + x @ activity.interactions.form(feature).linear
    correlation = pearson(predicted.unsqueeze(1), value).item()
    share, shift = screen.share[feature].item(), screen.shift[feature].item()
    parts = (share, abs(shift), form.outlier_ratio, form.and_shape, max(0.0, correlation))
    return Evidence(
        layer=activity.interactions.mlp.layer,
        feature=feature,
        trigger_share=share,
        pole_shift=shift,
        outlier_ratio=form.outlier_ratio,
        outlier_percentile=sum(one.outlier_ratio < form.outlier_ratio for one in baseline) / max(1, len(baseline)),
        and_shape=form.and_shape,
        and_percentile=sum(one.and_shape < form.and_shape for one in baseline) / max(1, len(baseline)),
        rank2_correlation=correlation,
        n_active=len(token),
        n_trigger=int(screen.n_trigger[feature]),
        eigenvalues=tuple(form.spectrum.eigenvalues[:8].tolist()),
        score=math.prod(parts) ** (1 / len(parts)),
    )
