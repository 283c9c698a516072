"""What an intervention does further on: what later MLPs read and write, their features, and the next token."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from bilinear_circuits.circuits.query import QueryTokens
from bilinear_circuits.dictionaries.dictionary import Dictionary
from bilinear_circuits.interactions.feature_interactions import FeatureInteractions
from bilinear_circuits.models.running import model_blocks
from bilinear_circuits.runs import Runs
from bilinear_circuits.statistics.effects import Effect, bootstrap

_SIDES = {"x": "input", "y": "output"}


@dataclass(frozen=True)
class FeatureChange:
    """A later feature that an intervention changes.

    Attributes:
        side: "input" or "output" of the layer's MLP.
        feature: Its index in that dictionary.
        before: Mean activation at the sites in the model as it is.
        change: Change of the activation.
    """

    side: str
    feature: int
    before: float
    change: Effect


@dataclass(frozen=True)
class LaterLayer:
    """One MLP after the layer intervened on.

    Attributes:
        layer: Its layer.
        input_change: Norm of the change of the MLP input over the norm of the input, mean over the sites.
        output_change: The same of the MLP output.
        features: Features of either side that change most, where the layer has dictionaries.
    """

    layer: int
    input_change: float
    output_change: float
    features: tuple[FeatureChange, ...]


@dataclass(frozen=True)
class TokenChange:
    """Mean change of the log-probability of one token as the next one."""

    token_id: int
    change: float


@dataclass(frozen=True)
class LaterEffects:
    """What an intervention at the sites does after its layer.

    Attributes:
        layers: Later MLPs, in order.
        raised: Tokens whose log-probability rises most.
        lowered: Tokens whose log-probability falls most.
        divergence: Mean Kullback-Leibler divergence of the changed next-token distribution from the original, nats.
    """

    layers: tuple[LaterLayer, ...]
    raised: tuple[TokenChange, ...]
    lowered: tuple[TokenChange, ...]
    divergence: Effect


@torch.no_grad()
def later_effects(
    runs: Runs[QueryTokens],
    change: Float[Tensor, "site d_model"],
    interactions: Sequence[FeatureInteractions],
    n: int,
    seed: int,
) -> LaterEffects:
    """Follow a change of the MLP output at the sites through the rest of the model.

    Args:
        runs: The layer at the sites.
        change: What is added to its MLP output there.
        interactions: Layers with dictionaries, whose features are compared; those before or at the layer are ignored.
        n: Features of either side of a layer, and tokens, that are listed.
        seed: Seed of the bootstrap.
    """
    generator = torch.Generator().manual_seed(seed)
    layers = list(range(runs.layer + 1, len(model_blocks(runs.model))))
    dictionaries = {one.mlp.layer: one for one in interactions}
    before, after = (runs.mlps(layers, one) if layers else {} for one in (None, change))
    found = []
    for layer in layers:
        known = dictionaries.get(layer)
        sides = (("x", known.sae_in), ("y", known.sae_out)) if known else ()
        features = tuple(
            side
            for name, dictionary in sides
            for side in _changed(
                _SIDES[name], dictionary, getattr(before[layer], name), getattr(after[layer], name), n, generator
            )
        )
        shifts = [_relative(getattr(before[layer], name), getattr(after[layer], name)) for name in _SIDES]
        found.append(LaterLayer(layer, shifts[0], shifts[1], features))
    old, new = (logits.double().log_softmax(-1) for logits in (runs.logits, runs.changed_logits(change)))
    moved = (new - old).mean(0)
    tokens = [moved.topk(min(n, len(moved)), largest=largest) for largest in (True, False)]
    raised, lowered = (
        tuple(TokenChange(i, c) for i, c in zip(token.indices.tolist(), token.values.tolist(), strict=True))
        for token in tokens
    )
    divergence = (old.exp() * (old - new)).sum(-1).cpu()
    return LaterEffects(tuple(found), raised, lowered, bootstrap(divergence, generator))


def _relative(old: Float[Tensor, "site d"], new: Float[Tensor, "site d"]) -> float:
    """Mean of |new - old| / |old|."""
    return ((new - old).norm(dim=1) / old.norm(dim=1)).mean().item()


def _changed(
    side: str, dictionary: Dictionary, old: Tensor, new: Tensor, n: int, generator: torch.Generator
) -> list[FeatureChange]:
    """The features of a dictionary whose activations change most in the mean."""
    before, after = (dictionary.encode(one.to(dictionary.W_enc.dtype)).double().cpu() for one in (old, new))
    change = after - before
    best = change.mean(0).abs().topk(min(n, change.shape[1])).indices.tolist()
    return [
        FeatureChange(side, one, before[:, one].mean().item(), bootstrap(change[:, one], generator))
        for one in best
        if change[:, one].any()
    ]
