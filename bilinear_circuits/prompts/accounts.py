"""What output features do on one prompt: their account at every token, and what removing them does to the next token.

1. A text becomes token ids as the corpus does, [BOS] in front: `prompt_tokens`.
2. The model runs once for each layer asked for; every feature gets its activation, its ledger and its pairs of input
   features, in float64, so that pairs and terms add up to the last digit shown.
3. The rank-r form of each feature is removed from the weights, and what comes after the layer runs again.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from bilinear_circuits.data.stories import tokenize_stories
from bilinear_circuits.interactions.feature_interactions import FeatureInteractions
from bilinear_circuits.interactions.ledger import Ledger, PairContributions
from bilinear_circuits.models.running import context_length, vocabulary_size
from bilinear_circuits.runs import CrossEntropy, Runs, Sites
from bilinear_circuits.surgery.edits import FormEdit
from bilinear_circuits.utilities.display import Brief
from bilinear_circuits.utilities.feature import Feature, OfFeature


@dataclass(frozen=True, eq=False, repr=False)
class NextTokens(Brief):
    """The next-token distribution after every token of a prompt, before and after an edit of the weights.

    Attributes:
        before_ids: The most likely tokens before the edit, likeliest first.
        before: Their probabilities.
        after_ids: The most likely tokens after the edit.
        after: Their probabilities.
        changed_ids: The tokens whose probability changed most, largest change first.
        changed_before: Their probabilities before the edit.
        changed_after: Their probabilities after it.
        kl: Kullback-Leibler divergence KL(before || after) of the whole distribution, nats.
    """

    before_ids: Int[Tensor, "pos n"]
    before: Float[Tensor, "pos n"]
    after_ids: Int[Tensor, "pos n"]
    after: Float[Tensor, "pos n"]
    changed_ids: Int[Tensor, "pos n"]
    changed_before: Float[Tensor, "pos n"]
    changed_after: Float[Tensor, "pos n"]
    kl: Float[Tensor, " pos"]

    @classmethod
    def of(cls, before: Float[Tensor, "pos d_vocab"], after: Float[Tensor, "pos d_vocab"], n: int) -> "NextTokens":
        """Compare two sets of logits, in float64; the n first of each list."""
        log_before, log_after = (logits.double().log_softmax(-1) for logits in (before, after))
        p, q = log_before.exp(), log_after.exp()
        n = min(n, p.shape[-1])
        most, most_after, changed = p.topk(n), q.topk(n), (q - p).abs().topk(n).indices
        # Rounding can leave the divergence of equal distributions a hair below zero.
        kl = (p * (log_before - log_after)).sum(-1).clamp_min(0)
        return cls(
            before_ids=most.indices,
            before=most.values,
            after_ids=most_after.indices,
            after=most_after.values,
            changed_ids=changed,
            changed_before=p.gather(-1, changed),
            changed_after=q.gather(-1, changed),
            kl=kl,
        )


@dataclass(frozen=True, eq=False, repr=False)
class FeatureAccount(OfFeature, Brief):
    """One output feature at every token of a prompt.

    Attributes:
        layer: Layer of the MLP.
        feature: Output feature.
        activation: Activation on what the model's MLP wrote.
        pre_activation: The same before TopK or ReLU.
        ledger: Where the pre-activation comes from; its total is `pre_activation`, up to the rounding of the model.
        pairs: For each token what every pair of active input features adds, largest magnitude first.
        edit: The edit of the weights measured; by default it removes the rank-2 form of the feature.
        next_tokens: The next-token distribution before and after it.
    """

    layer: int
    feature: int
    activation: Float[Tensor, " pos"]
    pre_activation: Float[Tensor, " pos"]
    ledger: Ledger
    pairs: tuple[PairContributions, ...]
    edit: FormEdit
    next_tokens: NextTokens


@dataclass(frozen=True, eq=False, repr=False)
class PromptAccount(Brief):
    """Output features on one prompt.

    Attributes:
        token_ids: Tokens of the prompt, without [BOS].
        features: One account for each output feature asked for, in that order.
    """

    token_ids: Int[Tensor, " pos"]
    features: tuple[FeatureAccount, ...]


def prompt_tokens(text: str, tokenizer: Any, context: int) -> Int[Tensor, " pos"]:
    """Token ids of a text, [BOS] first, as the corpus is tokenized; unknown words become [UNK].

    Args:
        text: The prompt.
        tokenizer: The model's own.
        context: Longest row of the model, [BOS] included.

    Raises:
        ValueError: If the text holds no token or more than the context takes, or the tokenizer has neither a [BOS] nor
            an [EOS] token.
    """
    # One token more than fits is read, which tells a prompt that is too long from one that just fits.
    tokens = tokenize_stories([text], tokenizer, context + 1)
    n_tokens = int(tokens.mask.sum())
    if n_tokens == 0:
        raise ValueError(f"prompt must hold at least one token, got {text!r}. Write a few words.")
    if n_tokens > context - 1:
        raise ValueError(
            f"prompt must have at most {context - 1} tokens, which with [BOS] fill the model's context, got more."
            " Shorten it."
        )
    return tokens.ids[0]


def in_float64(interactions: FeatureInteractions) -> FeatureInteractions:
    """Promote interactions to float64; those that are stay the same object, with what they have cached."""
    if interactions.sae_in.W_enc.dtype == torch.float64:
        return interactions
    dtype = torch.float64
    return FeatureInteractions(
        interactions.mlp.to(dtype),
        interactions.sae_in.to(dtype),
        interactions.sae_out.to(dtype),
        least_recovered=-math.inf,  # which was checked when they were made
    )


def check_prompt(
    model: nn.Module,
    interactions: Sequence[FeatureInteractions],
    features: Sequence[tuple[int, int]],
    token_ids: Int[Tensor, " pos"],
) -> None:
    """Refuse features, interactions and tokens that do not fit together.

    Raises:
        ValueError: If no feature is asked for, one is asked for twice or does not exist, two interactions are of one
            layer, an MLP is read elsewhere than at its input, or the tokens are no [BOS] with one token or more that
            the model knows and has room for.
    """
    layers = {one.mlp.layer: one for one in interactions}
    if len(layers) < len(interactions):
        raise ValueError(f"interactions must be of different layers, got {[one.mlp.layer for one in interactions]}.")
    for name in features:
        if not isinstance(name, tuple) or list(map(type, name)) != [int, int]:
            raise ValueError(f"features must be pairs of layer and feature, such as (4, 143), got {name!r}.")
    if not features or len(set(features)) < len(features):
        raise ValueError(f"features must name at least one (layer, feature), each once, got {list(features)}.")
    for layer, feature in features:
        if layer not in layers:
            known = ", ".join(map(str, layers)) or "none"
            asked = Feature(layer, feature)
            raise ValueError(f"features must be of layers whose interactions are given ({known}), got {asked}.")
        layers[layer].check_feature(feature)
    for layer, one in layers.items():
        if one.mlp.hook_in != f"blocks.{layer}.mlp.hook_in":
            raise ValueError(
                f"interactions must read the MLP at blocks.{layer}.mlp.hook_in, where the model is captured, got"
                f" {one.mlp.hook_in}."
            )
    n_tokens, context, d_vocab = len(token_ids), context_length(model), vocabulary_size(model)
    if not 2 <= n_tokens <= context:
        raise ValueError(f"token_ids must be [BOS] and 1 to {context - 1} tokens, got {n_tokens} in all.")
    if not 0 <= int(token_ids.min()) <= int(token_ids.max()) < d_vocab:
        raise ValueError(
            f"token_ids must be between 0 and {d_vocab - 1}, got {int(token_ids.min())} to {int(token_ids.max())}."
        )


@torch.no_grad()
def explain_prompt(
    model: nn.Module,
    interactions: Sequence[FeatureInteractions],
    features: Sequence[tuple[int, int]],
    token_ids: Int[Tensor, " pos"],
    rank: int = 2,
    n_next: int = 8,
    edits: Mapping[tuple[int, int], FormEdit] | None = None,
) -> PromptAccount:
    """Account for output features at every token of a prompt.

    The model runs once for each layer asked for; the layers after it twice more, and once for each feature. Each
    (feature, token) costs O(n^2 d_mlp) for n active input features. Interactions in float64 (`in_float64`) save their
    conversion, and edits made before save one eigendecomposition for each feature: a server keeps both.

    Args:
        model: The model that the interactions were read from.
        interactions: One for each layer asked for, or more.
        features: Layer and output feature of each account.
        token_ids: The prompt, [BOS] first; see `prompt_tokens`.
        rank: Rank of the form that is removed from the weights.
        n_next: Next tokens listed.
        edits: Edits to use instead of removing the rank-r form, by layer and feature.

    Raises:
        ValueError: See `check_prompt`; or if the rank is not between 0 and d_in, `n_next` is not positive, or an edit
            is of another feature than the one it is given for.
    """
    check_prompt(model, interactions, features, token_ids)
    if n_next < 1:
        raise ValueError(f"n_next must be at least 1, got {n_next}.")
    for name, edit in (edits or {}).items():
        if edit.key != name:
            raise ValueError(f"edits must be of the features they are given for, got {edit.name} for {Feature(*name)}.")
    accounts: dict[tuple[int, int], FeatureAccount] = {}
    for layer in interactions:
        chosen = [name for name in features if name[0] == layer.mlp.layer]
        if not chosen:
            continue
        exact, runs = in_float64(layer), Runs(model, layer.mlp.layer, _after_bos(token_ids), CrossEntropy())
        for name in chosen:
            edit = (edits or {}).get(name) or FormEdit.of(exact, name[1], rank)
            accounts[name] = _account(exact, name[1], runs, edit, n_next)
    return PromptAccount(token_ids[1:].cpu(), tuple(accounts[name] for name in features))


def _after_bos(token_ids: Int[Tensor, " pos"]) -> Sites:
    """Every token of a prompt but its first."""
    position = torch.arange(1, len(token_ids))
    return Sites(token_ids.cpu().unsqueeze(0), position, torch.zeros_like(position))


def _account(
    interactions: FeatureInteractions, feature: int, runs: Runs[CrossEntropy], edit: FormEdit, n_next: int
) -> FeatureAccount:
    """One feature, at all tokens but [BOS]; the edit acts there too, being one of the weights."""
    x, y = runs.x.double(), runs.y.double()
    sae_out = interactions.sae_out
    return FeatureAccount(
        layer=interactions.mlp.layer,
        feature=feature,
        activation=sae_out.encode(y)[:, feature],
        pre_activation=sae_out.pre_activations(y)[:, feature],
        ledger=interactions.ledger(x, feature),
        pairs=tuple(interactions.pair_contributions(row, feature) for row in x),
        edit=edit,
        next_tokens=NextTokens.of(runs.logits, runs.edited_logits(edit), n_next),
    )
