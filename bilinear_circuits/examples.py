"""Stretches of stories around tokens at which a feature is active."""

from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from bilinear_circuits.activity import LayerActivity
from bilinear_circuits.naming import TokenTexts

_TOKENS_BEFORE, _TOKENS_AFTER = 14, 6
_DIGITS = 4


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
