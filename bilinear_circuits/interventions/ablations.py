"""Ablations of input features and of whole circuits, by zero, by the mean, or by values from other tokens; and doses.

An input feature is taken out of one output feature's form alone, q_f(x') - q_f(x) written along the decoder row of f
with x' = x + (v - z_a) d_a, or out of the whole MLP input, MLP(x') - MLP(x). With v = 0 the first is minus the sum of
all terms of f that hold a.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, get_args

import torch
from jaxtyping import Float
from torch import Tensor

from bilinear_circuits.circuits.query import QueryTokens
from bilinear_circuits.interactions.activity import LayerActivity
from bilinear_circuits.interactions.feature_interactions import FeatureInteractions
from bilinear_circuits.interactions.pairs import Pairs
from bilinear_circuits.interventions.edges import write_direction, written
from bilinear_circuits.runs import Runs
from bilinear_circuits.statistics.effects import Effect, bootstrap

Method = Literal["zero", "mean", "resample"]
METHODS: tuple[Method, ...] = get_args(Method)


@dataclass(frozen=True)
class NodeAblation:
    """What taking input features out does to the pole logit difference.

    Attributes:
        name: Name of the set.
        features: Input features taken out together.
        method: What stands in their place: nothing, their mean over the corpus, or their values at a random token of
            it, one token per site.
        form: Effect when they are taken out of the output feature's form alone.
        layer: Effect when they are taken out of the whole MLP input.
    """

    name: str
    features: tuple[int, ...]
    method: Method
    form: Effect
    layer: Effect


@torch.no_grad()
def node_ablations(
    runs: Runs[QueryTokens],
    interactions: FeatureInteractions,
    feature: int,
    nodes: Mapping[str, Sequence[int]],
    corpus: LayerActivity,
    seed: int,
    methods: Sequence[Method] = METHODS,
) -> tuple[NodeAblation, ...]:
    """Ablate sets of input features, from the form and from the layer.

    Args:
        runs: The layer at the sites.
        interactions: The layer between its dictionaries.
        feature: Output feature.
        nodes: Sets of input features by name; each holds at least one.
        corpus: The layer on other stories: where means and values of other tokens come from.
        seed: Seed of the draws and of the bootstrap.
        methods: What stands in their place.
    """
    generator = torch.Generator().manual_seed(seed)
    form, row = interactions.form(feature), write_direction(interactions, feature)
    x = runs.x.to(row.dtype)
    z = interactions.sae_in.encode(x)
    cases = [(name, list(members), method) for name, members in nodes.items() for method in methods]
    changes = []
    for _, members, method in cases:
        chosen = torch.tensor(members, dtype=torch.long, device=z.device)
        instead = replacement(corpus.inputs.columns(chosen, len(corpus.x)), len(x), method, generator)
        other = x + (instead.to(z) - z[:, chosen]) @ interactions.sae_in.W_dec[chosen]
        changes += [written(form(other) - form(x), row), interactions.mlp(other) - interactions.mlp(x)]
    effects = [bootstrap(one, generator) for one in runs.effects(torch.stack(changes))]
    return tuple(
        NodeAblation(name, tuple(members), method, effects[2 * index], effects[2 * index + 1])
        for index, (name, members, method) in enumerate(cases)
    )


def replacement(
    values: Float[Tensor, "token n"], n_sites: int, method: Method, generator: torch.Generator
) -> Float[Tensor, "site n"]:
    """Draw what stands in the place of some quantities at every site, from their values at the tokens of a corpus."""
    if method == "zero":
        return values.new_zeros(n_sites, values.shape[1])
    if method == "mean":
        return values.mean(0).expand(n_sites, -1)
    return values[torch.randint(len(values), (n_sites,), generator=generator).to(values.device)]


@dataclass(frozen=True)
class CircuitAblation:
    """Effect of replacing the sum of a circuit's terms, by method."""

    method: Method
    effect: Effect


@torch.no_grad()
def circuit_ablations(
    runs: Runs[QueryTokens],
    interactions: FeatureInteractions,
    feature: int,
    edges: Pairs,
    corpus: LayerActivity,
    seed: int,
) -> tuple[CircuitAblation, ...]:
    """Replace the sum of a circuit's terms in the form by zero, its mean over the corpus, or its value elsewhere."""
    generator = torch.Generator().manual_seed(seed)
    total, elsewhere = circuit_sum(runs, interactions, edges), _corpus_sum(corpus, edges).unsqueeze(1)
    deltas = [replacement(elsewhere, len(total), method, generator).squeeze(1).to(total) - total for method in METHODS]
    effects = runs.effects(written(torch.stack(deltas), write_direction(interactions, feature)))
    return tuple(
        CircuitAblation(method, bootstrap(effect, generator)) for method, effect in zip(METHODS, effects, strict=True)
    )


def circuit_sum(runs: Runs[QueryTokens], interactions: FeatureInteractions, edges: Pairs) -> Float[Tensor, " site"]:
    """Sum of a circuit's terms at every site, in float64."""
    z = interactions.sae_in.encode(runs.x.to(interactions.sae_in.W_enc.dtype))
    return edges.contributions(z).sum(1)


def _corpus_sum(corpus: LayerActivity, edges: Pairs) -> Float[Tensor, " token"]:
    """Sum the terms of a circuit at every token of a corpus."""
    features, place = torch.stack([edges.first, edges.second]).unique(return_inverse=True)
    z = corpus.inputs.columns(features, len(corpus.x))
    return (z[:, place[0]] * z[:, place[1]]) @ edges.weight.to(z)


@dataclass(frozen=True)
class Dose:
    """Effect of scaling a circuit's terms by a factor: 1 leaves the model as it is, 0 removes them, -1 inverts them."""

    factor: float
    effect: Effect


@torch.no_grad()
def dose_response(
    runs: Runs[QueryTokens],
    interactions: FeatureInteractions,
    feature: int,
    edges: Pairs,
    factors: Sequence[float],
    seed: int,
) -> tuple[Dose, ...]:
    """Scale the terms of a circuit at the sites; effects with intervals over sites."""
    generator = torch.Generator().manual_seed(seed)
    total = circuit_sum(runs, interactions, edges)
    steps = torch.tensor([factor - 1 for factor in factors], dtype=torch.double, device=total.device)
    effects = runs.effects(written(steps.unsqueeze(1) * total, write_direction(interactions, feature)))
    return tuple(
        Dose(float(factor), bootstrap(effect, generator)) for factor, effect in zip(factors, effects, strict=True)
    )
