"""Low-rank correlation: how well a few eigenvectors of Q predict when an output feature is active, and how strongly."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from bilinear_circuits.algebra.forms import QuadraticForms
from bilinear_circuits.algebra.leading import leading_spectra
from bilinear_circuits.algebra.precision import exact_sums
from bilinear_circuits.interactions.active import ActiveTokens, active_tokens
from bilinear_circuits.interactions.feature_interactions import FeatureInteractions
from bilinear_circuits.statistics.correlations import masked_pearson
from bilinear_circuits.utilities.display import Result
from bilinear_circuits.utilities.progress import Progress, silent

RANKS = (1, 2, 4, 8, 16)
MIN_ACTIVE = 10
_FEATURES_PER_GROUP, _GROUP_ENTRIES = 64, 1 << 23


@dataclass(frozen=True)
class Share:
    """A share with a bootstrap interval.

    Attributes:
        value: The share.
        low: Lower end of the 95 % interval.
        high: Upper end.
        n: Number of features it is a share of.
    """

    value: float
    low: float
    high: float
    n: int


@dataclass(frozen=True, eq=False, repr=False)
class LowRankCorrelation(Result):
    """Active-only Pearson correlation of rank-r forms with a dictionary's own activations.

    Attributes:
        features: Output features measured.
        ranks: Rank of each column; d_in in the last one, the whole form.
        correlation: One row per feature; NaN for features left out.
        n_active: Active tokens of each feature.
        min_active: Features with at most this many active tokens are left out.
    """

    features: Int[Tensor, " feature"]
    ranks: tuple[int, ...]
    correlation: Float[Tensor, "feature rank"]
    n_active: Int[Tensor, " feature"]
    min_active: int

    @property
    def kept(self) -> Bool[Tensor, " feature"]:
        """Mask of the features with enough active tokens."""
        return self.n_active > self.min_active

    def at_rank(self, rank: int) -> Float[Tensor, " kept"]:
        """Correlations of the features kept, at one of the ranks.

        Raises:
            ValueError: If the rank was not measured.
        """
        if rank not in self.ranks:
            raise ValueError(f"rank must be one of those measured, {self.ranks}, got {rank}.")
        column = self.correlation[:, self.ranks.index(rank)]
        return column[self.kept & ~column.isnan()]  # NaN too where an activation or a form is constant

    def mean(self, rank: int) -> float:
        """Mean correlation over the features kept."""
        return self.at_rank(rank).mean().item()

    def share_above(self, rank: int, threshold: float = 0.75, n_bootstrap: int = 1000, seed: int = 0) -> Share:
        """Share of features above a threshold, with a 95 % percentile bootstrap interval over features."""
        above = (self.at_rank(rank) > threshold).double()
        if len(above) == 0:
            return Share(float("nan"), float("nan"), float("nan"), 0)
        generator = torch.Generator().manual_seed(seed)
        # Resampling a share: the number of features above is binomial.
        share = above.mean().cpu()
        draws = torch.binomial(torch.full((n_bootstrap,), len(above)).double(), share, generator=generator)
        low, high = (draws / len(above)).quantile(torch.tensor([0.025, 0.975], dtype=torch.double)).tolist()
        return Share(share.item(), low, high, len(above))


@torch.no_grad()
def low_rank_correlation(
    interactions: FeatureInteractions,
    x: Float[Tensor, "token d_in"],
    ranks: Sequence[int] | None = None,
    features: Sequence[int] | None = None,
    min_active: int = MIN_ACTIVE,
    active: ActiveTokens | None = None,
    progress: Progress = silent,
) -> LowRankCorrelation:
    """Correlate the rank-r quadratic form of each output feature with the dictionary's activations.

    For feature f with encoder direction w: the form sum_{i<=r} lambda_i (v_i . x)^2 of the r eigenpairs of Q_w of
    largest magnitude, against the activation of f, over the tokens where f is active (Pearson; Pearce et al. 2024,
    arXiv 2410.08417, section 5). The whole form is always measured too, as the last column: it shows that the form is
    exact (1 up to rounding), or how near a layer is that was fitted to other gates.

    Args:
        interactions: An MLP between two dictionaries.
        x: MLP inputs, one row per token; drop the [BOS] position and padding before.
        ranks: Ranks to measure, besides the full one; 1, 2, 4, 8 and 16, as far as d_in reaches, by default.
        features: Output features; all of them by default.
        min_active: Features with at most this many active tokens are left out (NaN).
        active: Activations of the output dictionary on the same tokens, to share work.
        progress: Wraps the loops.

    Cost: the leading eigenpairs of a d_in x d_in matrix per feature (`algebra.leading`), and d_in^2 operations
    per activation.

    Raises:
        ValueError: If a rank or a feature is out of range.
    """
    d_in = interactions.mlp.tensor.d_in
    if min_active < 1:
        raise ValueError(f"min_active must be at least 1, got {min_active}: a correlation needs two tokens.")
    x = x.to(interactions.mlp.tensor.W_gate.dtype)
    ranks = [rank for rank in RANKS if rank < d_in] if ranks is None else ranks
    for rank in ranks:
        if not 1 <= rank <= d_in:
            raise ValueError(f"ranks must be between 1 and d_in={d_in}, got {rank}.")
    if active is None:
        active = active_tokens(interactions.sae_out, x, interactions.mlp, progress)
    chosen = torch.tensor(range(interactions.sae_out.d_sae) if features is None else list(features), dtype=torch.long)
    for feature in chosen.tolist():
        interactions.check_feature(feature)
    columns = (*(rank for rank in ranks if rank < d_in), d_in)
    correlation = torch.full((len(chosen), len(columns)), torch.nan, dtype=torch.double)
    n_active = active.counts.cpu()[chosen]
    enough = (n_active > min_active).nonzero().squeeze(1)
    forms = QuadraticForms(interactions.mlp.tensor, interactions.sae_out.W_enc[:, chosen])
    for index in progress(_groups(n_active, enough, d_in), "low-rank forms"):
        linear = interactions.mlp.tensor.quadratic_form(interactions.sae_out.W_enc[:, chosen[index]].T).linear
        rows, value, present = _padded(active, chosen[index], x)
        predicted = _predictions(forms(index).Q.to(x.dtype), linear, rows, columns)
        correlation[index] = masked_pearson(predicted, value, present).cpu()
    return LowRankCorrelation(chosen, columns, correlation, n_active, min_active)


def _groups(n_active: Tensor, enough: Tensor, d_in: int) -> list[Tensor]:
    """Features with about as many active tokens together, so that little of a padded group is padding."""
    groups: list[list[int]] = [[]]
    for index in enough[n_active[enough].argsort()].tolist():
        together = len(groups[-1]) + 1
        if together > _FEATURES_PER_GROUP or together * int(n_active[index]) * d_in > _GROUP_ENTRIES:
            groups.append([])
        groups[-1].append(index)
    return [torch.tensor(group, dtype=torch.long) for group in groups if group]


def _padded(active: ActiveTokens, features: Tensor, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """MLP inputs and activations at the active tokens of each feature, padded, and which are no padding."""
    starts, counts = active.offsets[features.to(active.offsets.device)], active.counts[features]
    steps = torch.arange(int(counts.max()), device=starts.device)
    present = steps < counts[:, None]
    at = (starts[:, None] + steps).where(present, 0)
    return x[active.token[at]], active.value[at], present


@exact_sums()
def _predictions(
    Q: Float[Tensor, "feature d d"],
    linear: Float[Tensor, "feature d"],
    x: Float[Tensor, "feature token d"],
    ranks: Sequence[int],
) -> Float[Tensor, "feature token rank"]:
    """Forms of each rank, the whole form last, each with the linear part."""
    spectra = leading_spectra(Q, max(ranks[:-1], default=1)).spectrum
    partial = ((x @ spectra.eigenvectors).square() * spectra.eigenvalues.unsqueeze(1)).cumsum(-1)
    whole = ((x @ Q) * x).sum(-1, keepdim=True)
    chosen = torch.cat([partial[:, :, [rank - 1 for rank in ranks[:-1]]], whole], -1)
    return chosen + x @ linear.unsqueeze(2)
