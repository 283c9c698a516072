"""What the pages are made of: headings with a note and a table, whose cells the templates escape."""

from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

from bilinear_circuits.report.payload import plain
from bilinear_circuits.report.text import MISSING, interval, number, signed
from bilinear_circuits.statistics.effects import Effect

Kind = Literal["text", "keep", "n", "effect", "name", "tokens", "lines"]
"""How cells of a column are shown: as text, text on one line, a number to the right, the same with a second line for
what is in brackets, the name of a feature, a list of tokens, or lines of texts and names."""

Line = tuple[tuple[str, str], ...]
"""A line of a cell: texts with "text" or "name", for names of features, whose tokens are made visible."""


@dataclass(frozen=True)
class Column:
    """One column of a table.

    Attributes:
        heading: What stands above it.
        kind: How its cells are shown.
        meaning: What it is, shown on hover and by the keyboard.
    """

    heading: str
    kind: Kind = "text"
    meaning: str = ""


@dataclass(frozen=True)
class Table:
    """A table of a page.

    Attributes:
        columns: Its columns.
        rows: Cells, as many a row as there are columns: texts, lists of texts for tokens, or lists of lines.
        tall: Whether it scrolls by itself, for long lists.
    """

    columns: tuple[Column, ...]
    rows: tuple[tuple[Any, ...], ...]
    tall: bool = False

    def __post_init__(self) -> None:
        for row in self.rows:
            if len(row) != len(self.columns):
                raise ValueError(f"rows must have {len(self.columns)} cells, got {len(row)}.")

    @classmethod
    def of(cls, columns: Sequence[Column], rows: Iterable[Sequence[Any]], *, tall: bool = False) -> "Table":
        """Make a table of any rows."""
        return cls(tuple(columns), tuple(tuple(row) for row in rows), tall)


@dataclass(frozen=True)
class Part:
    """A heading with a note and a table below it.

    Attributes:
        heading: The heading.
        table: The table.
        note: How to read it.
        id: Where links lead, if any do.
        folded: Whether it is closed until the reader opens it.
    """

    heading: str
    table: Table
    note: str = ""
    id: str = ""
    folded: bool = False


NAME = Column("layer/feature", "keep")
EFFECT = Column("effect", "n", "Mean with its 95 % bootstrap interval, in nats.")


def effect(one: Effect, decimals: int = 3) -> str:
    """Write an effect as "mean [low, high]"; its mean alone where there is no interval.

    Examples:
        >>> effect(Effect(-0.5, -0.6, -0.4, 12), 1), effect(Effect(0.25, float("nan"), float("nan"), 1), 2)
        ('−0.5 [−0.6, −0.4]', '+0.25')
    """
    parts = plain(asdict(one))
    return signed(parts["mean"], decimals) if parts["low"] is None else interval(parts, decimals)


def value(one: float, decimals: int = 3) -> str:
    """Write a number with its sign; a dash where it could not be measured."""
    return signed(plain(float(one)), decimals)


def percent(share: float, digits: int = 3) -> str:
    """Write a share as a percentage.

    Examples:
        >>> percent(0.125), percent(float("nan"))
        ('12.5 %', '–')
    """
    text = number(100 * share, digits)
    return text if text == MISSING else f"{text} %"


def span(values: Sequence[float], decimals: int = 3) -> str:
    """Write the mean of some values, with the least and largest where there are several.

    Examples:
        >>> span([0.5], 1), span([1.0, 2.0], 1), span([])
        ('+0.5', '+1.5 (+1.0 to +2.0)', '–')
    """
    if not values:
        return MISSING
    mean = value(sum(values) / len(values), decimals)
    return mean if len(values) == 1 else f"{mean} ({value(min(values), decimals)} to {value(max(values), decimals)})"


def scientific(number_: float) -> str:
    """Write a small error with its power of ten.

    Examples:
        >>> scientific(0.0000123), scientific(0.0)
        ('1.2e−05', '0')
    """
    return "0" if number_ == 0 else f"{number_:.1e}".replace("-", "−")


def source(provenance: Any, key: str = "circuits") -> dict[str, str]:
    """Name the circuit.json that a result was made of: its file and the first characters of its hash."""
    found = provenance.get(key) or {}
    return {"name": str(found.get("name", "circuit.json")), "sha256": str(found.get("sha256", ""))[:12]}


def product(*names: str) -> list[Line]:
    """Write names of features, multiplied, as the one line of a cell."""
    return [tuple(part for name in names for part in ((" × ", "text"), (name, "name")))[1:]]


def links(parts: Sequence[Part], sections: Sequence[tuple[str, str]] = ()) -> list[tuple[str, str]]:
    """List where a page leads: its parts, further sections, and what stands at the end of every page."""
    own = [(part.id, part.heading) for part in parts if part.id]
    return [*own, *sections, ("provenance", "Provenance"), ("glossary", "Glossary")]
