"""Names of features: the tokens that tell most about when they are active, for one of them or for all at once."""

from collections.abc import Iterable, Sequence
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from bilinear_circuits.data.samples import FlatTokens
from bilinear_circuits.data.token_texts import TokenTexts, token_text
from bilinear_circuits.interactions.active import ActiveTokens, top_token_ids
from bilinear_circuits.interactions.activity import LayerActivity, Side

NOT_ACTIVE = "(not active)"
NO_NAME = "(no name)"  # of what is read on inputs that are no tokens
_JOINT = " · "
_N_LABEL = 3


def input_label(activity: LayerActivity, feature: int, tokenizer: Any) -> str:
    """Name an input feature: its fixed name, or the tokens that tell most about its activation."""
    return feature_label(activity, feature, tokenizer, "in")


def feature_label(activity: LayerActivity, feature: int, tokenizer: Any, side: Side) -> str:
    """Name a feature of the dictionary on the MLP input ("in") or output ("out"), as `input_label` does."""
    dictionary, active = activity.of_side(side)
    if feature in dictionary.names:
        return dictionary.names[feature]
    if not isinstance(activity.samples, FlatTokens):
        return NO_NAME
    ids = top_token_ids(active, activity.token_ids, feature)
    return made_label([token_text(tokenizer, token_id) for token_id in ids])


class FeatureNames:
    """Names of the features of some layers' dictionaries, each made when it is first asked for."""

    def __init__(self, activities: Iterable[LayerActivity], tokenizer: Any) -> None:
        """Keep layers on a corpus, and the model's tokenizer."""
        self._activities = {activity.interactions.mlp.layer: activity for activity in activities}
        self._tokenizer = tokenizer
        self._names: dict[tuple[int, int, Side], str] = {}

    def __call__(self, layer: int, feature: int, side: Side = "in") -> str:
        """Name a feature of the dictionary on the MLP input ("in") or output ("out"), as `feature_label` does."""
        key = layer, feature, side
        if key not in self._names:
            self._names[key] = feature_label(self._activities[layer], feature, self._tokenizer, side)
        return self._names[key]

    def tokens(self, layer: int, feature: int) -> tuple[str, ...]:
        """Tokens that tell most about when an output feature is active, those that tell most first."""
        activity = self._activities[layer]
        ids = top_token_ids(activity.outputs, activity.token_ids, feature)
        return tuple(token_text(self._tokenizer, token_id) for token_id in ids)


def made_label(texts: Sequence[str]) -> str:
    """Make a name of the texts of the tokens that tell most about a feature, the first ones most."""
    return _JOINT.join(texts[:_N_LABEL]) or NOT_ACTIVE


def all_labels(activity: LayerActivity, texts: TokenTexts, side: Side) -> tuple[str, ...]:
    """Name all features of a dictionary, as `feature_label` names them one at a time."""
    names = activity.of_side(side)[0].names
    return tuple(names.get(feature, made) for feature, made in enumerate(token_labels(activity, texts, side)))


def token_labels(activity: LayerActivity, texts: TokenTexts, side: Side) -> tuple[str, ...]:
    """Name all features of a dictionary by the tokens that tell most about them, whatever names are fixed."""
    if not isinstance(activity.samples, FlatTokens):
        return (NO_NAME,) * activity.of_side(side)[0].d_sae
    ids, _ = all_top_tokens(activity.of_side(side)[1], activity.token_ids, _N_LABEL)
    return tuple(made_label([texts(token_id) for token_id in row if token_id >= 0]) for row in ids.tolist())


def all_top_tokens(
    active: ActiveTokens, token_ids: Int[Tensor, " token"], n: int
) -> tuple[Int[Tensor, "d_sae n"], Float[Tensor, "d_sae n"]]:
    """The ids of `activity.top_token_ids` of all features at once, and the share of the activation that each holds.

    Cost: a sort of all activations, and memory for a few of their columns.

    Args:
        active: Activations of a dictionary.
        token_ids: Vocabulary id of each token.
        n: Ids per feature.

    Returns:
        Ids, -1 where a feature has fewer, and shares, 0 there.
    """
    d_sae, size = len(active.counts), int(token_ids.max()) + 1 if len(token_ids) else 1
    keys, group = (active.feature * size + token_ids[active.token]).unique(return_inverse=True)
    feature, token = keys // size, keys % size
    mass = torch.zeros(len(keys), dtype=torch.double, device=keys.device)
    mass.index_add_(0, group, active.value.abs().double())
    whole = torch.zeros(d_sae, dtype=torch.double, device=keys.device).index_add_(0, feature, mass)
    share = mass / whole[feature]
    score = share * (share / (torch.bincount(token_ids)[token] / len(token_ids))).log()
    order = score.argsort(descending=True, stable=True)
    order = order[feature[order].argsort(stable=True)]
    counts = feature.bincount(minlength=d_sae)
    place = torch.arange(len(order), device=keys.device) - (counts.cumsum(0) - counts)[feature[order]]
    best = order[place < n]
    at = (feature[best], place[place < n])
    ids = torch.full((d_sae, n), -1, dtype=torch.long, device=keys.device).index_put_(at, token[best])
    return ids, torch.zeros(d_sae, n, dtype=torch.double, device=keys.device).index_put_(at, share[best])
