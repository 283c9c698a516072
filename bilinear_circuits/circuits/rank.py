"""Ranking the output features of a layer for a query."""

from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from bilinear_circuits.activity import LayerActivity
from bilinear_circuits.circuits.query import QueryTokens
from bilinear_circuits.dictionaries import Dictionary
from bilinear_circuits.lowrank import pearson
from bilinear_circuits.progress import Progress, silent
from bilinear_circuits.shape import and_shape

MIN_TRIGGER_TOKENS = 10


@dataclass(frozen=True)
class Evidence:
    """Why an output feature is, or is not, a candidate for a query.

    Attributes:
        layer: Layer of the MLP.
        feature: Output feature.
        trigger_share: Share of its activation that lies on trigger tokens.
        pole_shift: How far its decoder row moves the positive pole against the negative one through the unembedding:
            mean logit of the positive words less that of the negative words, in standard deviations of the row's
            logits over the vocabulary.
        outlier_ratio: Smaller magnitude of the leading eigenvalue pair of opposite signs, over the semicircle edge of a
            random symmetric matrix of the same norm: above 1, both are outliers.
        and_shape: Share of the interaction mass between the two groups of input features; see `AndShape`.
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
    and_shape: float
    rank2_correlation: float
    n_active: int
    n_trigger: int
    eigenvalues: tuple[float, ...]
    score: float

    @property
    def sign(self) -> int:
        """The pole it pushes to: +1 positive, -1 negative."""
        return 1 if self.pole_shift > 0 else -1

    @property
    def name(self) -> str:
        """For instance "3/2774": layer and feature."""
        return f"{self.layer}/{self.feature}"


def trigger_share(activity: LayerActivity, tokens: QueryTokens) -> Float[Tensor, " d_sae"]:
    """Share of every output feature's activation that lies on trigger tokens; 0 for features never active."""
    on_trigger = tokens.is_trigger(activity.token_ids).to(activity.x.device, torch.float32)
    total = activity.outputs.sum_over_tokens(torch.ones_like(on_trigger))
    return activity.outputs.sum_over_tokens(on_trigger) / total.clamp_min(1e-12)


def pole_shift(
    dictionary: Dictionary, unembedding: Float[Tensor, "d_model d_vocab"], tokens: QueryTokens
) -> Float[Tensor, " d_sae"]:
    """How far every decoder row moves the positive pole against the negative one; see `Evidence.pole_shift`."""
    shifts = []
    for rows in dictionary.W_dec.split(512):
        logits = rows @ unembedding.to(rows.dtype)
        difference = logits[:, tokens.positive].mean(1) - logits[:, tokens.negative].mean(1)
        shifts.append(difference / logits.std(1).clamp_min(1e-12))
    return torch.cat(shifts)


@torch.no_grad()
def rank_features(
    activity: LayerActivity,
    tokens: QueryTokens,
    unembedding: Float[Tensor, "d_model d_vocab"],
    n_shortlist: int,
    progress: Progress = silent,
) -> list[Evidence]:
    """Rank the output features of one layer, best first.

    All features are screened by trigger share and pole shift; the best `n_shortlist` of either sign, active on more
    than ten trigger tokens, are then decomposed and scored in full.
    """
    share = trigger_share(activity, tokens)
    shift = pole_shift(activity.interactions.sae_out, unembedding, tokens).double()
    on_trigger = tokens.is_trigger(activity.token_ids).double().to(share.device)
    n_trigger = _active_count(activity, on_trigger)
    screen = share * shift.abs() * (n_trigger > MIN_TRIGGER_TOKENS)
    shortlist: list[int] = []
    for sign in (1, -1):
        best = (screen * (shift.sign() == sign)).topk(min(n_shortlist, len(screen)))
        shortlist += best.indices[best.values > 0].tolist()
    evidence = [
        _score(activity, feature, share[feature].item(), shift[feature].item(), int(n_trigger[feature]))
        for feature in progress(shortlist, f"score layer {activity.interactions.mlp.layer}")
    ]
    return sorted(evidence, key=lambda one: -one.score)


def _active_count(activity: LayerActivity, chosen: Tensor) -> Int[Tensor, " d_sae"]:
    """Number of chosen tokens at which every output feature is active."""
    outputs = activity.outputs
    count = torch.zeros(len(outputs.counts), dtype=torch.double, device=chosen.device)
    return count.index_add(0, outputs.feature, chosen[outputs.token]).long()


def _score(activity: LayerActivity, feature: int, share: float, shift: float, n_trigger: int) -> Evidence:
    form = activity.interactions.form(feature)
    spectrum = form.matrix.eigh()
    token, value = activity.outputs[feature]
    predicted = spectrum.truncate(2)(activity.x[token]) + activity.x[token] @ form.linear
    correlation = pearson(predicted.unsqueeze(1), value).item()
    smaller = min(spectrum.eigenvalues.max().item(), -spectrum.eigenvalues.min().item())
    outlier_ratio = max(0.0, smaller) / spectrum.semicircle_edge().item()
    shape = and_shape(activity, feature, spectrum).score
    parts = (share, abs(shift), outlier_ratio, shape, max(0.0, correlation))
    score = torch.tensor(parts, dtype=torch.double).prod().item() ** (1 / len(parts))
    leading = tuple(spectrum.eigenvalues[:8].tolist())
    return Evidence(
        activity.interactions.mlp.layer, feature, share, shift, outlier_ratio, shape, correlation,
        len(token), n_trigger, leading, score,
    )  # fmt: skip
