"""Attention scores between named directions as functions of the distance, and a certified search over all of them.

A query direction a and a key direction b, paired to complex numbers q_ap and k_bp, score at distance D = i - j

    S_D(a, b) = Re sum_p q_ap conj(k_bp) e^{i theta_p D},   at most sum_p |q_ap| |k_bp| for every D.

The bound is one product of matrices. What it cannot rule out is computed exactly for all distances.
"""

from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Complex, Float, Int
from torch import Tensor

from bilinear_circuits.paths.forms import BilinearForm
from bilinear_circuits.utilities.display import Brief, Shown, Tabled
from bilinear_circuits.utilities.kinds import check_whole

_BLOCK = 1 << 21
_SLACK = 1e-5  # bounds and scores are rounded: what is that near is computed too


@dataclass(frozen=True, eq=False, repr=False)
class TopScores(Shown, Tabled):
    """The highest scores over all query directions, key directions and distances.

    Attributes:
        query: Query direction of each, highest score first.
        key: Key direction.
        distance: Positions from the key to the query.
        score: Score, for directions as long as they are, before the scales of the norms.
        n_exact: Pairs that were computed for every distance.
        n_pairs: Pairs there are; the others cannot reach the last score found.
    """

    query: Int[Tensor, " k"]
    key: Int[Tensor, " k"]
    distance: Int[Tensor, " k"]
    score: Float[Tensor, " k"]
    n_exact: int
    n_pairs: int

    def table(self) -> dict[str, list[Any]]:
        """One row for each."""
        names = ("query", "key", "distance", "score")
        return {name: getattr(self, name).tolist() for name in names}


@dataclass(frozen=True, eq=False, repr=False)
class QKForm(Brief):
    """Scores of all pairs of a query direction and a key direction, at all distances, as factors.

    Attributes:
        queries: Complex pairs of dimensions of each query direction, the factor of scores included.
        keys: Of each key direction.
        inv_freq: Radians per position.
    """

    queries: Complex[Tensor, "query half"]
    keys: Complex[Tensor, "key half"]
    inv_freq: Float[Tensor, " half"]

    def at(self, distance: int) -> BilinearForm:
        """Scores at one distance."""
        return self._turned(self._phases(torch.tensor([check_whole("distance", distance, least=None)]))[0])

    def mean(self, window: int) -> BilinearForm:
        """Mean of the scores at distances 0 to window - 1.

        Raises:
            ValueError: If the window is not positive.
        """
        return self._turned(self._phases(_distances(window)).mean(0))

    def centred(self) -> "QKForm":
        """Take away what all keys have in common, at every distance: softmax does not see it."""
        return QKForm(self.queries, self.keys - self.keys.mean(0), self.inv_freq)

    def bound(self) -> BilinearForm:
        """Bound the magnitude of the score of every pair, over all distances."""
        return BilinearForm(self.queries.abs(), self.keys.abs())

    def scores(
        self, query: Int[Tensor, " pair"], key: Int[Tensor, " pair"], n_distances: int
    ) -> Float[Tensor, "pair distance"]:
        """Scores of some pairs at distances 0 to n_distances - 1."""
        product = self.queries[query] * self.keys[key].conj_physical()
        phases = self._phases(_distances(n_distances))
        return product.real @ phases.real.T - product.imag @ phases.imag.T

    def top(self, k: int, n_distances: int) -> TopScores:
        """Find the k highest scores over all pairs and the distances 0 to n_distances - 1, certified.

        Cost: one product of the amplitudes of all pairs, in blocks of queries with the longest first; n_distances
        d_head for each pair whose bound is above the k-th score so far.

        Raises:
            ValueError: If k or n_distances is not positive.
        """
        check_whole("k", k)
        _distances(n_distances)
        nothing = torch.zeros(0, dtype=torch.long, device=self.inv_freq.device)
        found = TopScores(nothing, nothing, nothing, self.inv_freq.new_zeros(0), 0, 0)
        bound, n_keys = self.bound(), len(self.keys)
        order = bound.left.sum(1).argsort(descending=True)
        for rows in order.split(max(1, _BLOCK // max(1, n_keys))):
            size, at = (bound.left[rows] @ bound.right.T).flatten().sort(descending=True)
            chunk, first = max(1, _BLOCK // n_distances), 0
            while first < len(size):
                # Small chunks first: they lift the score that the others have to reach.
                step = min(chunk, max(k, 4 * first))
                if len(found.score) == k and size[first] * (1 + _SLACK) < found.score[-1]:
                    break
                some = at[first : first + step]
                found = self._merged(found, rows[some // n_keys], some % n_keys, k, n_distances)
                first += step
        return TopScores(found.query, found.key, found.distance, found.score, found.n_exact, len(order) * n_keys)

    def _merged(self, found: TopScores, query: Tensor, key: Tensor, k: int, n_distances: int) -> TopScores:
        """The k highest of what was found and of some pairs at all distances."""
        scores = self.scores(query, key, n_distances).flatten()
        best = scores.topk(min(k, len(scores))).indices
        pair = best // n_distances
        new = (query[pair], key[pair], best % n_distances, scores[best])
        old = (found.query, found.key, found.distance, found.score)
        merged = [torch.cat(both) for both in zip(old, new, strict=True)]
        kept = merged[3].argsort(descending=True, stable=True)[:k]
        queries, keys, distances, values = (one[kept] for one in merged)
        return TopScores(queries, keys, distances, values, found.n_exact + len(query), 0)

    def _phases(self, distance: Tensor) -> Tensor:
        angle = distance.to(self.inv_freq).unsqueeze(1) * self.inv_freq
        return torch.polar(torch.ones_like(angle), angle)

    def _turned(self, factor: Tensor) -> BilinearForm:
        turned = self.queries * factor
        return BilinearForm(torch.cat([turned.real, turned.imag], 1), torch.cat([self.keys.real, self.keys.imag], 1))


def _distances(n: int) -> Tensor:
    return torch.arange(check_whole("number of distances", n))
