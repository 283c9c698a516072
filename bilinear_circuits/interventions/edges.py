"""Exact interventions on single edges: take one pair term w_ab z_a z_b out of one output feature, and measure.

Only a bilinear layer has such a term to take out: it is the whole of what a and b do together. What "removed from
feature f" means is a choice of where delta = -w_ab z_a z_b is written in the MLP output:

- along "decoder": delta d_f, the feature's decoder row, as the removal of a whole form does and as an edit of the
  weights would. The pre-activation of f, read from the changed output, moves by delta (w_f . d_f), w_f its encoder row.
- along "encoder": delta w_f / |w_f|^2, the smallest change of the output that moves the pre-activation by delta.
"""

from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor

from bilinear_circuits.circuits.query import QueryTokens
from bilinear_circuits.interactions.activity import LayerActivity
from bilinear_circuits.interactions.feature_interactions import FeatureInteractions
from bilinear_circuits.interactions.pairs import Pairs, pairs_of
from bilinear_circuits.interventions.terms import coactivation, terms_at
from bilinear_circuits.runs import Runs
from bilinear_circuits.statistics.correlations import correlation, rank_correlation, slope
from bilinear_circuits.utilities.display import Brief

_EDGES_PER_CHUNK = 64

Along = Literal["decoder", "encoder"]


class UntestableError(ValueError):
    """A circuit is active at too few sites for its interventions to be measured."""


def write_direction(
    interactions: FeatureInteractions, feature: int, along: Along = "decoder"
) -> Float[Tensor, " d_model"]:
    """Find what is added to the MLP output per unit of change of a feature's form; see the module's text.

    Raises:
        ValueError: If there is no such feature.
    """
    interactions.check_feature(feature)
    if along == "decoder":
        return interactions.sae_out.W_dec[feature]
    row = interactions.sae_out.W_enc[:, feature]
    return row / row.square().sum()


def written(delta: Float[Tensor, "*n site"], direction: Float[Tensor, " d_model"]) -> Float[Tensor, "*n site d_model"]:
    """The change of the MLP output that moves a feature's form by delta at every site."""
    return delta.unsqueeze(-1).to(direction) * direction


def top_edges(interactions: FeatureInteractions, feature: int, x: Float[Tensor, "site d_in"], n: int) -> Pairs:
    """The n pairs of input features with the largest mean |w_ab z_a z_b| at some MLP inputs, largest first."""
    terms = terms_at(interactions, feature, x)
    size = torch.where(terms.of_features, terms.mean_magnitude, 0)
    best = size.topk(min(n, int((size > 0).sum()))).indices
    return pairs_of(interactions.matrix(feature), terms.first[best], terms.second[best])


def random_edges(
    interactions: FeatureInteractions,
    feature: int,
    x: Float[Tensor, "site d_in"],
    n: int,
    generator: torch.Generator,
) -> Pairs:
    """N random ones of the pairs of input features that are active together at some of the MLP inputs."""
    terms = terms_at(interactions, feature, x)
    present = terms.of_features.nonzero().squeeze(1)
    drawn = present[torch.randperm(len(present), generator=generator)[:n]]
    return pairs_of(interactions.matrix(feature), terms.first[drawn], terms.second[drawn])


@dataclass(frozen=True, eq=False, repr=False)
class EdgeExactness(Brief):
    """Predicted against measured change of the feature's pre-activation, one entry per edge and site measured.

    Attributes:
        edge: Index of the edge.
        site: Index of the site.
        predicted: -w_ab z_a z_b, from the weights and the activations.
        differenced: What the model's own MLP says the pair does together, with the sign of its removal: minus the mixed
            second difference of the pre-activation over runs in which a, b, both or none are taken out of its input.
        written: Change of the pre-activation in a forward pass with the edge removed along the encoder row.
        decoder_gain: w_f . d_f: the change, per unit of delta, when the edge is removed along the decoder row.
    """

    edge: Int[Tensor, " n"]
    site: Int[Tensor, " n"]
    predicted: Float[Tensor, " n"]
    differenced: Float[Tensor, " n"]
    written: Float[Tensor, " n"]
    decoder_gain: float

    @property
    def differenced_correlation(self) -> float:
        """Correlation of the prediction with the second differences."""
        return correlation(self.predicted, self.differenced)

    @property
    def written_correlation(self) -> float:
        """Correlation of the prediction with the change in the edited forward pass."""
        return correlation(self.predicted, self.written)

    @property
    def worst_error(self) -> float:
        """Largest difference of either measurement from the prediction, over the largest prediction."""
        errors = [(one - self.predicted).abs().max() for one in (self.differenced, self.written)]
        return (torch.stack(errors).max() / self.predicted.abs().max()).item()


