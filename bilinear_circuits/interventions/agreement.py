"""What a layer fitted to a gated MLP predicts of removals, beside what the model's own MLP does.

Taken out of the MLP input, with everything else as it is:

- a form: the leading eigenvectors of a feature's form. What the form loses is predicted; measured is the change of the
  pre-activation that the model's MLP gives.
- a pair, or a triple of input features: what its members do together alone. Predicted is its term, w_ab z_a z_b or
  6 T_abc z_a z_b z_c; measured the mixed difference over all runs with and without its members, which for a polynomial
  of that degree is the term.

For a bilinear MLP forms and pairs agree up to rounding.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import product
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from bilinear_circuits.interactions.activity import LayerActivity
from bilinear_circuits.interactions.cubic_interactions import CubicInteractions
from bilinear_circuits.interactions.feature_interactions import FeatureInteractions
from bilinear_circuits.interventions.edges import top_edges
from bilinear_circuits.statistics.correlations import correlation, slope
from bilinear_circuits.utilities.display import Brief, Shown, Tabled
from bilinear_circuits.utilities.kinds import check_kind, check_whole
from bilinear_circuits.utilities.progress import Progress, silent

_TRIPLE_TOKENS = 4  # all triples of a token are found: a few tokens are many
_TRIPLE_PARTS = 40  # active features that they are of, those of largest activation

Apply = Callable[[Tensor], Tensor]


@dataclass(frozen=True, eq=False, repr=False)
class Agreement(Brief):
    """Removals of one kind, one entry each.

    Attributes:
        feature: Output feature.
        predicted: Change of its pre-activation, from the fitted layer.
        measured: From the model's own MLP.
    """

    feature: Int[Tensor, " n"]
    predicted: Float[Tensor, " n"]
    measured: Float[Tensor, " n"]

    @property
    def correlation(self) -> float:
        """Correlation of all of them; nan for fewer than two."""
        return correlation(self.predicted, self.measured)

    @property
    def slope(self) -> float:
        """Measured per unit predicted."""
        return slope(self.predicted, self.measured)

    @property
    def by_feature(self) -> Float[Tensor, " feature"]:
        """Correlation within each feature that has two entries or more."""
        found = []
        for feature in self.feature.unique():
            here = self.feature == feature
            if int(here.sum()) > 1:
                found.append(correlation(self.predicted[here], self.measured[here]))
        return torch.tensor(found, dtype=torch.double)

    @classmethod
    def cat(cls, parts: "Sequence[Agreement]") -> "Agreement":
        """Those of several features as one."""
        names = ("feature", "predicted", "measured")
        return cls(*(torch.cat([getattr(part, name) for part in parts]) for name in names))


@dataclass(frozen=True, eq=False, repr=False)
class RemovalAgreement(Shown, Tabled):
    """Predicted and measured removals of many output features.

    Attributes:
        n_features: Features that were active at two tokens or more.
        rank: Rank of the forms.
        forms: One entry for each feature and token.
        pairs: One for each feature, pair and token at which the pair is active.
        triples: One for each feature, triple and token; none without a cubic layer.
    """

    n_features: int
    rank: int
    forms: Agreement
    pairs: Agreement
    triples: Agreement

    def table(self) -> dict[str, list[Any]]:
        """One row for each kind."""
        kinds = {f"rank {self.rank}": self.forms, "pairs": self.pairs, "triples": self.triples}
        return {
            "removed": [*kinds],
            "n": [len(one.predicted) for one in kinds.values()],
            "correlation": [one.correlation for one in kinds.values()],
            "slope": [one.slope for one in kinds.values()],
            "median correlation of a feature": [one.by_feature.median().item() for one in kinds.values()],
        }


@torch.no_grad()
def removal_agreement(
    activity: LayerActivity,
    features: Sequence[int],
    cubic: CubicInteractions | None = None,
    rank: int = 2,
    n_tokens: int = 32,
    n_largest: int = 20,
    seed: int = 0,
    progress: Progress = silent,
) -> RemovalAgreement:
    """Compare removals in a fitted layer with those in the model's own MLP, on tokens at which features are active.

    Cost: 4 passes of the MLP for each pair and token, 8 for each triple.

    Args:
        activity: A layer between its dictionaries on a corpus.
        features: Output features; those active at fewer than two tokens are left out.
        cubic: The same layer fitted by quadratic functions, for triples.
        rank: Eigenvectors that are taken out.
        n_tokens: Tokens of each feature.
        n_largest: Pairs, and triples of a token, of each feature: the largest.
        seed: Seed of the tokens.
        progress: Wraps the features.

    Raises:
        ValueError: If there is no such feature, or none of them is active at two tokens.
    """
    check_kind("activity", activity, LayerActivity, "collect_activity(model, [interactions], tokens) makes one.")
    for name, value in (("rank", rank), ("n_tokens", n_tokens), ("n_largest", n_largest)):
        check_whole(name, value)
    if cubic is not None and cubic.mlp.layer != activity.interactions.mlp.layer:
        raise ValueError(f"cubic must be of layer {activity.interactions.mlp.layer}, got layer {cubic.mlp.layer}.")
    generator = torch.Generator().manual_seed(seed)
    found: list[tuple[Agreement, Agreement, Agreement]] = []
    for feature in progress(features, "removals"):
        activity.interactions.check_feature(feature)
        token, _ = activity.outputs[feature]
        if len(token) > 1:
            x = activity.x[token[torch.randperm(len(token), generator=generator)[:n_tokens].to(token.device)]].double()
            found.append(_of_feature(activity.interactions, cubic, feature, x, rank, n_largest))
    if not found:
        raise ValueError(f"features must be active at two tokens or more, got {len(features)} that are not.")
    forms, pairs, triples = (Agreement.cat(part) for part in zip(*found, strict=True))
    return RemovalAgreement(len(found), rank, forms, pairs, triples)


def _of_feature(
    interactions: FeatureInteractions, cubic: CubicInteractions | None, feature: int, x: Tensor, rank: int, n: int
) -> tuple[Agreement, Agreement, Agreement]:
    """Removals of one feature."""
    mlp, row = interactions.mlp.to(torch.float64), interactions.sae_out.W_enc[:, feature].double()
    vectors = interactions.spectrum(feature, min(rank, interactions.mlp.tensor.d_in)).eigenvectors.double()
    rest = x - x @ vectors @ vectors.T
    predicted, measured = ((layer(rest) - layer(x)) @ row for layer in (mlp.tensor, mlp))

    def own(rows: Tensor) -> Tensor:
        return mlp(rows) @ row

    return (
        _entries(feature, predicted, measured),
        _pairs(interactions, feature, x, own, n),
        _triples(cubic, feature, x[:_TRIPLE_TOKENS], own, n),
    )


def _entries(feature: int, predicted: Tensor, measured: Tensor) -> Agreement:
    return Agreement(torch.full((len(predicted),), feature), predicted.cpu(), measured.cpu())


def _pairs(interactions: FeatureInteractions, feature: int, x: Tensor, own: Apply, n: int) -> Agreement:
    """The pairs of largest contribution, at the tokens where both are active; squares have no mixed difference."""
    edges = top_edges(interactions, feature, x, n)
    z = interactions.sae_in.encode(x.to(interactions.sae_in.W_enc))
    terms = edges.contributions(z) * (edges.first != edges.second)
    site, edge = terms.nonzero().unbind(1)
    W_dec = interactions.sae_in.W_dec.double()
    parts = [z[site, end].double().unsqueeze(1) * W_dec[end] for end in (edges.first[edge], edges.second[edge])]
    return _entries(feature, -terms[site, edge].double(), -mixed_difference(own, x[site], parts))


def _triples(cubic: CubicInteractions | None, feature: int, x: Tensor, own: Apply, n: int) -> Agreement:
    """The largest triples of three features at each token."""
    rows, parts, values = [x[:0]], [x.new_zeros(0, 3, x.shape[1])], [x.new_zeros(0)]
    for row in x if cubic is not None else ():
        assert cubic is not None
        found = cubic.triples(feature, row, _TRIPLE_PARTS)
        a, b, c = found.features.unbind(1)
        kept = ((c < cubic.sae_in.d_sae) & (a != b) & (b != c)).nonzero().squeeze(1)[:n]
        z = cubic.sae_in.encode(row.to(cubic.sae_in.W_enc).unsqueeze(0))[0]
        members = found.features[kept]
        rows.append(row.expand(len(kept), -1))
        parts.append((z[members].unsqueeze(2) * cubic.sae_in.W_dec[members]).double())
        values.append(found.value[kept].double())
    removed = [*torch.cat(parts).unbind(1)]
    return _entries(feature, -torch.cat(values), -mixed_difference(own, torch.cat(rows), removed))


def mixed_difference(
    function: Apply, x: Float[Tensor, "n d"], parts: Sequence[Float[Tensor, "n d"]]
) -> Float[Tensor, " n"]:
    """Measure what parts of an input do together alone: the alternating sum over all inputs with and without them.

    For a polynomial of as many degrees as there are parts it is its term in all of them.
    """
    total = torch.zeros(len(x), dtype=x.dtype, device=x.device)
    for taken in product((0, 1), repeat=len(parts)):
        removed = sum((part for part, out in zip(parts, taken, strict=True) if out), torch.zeros_like(x))
        total += (-1) ** sum(taken) * function(x - removed)
    return total
