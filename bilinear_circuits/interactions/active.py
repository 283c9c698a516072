"""When features are active: the activations of a dictionary as sparse columns."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property

import torch
from jaxtyping import Float, Int
from torch import Tensor

from bilinear_circuits.algebra.precision import exact_sums
from bilinear_circuits.dictionaries.dictionary import Dictionary
from bilinear_circuits.utilities.display import Brief
from bilinear_circuits.utilities.progress import Progress, silent

_TOKENS_PER_CHUNK = 4096
_MOST_ACTIVATIONS = 1 << 28  # kept at once: 3 GB, and as much again while they are sorted


@dataclass(frozen=True, eq=False, repr=False)
class ActiveTokens(Brief):
    """When each feature of a dictionary is active, as sparse columns.

    Attributes:
        token: Token index of each activation, grouped by feature.
        value: Activation, in the same order.
        offsets: Feature f owns the slice offsets[f]:offsets[f + 1].
    """

    token: Int[Tensor, " nnz"]
    value: Float[Tensor, " nnz"]
    offsets: Int[Tensor, " d_sae_plus_1"]

    def __getitem__(self, feature: int) -> tuple[Int[Tensor, " n"], Float[Tensor, " n"]]:
        """Token indices and activations of one feature."""
        owned = slice(int(self.offsets[feature]), int(self.offsets[feature + 1]))
        return self.token[owned], self.value[owned]

    @property
    def counts(self) -> Int[Tensor, " d_sae"]:
        """Number of active tokens of each feature."""
        return self.offsets.diff()

    @cached_property
    def feature(self) -> Int[Tensor, " nnz"]:
        """Feature of each activation."""
        counts = self.counts
        return torch.repeat_interleave(torch.arange(len(counts), device=counts.device), counts)

    def sum_over_tokens(self, weight: Float[Tensor, " token"]) -> Float[Tensor, " d_sae"]:
        """Sum of weight times the magnitude of the activation, for each feature."""
        total = torch.zeros(len(self.counts), dtype=torch.double, device=self.value.device)
        return total.index_add(0, self.feature, (self.value.abs() * weight[self.token]).double())

    def columns(self, features: Int[Tensor, " n"], n_tokens: int) -> Float[Tensor, "token n"]:
        """Activations of some features at all tokens, dense, in float64."""
        dense = torch.zeros(n_tokens, len(features), dtype=torch.double, device=self.value.device)
        for index, feature in enumerate(features.tolist()):
            token, value = self[feature]
            dense[token, index] = value.double()
        return dense

    def columns_where_active(
        self, features: Int[Tensor, " n"]
    ) -> tuple[Int[Tensor, " token"], Float[Tensor, "token n"]]:
        """Activations of some features, in float64, at the tokens where one of them is active, and which those are."""
        parts = [self[feature] for feature in features.tolist()]
        tokens, row = torch.cat([token for token, _ in parts]).unique(return_inverse=True)
        column = torch.arange(len(parts)).repeat_interleave(torch.tensor([len(token) for token, _ in parts]))
        dense = torch.zeros(len(tokens), len(parts), dtype=torch.double, device=self.value.device)
        dense[row, column.to(row.device)] = torch.cat([value for _, value in parts]).double()
        return tokens, dense

    @torch.no_grad()
    def weighted_sums(self, values: Float[Tensor, "token d"]) -> Float[Tensor, "d_sae d"]:
        """Sum over tokens of the activation times a vector of the token, for each feature: nnz d operations."""
        places, size = torch.stack([self.feature, self.token]), (len(self.counts), len(values))
        return torch.sparse_coo_tensor(places, self.value.to(values.dtype), size, check_invariants=True) @ values

    @torch.no_grad()
    @exact_sums()
    def second_moments(self, n_tokens: int) -> Float[Tensor, "d_sae d_sae"]:
        """E[z_a z_b] over tokens, in float32: how much two features are active together.

        Cost: n_tokens d_sae^2 operations, d_sae^2 numbers.

        Args:
            n_tokens: Number of tokens, active or not.
        """
        total = torch.zeros(len(self.counts), len(self.counts), dtype=torch.float32, device=self.value.device)
        for _, z in self._dense_chunks(n_tokens):
            total.addmm_(z.T, z)
        return total / max(1, n_tokens)

    def _dense_chunks(self, n_tokens: int) -> Iterator[tuple[slice, Float[Tensor, "chunk d_sae"]]]:
        """Activations of all features on some tokens at a time, in float32; rows of zeros after the last token."""
        order = self.token.argsort()
        token, feature, value = self.token[order], self.feature[order], self.value[order].float()
        for start in range(0, n_tokens, _TOKENS_PER_CHUNK):
            bounds = torch.tensor([start, start + _TOKENS_PER_CHUNK], device=token.device)
            chunk = slice(*torch.searchsorted(token, bounds).tolist())
            z = value.new_zeros(_TOKENS_PER_CHUNK, len(self.counts))
            z[token[chunk] - start, feature[chunk]] = value[chunk]
            yield slice(start, start + _TOKENS_PER_CHUNK), z


@torch.no_grad()
def active_tokens(
    dictionary: Dictionary,
    x: Float[Tensor, "token d"],
    through: Callable[[Tensor], Tensor] | None = None,
    progress: Progress = silent,
) -> ActiveTokens:
    """Sparse activations of a dictionary, by chunks: dense memory for one chunk of tokens only.

    Args:
        dictionary: The dictionary.
        x: Activations it reads, or that `through` maps to what it reads.
        through: For instance the MLP, where x are MLP inputs and the dictionary is on its output.
        progress: Wraps the chunks.

    Raises:
        ValueError: If there are more activations than memory is meant for, as of thousands of directions of the rule
            "identity", which are all active everywhere.
    """
    token, feature, value = [], [], []
    n_active = 0
    for start in progress(range(0, len(x), _TOKENS_PER_CHUNK), "encode"):
        chunk = x[start : start + _TOKENS_PER_CHUNK].to(dictionary.W_enc.dtype)
        z = dictionary.encode(chunk if through is None else through(chunk))
        rows, columns = z.nonzero(as_tuple=True)
        n_active += len(rows)
        if n_active > _MOST_ACTIVATIONS:
            raise ValueError(
                f"activations of {dictionary.name} must be at most {_MOST_ACTIVATIONS:,}, got more in the first"
                f" {start + len(chunk):,} of {len(x):,} tokens. Use fewer stories or fewer directions."
            )
        token.append(rows + start)
        feature.append(columns)
        value.append(z[rows, columns])
    features = torch.cat(feature)
    order = features.argsort(stable=True)
    counts = features.bincount(minlength=dictionary.d_sae)
    offsets = torch.cat([counts.new_zeros(1), counts.cumsum(0)])
    return ActiveTokens(torch.cat(token)[order], torch.cat(value)[order], offsets)


def top_token_ids(active: ActiveTokens, token_ids: Int[Tensor, " token"], feature: int, n: int = 3) -> list[int]:
    """The n vocabulary ids that tell most about a feature: its name in reports.

    Ids are sorted by p log(p / q), their part of the Kullback-Leibler divergence between the share p of the feature's
    activation they hold and their share q of all tokens, so that a token common everywhere does not name a feature.
    """
    token, value = active[feature]
    value = value.abs()
    ids, group = token_ids[token].unique(return_inverse=True)
    share = torch.zeros(len(ids), dtype=torch.double, device=value.device).index_add(0, group, value.double())
    share /= share.sum()
    frequency = torch.bincount(token_ids)[ids] / len(token_ids)
    return ids[(share * (share / frequency).log()).argsort(descending=True)[:n]].tolist()