@torch.no_grad()
def edge_exactness(
    runs: Runs[QueryTokens],
    interactions: FeatureInteractions,
    feature: int,
    edges: Pairs,
    n: int,
    generator: torch.Generator,
) -> EdgeExactness:
    """Measure single edges on the feature's pre-activation through hooks on the model.

    Args:
        runs: The layer at the sites.
        interactions: The layer between its dictionaries.
        feature: Output feature.
        edges: Its edges.
        n: Most (edge, site) pairs measured, drawn from those where the edge is active. Each costs four runs of the
            blocks up to the layer.
        generator: Draws them.

    Raises:
        UntestableError: If no edge is active at any site.
    """
    z = interactions.sae_in.encode(runs.x.to(interactions.sae_in.W_enc.dtype))
    terms = edges.contributions(z)
    active = terms.nonzero()
    if len(active) == 0:
        raise UntestableError("edges must be active at one site or more, got none that is. Use more stories.")
    site, edge = active[torch.randperm(len(active), generator=generator)[:n].to(active.device)].unbind(1)
    predicted = -terms[site, edge]
    parts = [
        z[site, one].unsqueeze(1) * interactions.sae_in.W_dec[one] for one in (edges.first[edge], edges.second[edge])
    ]
    square = edges.first[edge] == edges.second[edge]
    # A square is half of p(x + h) + p(x - h) - 2 p(x); a pair is p(x) - p(x - h) - p(x - k) + p(x - h - k).
    second = torch.where(square.unsqueeze(1), -parts[0], parts[1])
    none = torch.zeros_like(parts[0])
    values = [
        _pre_activation(runs, interactions, feature, site, input_change=-taken)
        for taken in (none, parts[0], second, parts[0] + second)
    ]
    mixed = values[0] - values[1] - values[2] + values[3]
    encoder = write_direction(interactions, feature, "encoder")
    moved = _pre_activation(runs, interactions, feature, site, output_change=written(predicted, encoder))
    gain = interactions.sae_out.W_enc[:, feature] @ interactions.sae_out.W_dec[feature]
    differenced = torch.where(square, mixed / 2, -mixed)
    return EdgeExactness(
        edge.cpu(), site.cpu(), predicted.cpu(), differenced.cpu(), (moved - values[0]).cpu(), gain.item()
    )


def _pre_activation(
    runs: Runs[QueryTokens],
    interactions: FeatureInteractions,
    feature: int,
    site: Int[Tensor, " row"],
    input_change: Float[Tensor, "row d_model"] | None = None,
    output_change: Float[Tensor, "row d_model"] | None = None,
) -> Float[Tensor, " row"]:
    """Pre-activation of a feature at some sites in a forward pass with the MLP's input or output changed there."""
    y = runs.mlp_output(site, input_change, output_change)
    row = interactions.sae_out.W_enc[:, feature].double()
    return y.double() @ row + interactions.sae_out.b_enc[feature].double()


@dataclass(frozen=True, eq=False, repr=False)
class EdgeEffects(Brief):
    """What removing each edge does to the pole logit difference, predicted by the direct path and measured.

    Attributes:
        first: Input feature a.
        second: Input feature b.
        kind: Why the edge is in the sample: largest "contribution", largest "weight", or "random".
        weight: Coefficient of z_a z_b.
        coactivation: E[z_a z_b] over all tokens of the corpus.
        n_active: Sites where both are active; at all others the removal does nothing.
        contribution: Mean of w_ab z_a z_b over the sites.
        predicted: Predicted effect by edge and site, with the final norm's scale held: the direct path from the decoder
            row to the poles.
        measured: Effect measured by the run of the whole model.
        logit_correlation: Pearson correlation over the vocabulary, at the sites where the edge is active, of the
            predicted with the measured change of all logits (each less its mean).
        rank_correlations: Spearman correlation over edges of the measured damage, mean |effect|, with |weight|, with
            |weight| x co-activation in the corpus, with mean |contribution| at the sites, and with the predicted one.
        effect_correlation: Pearson correlation of predicted with measured over edges and sites with the edge active.
        effect_slope: Measured per unit predicted.
    """

    first: Int[Tensor, " edge"]
    second: Int[Tensor, " edge"]
    kind: tuple[str, ...]
    weight: Float[Tensor, " edge"]
    coactivation: Float[Tensor, " edge"]
    n_active: Int[Tensor, " edge"]
    contribution: Float[Tensor, " edge"]
    predicted: Float[Tensor, "edge site"]
    measured: Float[Tensor, "edge site"]
    logit_correlation: Float[Tensor, " edge"]
    rank_correlations: dict[str, float]
    effect_correlation: float
    effect_slope: float


