"""What output features compute: their forms on a corpus, and the pairs of input features that make them."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from bilinear_circuits.interactions.active_features import ActiveFeatures
from bilinear_circuits.interactions.examples import evenly
from bilinear_circuits.interactions.profiles import Profiler
from bilinear_circuits.sweep import TopInteractions
from bilinear_circuits.utilities.display import Brief
from sae.report.results import OutputReading, Pair

N_PAIRS = 12
_N_MEMBERS, _N_TOKENS = 256, 400


@torch.no_grad()
def read_outputs(profiler: Profiler, features: Sequence[int], top: TopInteractions) -> Iterator[OutputReading]:
    """Readings of some output features, in their order.

    Cost: one decomposition of a (d_in, d_in) matrix each, and work in proportion to the active tokens.

    Args:
        profiler: Measures forms of these features.
        features: Output features.
        top: The largest interactions of each of them in the weights.
    """
    weights = _pairs_by_output(top)
    W_dec = profiler.activity.interactions.sae_in.W_dec
    for form in profiler.forms(features):
        token, _ = profiler.activity.outputs[form.feature]
        by_weight = weights.get(form.feature, ())
        if len(token) < 2:
            yield OutputReading(by_weight)
            continue
        added = co_active_pairs(profiler.rows, W_dec, form.Q, token)
        profile = profiler.profile(form, n_examples=0)
        yield OutputReading(by_weight, profile, form.spectrum.outlier_ratio().item(), added.largest(N_PAIRS))


@dataclass(frozen=True, eq=False, repr=False)
class CoActivePairs(Brief):
    """Pairs among the input features most active together with an output feature.

    Attributes:
        members: Those input features.
        weight: Coefficient of z_a z_b in the pre-activation.
        added: The coefficient times the mean of z_a z_b where the output feature is active.
    """

    members: Int[Tensor, " m"]
    weight: Float[Tensor, "m m"]
    added: Float[Tensor, "m m"]

    def largest(self, k: int) -> tuple[Pair, ...]:
        """The k pairs that add most by magnitude, each once."""
        i, j = torch.triu_indices(len(self.members), len(self.members), device=self.members.device)
        added = self.added[i, j]
        best = added.abs().topk(min(k, len(added))).indices
        best = best[added[best] != 0]
        columns = (self.members[i[best]], self.members[j[best]], self.weight[i[best], j[best]], added[best])
        return tuple(Pair(*row) for row in zip(*(column.tolist() for column in columns), strict=True))


def co_active_pairs(
    rows: ActiveFeatures, W_dec: Float[Tensor, "d_sae d_in"], Q: Float[Tensor, "d_in d_in"], token: Int[Tensor, " n"]
) -> CoActivePairs:
    """Sum what pairs of input features add to an output feature where it is active.

    Only the 256 input features that are most active at these tokens are paired, and at most 400 tokens, evenly spread,
    are looked at.

    Args:
        rows: Activations of the input dictionary.
        W_dec: Its decoder.
        Q: Form of the output feature.
        token: Tokens at which it is active.
    """
    token = token[evenly(len(token), _N_TOKENS).to(token.device)]
    usage = rows.mean_magnitudes(token)
    members = usage.topk(min(_N_MEMBERS, int((usage > 0).sum()))).indices.sort().values
    z = rows.dense(token, members).to(Q.dtype)
    directions = W_dec[members].to(Q.dtype)
    weight = 2 * directions @ Q @ directions.T
    weight.diagonal().div_(2)
    return CoActivePairs(members, weight, weight * (z.T @ z) / max(1, len(token)))


def _pairs_by_output(top: TopInteractions) -> dict[int, tuple[Pair, ...]]:
    found: dict[int, list[Pair]] = {}
    for output, first, second, weight in top:
        found.setdefault(output, []).append(Pair(first, second, weight))
    return {output: tuple(pairs) for output, pairs in found.items()}
