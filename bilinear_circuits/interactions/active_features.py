"""Sparse activations in rows: which features are active at a token, where `ActiveTokens` says when a feature is."""

from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from bilinear_circuits.interactions.active import ActiveTokens
from bilinear_circuits.utilities.display import Brief


@dataclass(frozen=True, eq=False, repr=False)
class ActiveFeatures(Brief):
    """What is active at each token, as sparse rows.

    Attributes:
        feature: Feature of each activation, grouped by token.
        value: Activation, in the same order.
        offsets: Token t owns the slice offsets[t]:offsets[t + 1].
        d_sae: Number of features.
    """

    feature: Int[Tensor, " nnz"]
    value: Float[Tensor, " nnz"]
    offsets: Int[Tensor, " token_plus_1"]
    d_sae: int

    @classmethod
    def of(cls, active: ActiveTokens, n_tokens: int) -> "ActiveFeatures":
        """Sort sparse columns of features into rows of tokens."""
        order = active.token.argsort(stable=True)
        counts = active.token.bincount(minlength=n_tokens)
        offsets = torch.cat([counts.new_zeros(1), counts.cumsum(0)])
        return cls(active.feature[order], active.value[order], offsets, len(active.counts))

    def entries(self, token: Int[Tensor, " n"]) -> tuple[Int[Tensor, " m"], Int[Tensor, " m"], Float[Tensor, " m"]]:
        """Row in `token`, feature and activation of everything active at some tokens."""
        counts = self.offsets.diff()[token]
        row = torch.repeat_interleave(torch.arange(len(token), device=token.device), counts)
        step = torch.arange(len(row), device=token.device) - (counts.cumsum(0) - counts)[row]
        at = self.offsets[token][row] + step
        return row, self.feature[at], self.value[at]

    def mean_magnitudes(self, token: Int[Tensor, " n"]) -> Float[Tensor, " d_sae"]:
        """Mean magnitude of every feature over some tokens, in float64."""
        _, feature, value = self.entries(token)
        total = torch.zeros(self.d_sae, dtype=torch.double, device=value.device)
        return total.index_add_(0, feature, value.abs().double()) / max(1, len(token))

    def dense(self, token: Int[Tensor, " n"], features: Int[Tensor, " m"]) -> Float[Tensor, "n m"]:
        """Activations of some features at some tokens."""
        place = torch.full((self.d_sae,), -1, device=features.device)
        place[features] = torch.arange(len(features), device=features.device)
        row, feature, value = self.entries(token)
        column = place[feature]
        kept = column >= 0
        return value.new_zeros(len(token), len(features)).index_put_((row[kept], column[kept]), value[kept])

    def decoded(self, token: Int[Tensor, " n"], W_dec: Float[Tensor, "d_sae d_in"]) -> Float[Tensor, "n d_in"]:
        """Sum of the decoder rows of what is active at some tokens, weighted by activation, without any bias."""
        counts = self.offsets.diff()[token]
        _, feature, value = self.entries(token)
        return torch.nn.functional.embedding_bag(
            feature, W_dec, counts.cumsum(0) - counts, mode="sum", per_sample_weights=value.to(W_dec.dtype)
        )