@torch.no_grad()
def edge_effects(
    runs: Runs[QueryTokens],
    interactions: FeatureInteractions,
    feature: int,
    samples: dict[str, Pairs],
    corpus: LayerActivity,
    directions: Float[Tensor, "d_model d_vocab"],
    scale: Float[Tensor, " site"],
) -> EdgeEffects:
    """Remove edges one by one along the decoder row, at the site, and measure poles and all logits.

    Args:
        runs: The layer at the sites.
        interactions: The layer between its dictionaries.
        feature: Output feature.
        samples: Edges by kind; one that is in several counts with the first.
        corpus: The layer on other stories, for the mean co-activation.
        directions: Unembedding with the final norm's weight folded in.
        scale: Scale of the final norm at every site.
    """
    edges, kind = _joined(interactions, feature, samples)
    z = interactions.sae_in.encode(runs.x.to(interactions.sae_in.W_enc.dtype))
    terms = edges.contributions(z).T.cpu()
    row = write_direction(interactions, feature)
    direct = (row.double() @ directions.double()).cpu()
    poles = runs.metric.difference(direct).item()
    predicted = -terms * poles / scale
    measured, logit_correlation = _measured(runs, -terms, row, -terms / scale, direct)
    active = terms != 0
    damage = measured.abs().mean(1)
    together = coactivation(corpus.inputs, edges, len(corpus.x)).cpu()
    weight = edges.weight.cpu()
    against = {
        "weight": weight.abs(),
        "weight x coactivation": weight.abs() * together,
        "contribution": terms.abs().mean(1),
        "predicted": predicted.abs().mean(1),
    }
    return EdgeEffects(
        edges.first.cpu(), edges.second.cpu(), kind, weight, together, active.sum(1), terms.mean(1), predicted,
        measured, logit_correlation, {name: rank_correlation(one, damage) for name, one in against.items()},
        correlation(predicted[active], measured[active]), slope(predicted[active], measured[active]),
    )  # fmt: skip


def _joined(
    interactions: FeatureInteractions, feature: int, samples: dict[str, Pairs]
) -> tuple[Pairs, tuple[str, ...]]:
    """The samples as one, each edge once, with the kind of each."""
    kinds: dict[tuple[int, int], str] = {}
    for kind, edges in samples.items():
        for pair in zip(edges.first.tolist(), edges.second.tolist(), strict=True):
            kinds.setdefault(pair, kind)
    pairs = torch.tensor(list(kinds), dtype=torch.long, device=interactions.sae_in.W_dec.device).view(-1, 2)
    return pairs_of(interactions.matrix(feature), pairs[:, 0], pairs[:, 1]), tuple(kinds.values())


def _measured(
    runs: Runs[QueryTokens],
    delta: Float[Tensor, "edge site"],
    row: Float[Tensor, " d_model"],
    step: Float[Tensor, "edge site"],
    direct: Float[Tensor, " d_vocab"],
) -> tuple[Float[Tensor, "edge site"], Float[Tensor, " edge"]]:
    """Effect on the poles by edge and site, and correlation over the vocabulary of predicted and measured logits."""
    effect = torch.zeros_like(delta)
    products = torch.zeros(3, len(delta), dtype=torch.double)
    centred = direct - direct.mean()
    base = runs.logits.double()
    for first in range(0, len(delta), _EDGES_PER_CHUNK):
        for edge, site, logits in runs.rerun(written(delta[first : first + _EDGES_PER_CHUNK].to(row.device), row)):
            moved = (logits.double() - base[site]).cpu()
            edge, site = edge.cpu() + first, site.cpu()
            effect[edge, site] = runs.metric(logits).cpu() - runs.values[site]
            moved = moved - moved.mean(1, keepdim=True)
            size = step[edge, site]
            products[0].index_add_(0, edge, size * (moved @ centred))
            products[1].index_add_(0, edge, size.square() * centred.square().sum())
            products[2].index_add_(0, edge, moved.square().sum(1))
    return effect, products[0] / (products[1] * products[2]).sqrt()
