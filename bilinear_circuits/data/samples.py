"""What activations were taken at, one entry for each row: the tokens of stories, or inputs of any other kind."""

from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import torch
from jaxtyping import Int
from torch import Tensor

from bilinear_circuits.data.stories import StoryTokens
from bilinear_circuits.utilities.display import Brief


@runtime_checkable
class Samples(Protocol):
    """Inputs of a layer, in the order of its activations."""

    def __len__(self) -> int:
        """Number of samples."""
        ...

    @property
    def group(self) -> Int[Tensor, " sample"]:
        """Group of each sample; those of one group, as the tokens of a story, are not independent."""
        ...


@dataclass(frozen=True, eq=False, repr=False)
class FlatTokens(Brief):
    """Tokens of stories without [BOS] and padding, one after the other.

    Attributes:
        tokens: The stories.
        group: Story of each token: its row.
        position: Place of each token in its story: its column.
    """

    tokens: StoryTokens
    group: Int[Tensor, " sample"]
    position: Int[Tensor, " sample"]

    @classmethod
    def of(cls, tokens: StoryTokens) -> "FlatTokens":
        """Lay the stories' own tokens end to end."""
        story, position = tokens.mask.nonzero(as_tuple=True)
        return cls(tokens, story, position)

    def __len__(self) -> int:
        return len(self.group)

    @property
    def ids(self) -> Int[Tensor, " sample"]:
        """Vocabulary id of each token."""
        return self.tokens.ids[self.group, self.position]


@dataclass(frozen=True, eq=False, repr=False)
class Rows(Brief):
    """Inputs of which nothing is known but that each stands for itself: images, or inputs of a task.

    Attributes:
        n: How many there are.
    """

    n: int

    def __len__(self) -> int:
        return self.n

    @property
    def group(self) -> Int[Tensor, " sample"]:
        """Every sample by itself."""
        return torch.arange(self.n)
