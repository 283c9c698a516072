"""Where a feature is active: stretches of stories around its tokens, and how its activations are distributed."""

from dataclasses import dataclass
from itertools import pairwise

import torch
from jaxtyping import Float, Int
from torch import Tensor

from bilinear_circuits.data.token_texts import TokenTexts
from bilinear_circuits.interactions.activity import LayerActivity

_TOKENS_BEFORE, _TOKENS_AFTER = 14, 6
_DIGITS = 4
N_BINS = 40
_N_STRONGEST, _STRONGEST_AMONG, _N_PER_BAND, _FEW = 6, 3, 3, 12
_BAND_EDGES = (0.0, 0.25, 0.5, 0.75, 1.0)


@dataclass(frozen=True)
class Example:
    """A stretch of a story around a token at which a feature is active.

    Attributes:
        tokens: Token texts.
        values: Activation of the feature at each of them.
        centre: Index of the token the example was chosen for.
        quantile: Where its activation lies among the feature's active tokens, 1 for the strongest.
    """

    tokens: tuple[str, ...]
    values: tuple[float, ...]
    centre: int
    quantile: float


@dataclass(frozen=True)
class Histogram:
    """Counts of active tokens by activation.

    Attributes:
        low: Lower end of the first bin.
        high: Upper end of the last.
        counts: Tokens in each bin; bins are of equal width.
    """

    low: float
    high: float
    counts: tuple[int, ...]


@dataclass(frozen=True)
class Band:
    """Examples from one range of activation.

    Attributes:
        low: Quantile among the active tokens at which the range begins, 0 for the weakest activation.
        high: Quantile at which it ends, 1 for the strongest.
        least: Smallest activation in the range.
        most: Largest.
        share: Share of the active tokens that lie in it.
        examples: Some of them, strongest first.
    """

    low: float
    high: float
    least: float
    most: float
    share: float
    examples: tuple[Example, ...]


class ExampleFinder:
    """Cuts examples of one feature out of a corpus.

    Attributes:
        by_strength: Its active tokens, strongest first.
    """

    def __init__(
        self, activity: LayerActivity, token: Int[Tensor, " n"], value: Float[Tensor, " n"], texts: TokenTexts
    ) -> None:
        """Take in where a feature is active, and how strongly."""
        self._story, self._token_ids, self._texts = activity.story, activity.token_ids, texts
        self._activation = torch.zeros(len(activity.x))
        self._activation[token.cpu()] = value.float().cpu()
        self.by_strength: list[int] = token[value.argsort(descending=True)].tolist()
        self._seen: set[int] = set()

    def find(self, n: int, first: int = 0, end: int | None = None) -> tuple[Example, ...]:
        """Examples at evenly spaced ranks from `first` on and below `end`, each from another story where possible."""
        end = len(self.by_strength) if end is None else end
        n_ranks = end - first
        found = []
        for rank in (first + evenly(n_ranks, n)).tolist():
            after = min(end, rank + max(1, n_ranks // max(1, n)))
            fresh = (one for one in range(rank, after) if self._story_at(one) not in self._seen)
            found.append(self._at(next(fresh, rank)))
        return tuple(found)

    def _story_at(self, rank: int) -> int:
        return int(self._story[self.by_strength[rank]])

    def _at(self, rank: int) -> Example:
        """The stretch of a story around a token."""
        centre = self.by_strength[rank]
        self._seen.add(self._story_at(rank))
        near = stretch(self._story, centre, _TOKENS_BEFORE, _TOKENS_AFTER)
        ids = self._token_ids[near].tolist()
        values = tuple(round(one, _DIGITS) for one in self._activation[near].tolist())
        place = centre - near.start
        quantile = 1 - rank / max(1, len(self.by_strength) - 1)
        return Example(tuple(map(self._texts, ids)), values, place, quantile)


def stretch(story: Int[Tensor, " token"], centre: int, before: int, after: int) -> slice:
    """The tokens around one of them, some before and some after it, as far as its story goes.

    Args:
        story: Story of each token; the tokens of a story stand together.
        centre: The token.
        before: Most tokens before it.
        after: Most tokens after it.
    """
    low, high = max(0, centre - before), min(len(story), centre + after + 1)
    inside = (story[low:high] == story[centre]).nonzero().squeeze(1).tolist()
    return slice(low + inside[0], low + inside[-1] + 1)


def evenly(n: int, most: int) -> Int[Tensor, " m"]:
    """Up to `most` indices below n, evenly spread."""
    return torch.linspace(0, n - 1, min(n, most)).long()


def histogram(value: Float[Tensor, " n"], n_bins: int = N_BINS) -> Histogram:
    """Counts in bins of equal width from 0, or the least activation if that is negative, to the largest."""
    if len(value) == 0:
        return Histogram(0.0, 0.0, ())
    low, high = min(0.0, value.min().item()), max(0.0, value.max().item())
    counts = torch.histc(value.float().cpu(), n_bins, low, high)
    return Histogram(low, high, tuple(int(count) for count in counts.tolist()))


def bands(finder: ExampleFinder, value: Float[Tensor, " n"]) -> tuple[Band, ...]:
    """Examples from the whole range of activation: the strongest, then some from each quarter of the active tokens."""
    ordered = value.sort(descending=True).values
    n = len(ordered)
    if n <= _FEW:
        return (_band(ordered, 0, n, 0.0, 1.0, finder.find(n)),)
    among = min(n, _N_STRONGEST * _STRONGEST_AMONG)
    found = [_band(ordered, 0, among, 1 - among / n, 1.0, finder.find(_N_STRONGEST, 0, among))]
    for low, high in reversed(list(pairwise(_BAND_EDGES))):
        first, end = round((1 - high) * n), round((1 - low) * n)
        found.append(_band(ordered, first, end, low, high, finder.find(_N_PER_BAND, first, end)))
    return tuple(found)


def _band(ordered: Tensor, first: int, end: int, low: float, high: float, examples: tuple) -> Band:
    return Band(low, high, ordered[end - 1].item(), ordered[first].item(), (end - first) / len(ordered), examples)
