"""Everything a page about one output feature shows: spectrum, input groups, scatter, examples, completeness."""

from dataclasses import dataclass, replace
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from bilinear_circuits.activity import LayerActivity, top_token_ids
from bilinear_circuits.lowrank import pearson
from bilinear_circuits.shape import AndShape, and_shape
from bilinear_circuits.spectra import Spectrum

_SCATTER_POINTS = 400
_LEDGER_TOKENS = 400
_TOKENS_BEFORE, _TOKENS_AFTER = 14, 6


@dataclass(frozen=True)
class Example:
    """A stretch of a story around a token at which a feature is active.

    Attributes:
        tokens: Token texts.
        values: Activation of the feature at each of them.
        centre: Index of the token the example was chosen for.
        quantile: Where its activation lies among the feature's active tokens, 1 for the strongest.
    """

    tokens: tuple[str, ...]
    values: tuple[float, ...]
    centre: int
    quantile: float


@dataclass(frozen=True, eq=False)
class FeatureProfile:
    """One output feature of a layer, measured on a corpus.

    Attributes:
        layer: Layer of the MLP.
        feature: Output feature.
        frequency: Share of tokens at which it is active.
        top_tokens: Tokens that tell most about its activation.
        promoted: Tokens its decoder row raises most through the unembedding, with logits.
        suppressed: Tokens it lowers most.
        spectrum: Full spectrum of its form on the MLP input.
        shape: Its two groups of input features.
        input_labels: Names of the input features of the two groups, by their top tokens, first group then second.
        projections: Every input feature's decoder row on the two leading eigenvectors, which are turned so that the
            activation-weighted mean of the MLP input has positive products with them.
        eigenvector_labels: For each of the two eigenvectors, the input features with the largest |d . v| x usage:
            (feature, label, d . v).
        predicted: Rank-2 form at a sample of the active tokens.
        actual: Activation at the same tokens.
        rank2_correlation: Over all active tokens.
        terms: Mean of every term of the ledger over a sample of at most 400 active tokens.
        completeness: Median over the same sample of the share of the pre-activation that pairs of input features
            explain.
        examples: From the whole range of activation, strongest first.
    """

    layer: int
    feature: int
    frequency: float
    top_tokens: tuple[str, ...]
    promoted: tuple[tuple[str, float], ...]
    suppressed: tuple[tuple[str, float], ...]
    spectrum: Spectrum
    shape: AndShape
    input_labels: tuple[str, ...]
    projections: Float[Tensor, "d_sae_in 2"]
    eigenvector_labels: tuple[tuple[tuple[int, str, float], ...], ...]
    predicted: Float[Tensor, " n"]
    actual: Float[Tensor, " n"]
    rank2_correlation: float
    terms: dict[str, float]
    completeness: float
    examples: tuple[Example, ...]


@torch.no_grad()
def profile_feature(
    activity: LayerActivity,
    feature: int,
    unembedding: Float[Tensor, "d_model d_vocab"],
    tokenizer: Any,
    n_tokens: int = 10,
    n_examples: int = 9,
) -> FeatureProfile:
    """Measure one output feature.

    Args:
        activity: Its layer on a corpus.
        feature: Output feature.
        unembedding: Unembedding with the final norm weight folded in.
        tokenizer: Gives token ids their text.
        n_tokens: Tokens listed as promoted and suppressed.
        n_examples: Examples shown.

    Raises:
        ValueError: If there is no such feature, or it is active at fewer than two tokens of the corpus.
    """
    interactions = activity.interactions
    form = interactions.form(feature)
    token, value = activity.outputs[feature]
    if len(token) < 2:
        raise ValueError(
            f"feature must be active at two tokens of the corpus or more, got {feature} of layer"
            f" {interactions.mlp.layer}, active at {len(token)} of {len(activity.x)}. Use a larger corpus."
        )
    x = activity.x[token]
    spectrum = _turned_to(value @ x, form.matrix.eigh())
    shape = and_shape(activity, feature, spectrum)
    predicted = spectrum.truncate(2)(x) + x @ form.linear
    sample = _evenly(len(token), _SCATTER_POINTS)
    ledger = interactions.ledger(x[_evenly(len(token), _LEDGER_TOKENS)], feature)
    logits = interactions.sae_out.W_dec[feature] @ unembedding.to(value.dtype)
    projections = interactions.sae_in.W_dec @ spectrum.eigenvectors[:, :2]
    return FeatureProfile(
        layer=interactions.mlp.layer,
        feature=feature,
        frequency=len(token) / len(activity.x),
        top_tokens=tuple(
            token_text(tokenizer, i) for i in top_token_ids(activity.outputs, activity.token_ids, feature, 5)
        ),
        promoted=_extreme_tokens(logits, n_tokens, tokenizer),
        suppressed=_extreme_tokens(-logits, n_tokens, tokenizer, -1),
        spectrum=spectrum,
        shape=shape,
        input_labels=tuple(
            input_label(activity, member, tokenizer) for member in torch.cat([shape.first, shape.second]).tolist()
        ),
        projections=projections,
        eigenvector_labels=tuple(_eigenvector_labels(activity, token, column, tokenizer) for column in projections.T),
        predicted=predicted[sample],
        actual=value[sample],
        rank2_correlation=pearson(predicted.unsqueeze(1), value).item(),
        terms={name: term.mean().item() for name, term in ledger.terms.items()},
        completeness=ledger.completeness.median().item(),
        examples=_examples(activity, token, value, tokenizer, n_examples),
    )


