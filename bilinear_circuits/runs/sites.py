"""Tokens at which a model is measured."""

from dataclasses import dataclass, field

import torch
from jaxtyping import Bool, Int
from torch import Tensor

from bilinear_circuits.data.stories import StoryTokens
from bilinear_circuits.utilities.display import Brief

_ROWS_PER_BATCH = 32


@dataclass(frozen=True, eq=False, repr=False)
class Sites(Brief):
    """Rows of token ids and the tokens among them at which something is measured.

    Attributes:
        ids: Token ids, padded on the right.
        position: Position of every site in its row.
        row: Row of every site, in order; by default each row holds one.
        following: Token after every site, where it matters.

    Raises:
        ValueError: If the rows are not in order, or no rows of `ids`.
    """

    ids: Int[Tensor, "row pos"]
    position: Int[Tensor, " site"]
    row: Int[Tensor, " site"] = field(default=None)  # type: ignore[assignment]
    following: Int[Tensor, " site"] | None = None

    def __post_init__(self) -> None:
        if self.row is None:
            object.__setattr__(self, "row", torch.arange(len(self.position)))
        if len(self.row) != len(self.position) or not all(0 <= one < len(self.ids) for one in self.row[-1:].tolist()):
            raise ValueError(
                f"row must name one of the {len(self.ids)} rows of ids for each of the {len(self.position)} positions,"
                f" got {self.row.tolist()!s:.60}."
            )
        if bool((self.row.diff() < 0).any()):
            raise ValueError(f"row must be in order, got {self.row.tolist()!s:.60}. Sort the sites by row.")

    def __len__(self) -> int:
        return len(self.position)

    @property
    def at(self) -> tuple[Int[Tensor, " site"], Int[Tensor, " site"]]:
        """Index of every site in a (row, pos) array."""
        return self.row, self.position

    @classmethod
    def first(cls, stories: StoryTokens, wanted: Bool[Tensor, "story pos"], n: int, max_position: int) -> "Sites":
        """Take the first wanted token of each story within `max_position` tokens, for the first n stories with one.

        Stories are cut after it and sorted by length.
        """
        wanted = (wanted & stories.mask)[:, : max_position + 1]
        rows = wanted.any(1).nonzero().squeeze(1)[:n]
        return cls._ending(stories, rows, wanted[rows].int().argmax(1))

    @classmethod
    def random(
        cls, stories: StoryTokens, wanted: Bool[Tensor, "story pos"], n: int, max_position: int, seed: int
    ) -> "Sites":
        """Draw one wanted token of each story within `max_position` tokens, for the first n stories with one."""
        generator = torch.Generator().manual_seed(seed)
        wanted = (wanted & stories.mask)[:, : max_position + 1]
        rows = wanted.any(1).nonzero().squeeze(1)[:n]
        score = torch.rand(len(rows), wanted.shape[1], generator=generator) * wanted[rows]
        return cls._ending(stories, rows, score.argmax(1))

    @classmethod
    def _ending(cls, stories: StoryTokens, rows: Int[Tensor, " site"], position: Int[Tensor, " site"]) -> "Sites":
        order = position.argsort(stable=True)
        rows, position = rows[order], position[order]
        width = int(position.max()) + 1 if len(rows) else 0
        return cls(stories.ids[rows, :width], position)

    @classmethod
    def everywhere(cls, stories: StoryTokens) -> "Sites":
        """Take every token of stories that another of their own tokens follows, [BOS] included."""
        row, position = stories.mask[:, 1:].nonzero(as_tuple=True)
        return cls(stories.ids, position, row, stories.ids[row, position + 1])

    def select(self, chosen: Bool[Tensor, " site"]) -> "Sites":
        """Keep some of the sites, and the rows they are in."""
        rows, row = self.row[chosen].unique(return_inverse=True)
        following = None if self.following is None else self.following[chosen]
        return Sites(self.ids[rows], self.position[chosen], row, following)

    def batches(self) -> list["Sites"]:
        """Split into batches of some rows, trimmed to the longest."""
        batches = []
        for first in range(0, len(self.ids), _ROWS_PER_BATCH):
            part = self.select((self.row >= first) & (self.row < first + _ROWS_PER_BATCH))
            if len(part):
                width = int(part.position.max()) + 1
                batches.append(Sites(part.ids[:, :width], part.position, part.row, part.following))
        return batches
