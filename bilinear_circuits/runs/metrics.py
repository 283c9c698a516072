"""What is read off the logits at a token."""

from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import torch
from jaxtyping import Float, Int
from torch import Tensor


@runtime_checkable
class Metric(Protocol):
    """A number for every row of logits.

    Attributes:
        name: What it is, for reports.
        unit: Its unit.
    """

    @property
    def name(self) -> str:
        """Name for reports."""
        ...

    @property
    def unit(self) -> str:
        """Its unit."""
        ...

    def __call__(
        self, logits: Float[Tensor, "n d_vocab"], following: Int[Tensor, " n"] | None = None, /
    ) -> Float[Tensor, " n"]:
        """Read logits, in float64.

        Args:
            logits: At some tokens.
            following: The token that follows each of them, where the sites know it.
        """
        ...


@dataclass(frozen=True)
class CrossEntropy:
    """Cross-entropy of the token that follows."""

    name: str = "cross-entropy"
    unit: str = "nats"

    def __call__(
        self, logits: Float[Tensor, "n d_vocab"], following: Int[Tensor, " n"] | None = None, /
    ) -> Float[Tensor, " n"]:
        """Read logits.

        Raises:
            ValueError: If the tokens that follow are not known.
        """
        if following is None:
            raise ValueError(
                "sites must know the tokens that follow for a cross-entropy. Use Sites.everywhere(stories)."
            )
        return torch.nn.functional.cross_entropy(logits.float(), following.to(logits.device), reduction="none").double()
