"""A circuit by its name: an output feature, the pole it pushes to, and its two groups of input features."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol, TypeVar, runtime_checkable

from bilinear_circuits.circuits.query import CircuitQuery
from bilinear_circuits.circuits.settings import SearchSettings
from bilinear_circuits.utilities.feature import OfFeature


@dataclass(frozen=True)
class Target(OfFeature):
    """A circuit to prove or edit.

    Attributes:
        layer: Layer of the MLP.
        feature: Output feature.
        sign: 1 where it pushes to the positive pole, -1 where to the negative.
        groups: Its two groups of input features, strongest first.
    """

    layer: int
    feature: int
    sign: int
    groups: tuple[tuple[int, ...], tuple[int, ...]]


@runtime_checkable
class Searched(Protocol):
    """What a search leaves for those who prove or edit its circuits: in memory, or read from its file."""

    @property
    def query(self) -> CircuitQuery:
        """Triggers and poles."""
        ...

    @property
    def settings(self) -> SearchSettings:
        """Settings of the search."""
        ...

    @property
    def seed(self) -> int:
        """Its seed: with the same stories it gives those that it held out."""
        ...

    @property
    def targets(self) -> tuple[Target, ...]:
        """Its circuits, best first, positive pole before negative."""
        ...


@runtime_checkable
class Named(Protocol):
    """Anything with a name."""

    @property
    def name(self) -> str:
        """Layer and feature, as 4/143."""
        ...


T = TypeVar("T", bound=Named)


def named(circuits: Sequence[T], names: str | Sequence[str | tuple[int, int]]) -> tuple[T, ...]:
    """Pick circuits by their names, 4/143 or (4, 143), or one by its name, in the order asked for, each once.

    Raises:
        ValueError: If there is none of that name, or none is asked for.
    """
    known = {circuit.name: circuit for circuit in circuits}
    given = [names] if isinstance(names, str) else names
    asked = [name if isinstance(name, str) else "/".join(map(str, name)) for name in given]
    for name in asked:
        if name not in known:
            raise ValueError(f"features must be circuits of the search ({', '.join(known)}), got {name}.")
    if not asked:
        raise ValueError(f"features must name at least one circuit of the search ({', '.join(known)}), got none.")
    return tuple(known[name] for name in dict.fromkeys(asked))