def token_text(tokenizer: Any, token_id: int) -> str:
    """Text of one token, as the tokenizer writes it; marks of byte-level and SentencePiece tokenizers are resolved."""
    raw = str(tokenizer.convert_ids_to_tokens(int(token_id)))
    if raw.isascii():
        return raw
    decoded = str(tokenizer.decode([int(token_id)], clean_up_tokenization_spaces=False))
    return raw.replace("Ġ", " ").replace("▁", " ") if "▁" in raw or "\ufffd" in decoded else decoded


def input_label(activity: LayerActivity, feature: int, tokenizer: Any) -> str:
    """Name of an input feature: the tokens that tell most about its activation."""
    ids = top_token_ids(activity.inputs, activity.token_ids, feature)
    return " · ".join(token_text(tokenizer, token_id) for token_id in ids) or "(not active)"


def _turned_to(centre: Float[Tensor, " d"], spectrum: Spectrum) -> Spectrum:
    """Turn eigenvectors, whose sign is arbitrary, to have a positive product with a direction."""
    signs = torch.where(centre @ spectrum.eigenvectors < 0, -1, 1)
    return replace(spectrum, eigenvectors=spectrum.eigenvectors * signs)


def _evenly(n: int, most: int) -> Int[Tensor, " m"]:
    """Up to `most` indices below n, evenly spread."""
    return torch.linspace(0, n - 1, min(n, most)).long()


def _extreme_tokens(logits: Tensor, n: int, tokenizer: Any, sign: int = 1) -> tuple[tuple[str, float], ...]:
    best = logits.topk(min(n, len(logits)))
    return tuple(
        (token_text(tokenizer, token_id), sign * logit)
        for token_id, logit in zip(best.indices.tolist(), best.values.tolist(), strict=True)
    )


def _eigenvector_labels(
    activity: LayerActivity, token: Tensor, projection: Tensor, tokenizer: Any, n: int = 10
) -> tuple[tuple[int, str, float], ...]:
    """Input features that move along an eigenvector most while the output feature is active."""
    chosen = torch.zeros(len(activity.x), device=activity.x.device)
    chosen[token] = 1
    used = activity.inputs.sum_over_tokens(chosen).to(projection.dtype)
    best = (used * projection.abs()).topk(min(n, len(projection))).indices.tolist()
    return tuple((f, input_label(activity, f, tokenizer), projection[f].item()) for f in best)


def _examples(activity: LayerActivity, token: Tensor, value: Tensor, tokenizer: Any, n: int) -> tuple[Example, ...]:
    """Examples at evenly spaced quantiles of activation, strongest first, each from another story where possible."""
    activation = torch.zeros(len(activity.x))
    activation[token.cpu()] = value.float().cpu()
    by_strength = token[value.argsort(descending=True)].tolist()
    examples: list[Example] = []
    seen: set[int] = set()
    for rank in _evenly(len(by_strength), n).tolist():
        end = min(len(by_strength), rank + max(1, len(by_strength) // n))
        fresh = [r for r in range(rank, end) if int(activity.story[by_strength[r]]) not in seen]
        rank = fresh[0] if fresh else rank
        seen.add(int(activity.story[by_strength[rank]]))
        quantile = 1 - rank / max(1, len(by_strength) - 1)
        examples.append(_example(activity, by_strength[rank], activation, quantile, tokenizer))
    return tuple(examples)


def _example(activity: LayerActivity, centre: int, activation: Tensor, quantile: float, tokenizer: Any) -> Example:
    """The stretch of a story around a token."""
    low, high = max(0, centre - _TOKENS_BEFORE), min(len(activity.x), centre + _TOKENS_AFTER + 1)
    inside = [t for t in range(low, high) if activity.story[t] == activity.story[centre]]
    texts = tuple(token_text(tokenizer, int(activity.token_ids[t])) for t in inside)
    values = tuple(round(activation[t].item(), 4) for t in inside)
    return Example(texts, values, inside.index(centre), quantile)
