"""Every term of an output feature's quadratic form at some inputs, one by one: what an intervention can take out.

With x = sum_a z_a d_a + b + e (input features, decoder bias, what the dictionary misses) the form of a feature splits
into one term for each pair of parts: w_ab z_a z_b for two input features, w_ab = 2 T_ab (T_aa for a square), and the
like with the bias and the error as two further parts. Together they are the whole pre-activation but its constant.
What a layer fitted to gates that are not linear misses counts with the square of the error.
"""

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from bilinear_circuits.algebra.halves import pair_rows
from bilinear_circuits.algebra.tensor import QuadraticForm
from bilinear_circuits.interactions.active import ActiveTokens
from bilinear_circuits.interactions.feature_interactions import FeatureInteractions
from bilinear_circuits.interactions.pairs import Pairs
from bilinear_circuits.utilities.display import Brief

_MOST_TERMS = 50_000_000


@dataclass(frozen=True, eq=False, repr=False)
class Terms(Brief):
    """The terms of one feature's form at some inputs, as sparse columns.

    Attributes:
        first: First part of each pair, at most the second. Input features come first, d_sae stands for the decoder
            bias and d_sae + 1 for the error.
        second: Second part.
        site: Site of each term.
        pair: Its pair.
        value: Its value.
        n_sites: Number of inputs.
        d_sae: Number of input features.
    """

    first: Int[Tensor, " pair"]
    second: Int[Tensor, " pair"]
    site: Int[Tensor, " term"]
    pair: Int[Tensor, " term"]
    value: Float[Tensor, " term"]
    n_sites: int
    d_sae: int

    @property
    def of_features(self) -> Bool[Tensor, " pair"]:
        """Mask of the pairs of two input features."""
        return self.second < self.d_sae

    @property
    def mean(self) -> Float[Tensor, " pair"]:
        """Mean value of every pair over the sites; absent terms count as zero."""
        return torch.zeros(len(self.first), dtype=torch.double).index_add(0, self.pair, self.value) / self.n_sites

    @property
    def mean_magnitude(self) -> Float[Tensor, " pair"]:
        """Mean magnitude of every pair over the sites; absent terms count as zero."""
        total = torch.zeros(len(self.first), dtype=torch.double).index_add(0, self.pair, self.value.abs())
        return total / self.n_sites

    def sum(self, share: Float[Tensor, " pair"] | Bool[Tensor, " pair"] | None = None) -> Float[Tensor, " site"]:
        """Sum of the terms at every site, each times the share of its pair; of all terms by default."""
        value = self.value if share is None else self.value * share[self.pair]
        return torch.zeros(self.n_sites, dtype=torch.double).index_add(0, self.site, value)

    def among(self, edges: Pairs) -> Bool[Tensor, " pair"]:
        """Mark the pairs that are edges of a set."""
        base = self.d_sae + 2
        return torch.isin(self.first * base + self.second, (edges.first * base + edges.second).cpu())

    def holding(self, parts: Int[Tensor, " part"]) -> Bool[Tensor, " pair"]:
        """Mark the pairs that hold one of some parts, on either side."""
        return torch.isin(self.first, parts.cpu()) | torch.isin(self.second, parts.cpu())


@torch.no_grad()
def terms_at(interactions: FeatureInteractions, feature: int, x: Float[Tensor, "site d_in"]) -> Terms:
    """All terms of a feature's form at some MLP inputs, in float64.

    They sum to the pre-activation less its constant, `interactions.ledger(x, feature)` without `constant`. Biases of
    the MLP's own projections count with the decoder bias. Cost: n^2 d_mlp per site for n active input features, and
    n^2 / 2 numbers.

    Raises:
        ValueError: If there is no such feature, or there are more than 50 million terms.
    """
    dictionary = interactions.sae_in
    z = dictionary.encode(x.to(dictionary.W_enc.dtype))
    n_terms = ((z != 0).sum(1).double() + 2).square().sum().item() / 2
    if n_terms > _MOST_TERMS:
        raise ValueError(
            f"x must have at most {_MOST_TERMS} terms, got {n_terms:.2g} at {len(x)} inputs. Give fewer inputs."
        )
    form = interactions.form(feature)
    base, remainder = dictionary.d_sae + 2, interactions.gate_remainder(x, feature)
    keys, sites, values = [], [], []
    for site, (row, activation) in enumerate(zip(x.double(), z.double(), strict=True)):
        active = activation.nonzero().squeeze(1)
        written = activation[active].unsqueeze(1) * dictionary.W_dec[active].double()
        bias = dictionary.b_dec.double()
        block = _table(form, torch.cat([written, torch.stack([bias, row - written.sum(0) - bias])]))
        block[-1, -1] += remainder[site]
        parts = torch.cat([active, torch.tensor([base - 2, base - 1], device=active.device)])
        i, j = torch.triu_indices(*block.shape, device=active.device)
        keys.append(parts[i] * base + parts[j])
        sites.append(torch.full_like(i, site))
        values.append(block[i, j])
    pairs, pair = torch.cat(keys).cpu().unique(return_inverse=True)
    return Terms(
        pairs // base, pairs % base, torch.cat(sites).cpu(), pair, torch.cat(values).cpu(), len(x), dictionary.d_sae
    )


def _table(form: QuadraticForm, parts: Float[Tensor, "part d_in"]) -> Float[Tensor, "part part"]:
    """Terms of a form between the parts of one input; the last two are bias and error. Only i <= j is meant."""
    matrix = form.matrix
    gate, other = parts @ matrix.left.double(), parts @ matrix.right.double()
    table = pair_rows(gate, other, matrix.weights.double())
    linear, bias = parts @ form.linear.double(), len(parts) - 2
    table[: bias + 1, bias] += linear[: bias + 1]
    table[bias, bias + 1] += linear[bias + 1]
    return table


def coactivation(active: ActiveTokens, edges: Pairs, n_tokens: int) -> Float[Tensor, " edge"]:
    """E[z_a z_b] over tokens for every edge, in float64."""
    features, place = torch.stack([edges.first, edges.second]).unique(return_inverse=True)
    z = active.columns(features, n_tokens)
    return torch.stack([(z[:, a] * z[:, b]).sum() for a, b in place.T.tolist()]) / max(1, n_tokens)
