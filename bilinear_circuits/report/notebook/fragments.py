"""Tables for notebooks: no colours but those of signs, so that they can be read on a light and on a dark page."""

from collections.abc import Iterable, Sequence

from markupsafe import Markup

from bilinear_circuits.report.figures import NEGATIVE, POSITIVE
from bilinear_circuits.report.payload import plain
from bilinear_circuits.report.text import interval, number, visible
from bilinear_circuits.statistics.effects import Effect

Cell = str | Markup
N_ROWS = 12


def table(title: str, header: Sequence[str], rows: Iterable[Sequence[Cell]], notes: Sequence[str] = ()) -> Markup:
    """A titled table; every text that is no Markup is escaped."""
    head = Markup("").join(Markup('<th style="text-align:left">{}</th>').format(text) for text in header)
    body = Markup("").join(Markup("<tr>{}</tr>").format(_cells(row)) for row in rows)
    below = Markup("").join(Markup("<div><small>{}</small></div>").format(note) for note in notes)
    caption = Markup("<div><b>{}</b></div>").format(title)
    heading = Markup("<thead><tr>{}</tr></thead>").format(head) if header else Markup("")
    return Markup("<div>{}<table>{}<tbody>{}</tbody></table>{}</div>").format(caption, heading, body, below)


def facts(title: str, rows: Iterable[tuple[str, Cell]], notes: Sequence[str] = ()) -> Markup:
    """A table of names and what they stand for."""
    return table(title, (), rows, notes)


def value(one: float | int | None, digits: int = 3) -> Markup:
    """A number in the colour of its sign; a dash for what was not measured."""
    one = plain(one)
    text = number(one, digits)
    if not one:
        return Markup("<span>{}</span>").format(text)
    colour = POSITIVE if one > 0 else NEGATIVE
    return Markup('<span style="color:{}">{}</span>').format(colour, text if one < 0 else f"+{text}")


def effect(one: Effect) -> str:
    """An effect as "mean [low, high], n = 12"."""
    parts = {key: plain(getattr(one, key)) for key in ("mean", "low", "high")}
    return f"{interval(parts)}, n = {one.n}"


def tokens(texts: Iterable[str]) -> str:
    """Tokens side by side, each made visible."""
    return "  ".join(map(visible, texts))


def rest_of(n: int, n_shown: int, what: str) -> list[str]:
    """A note on rows that are left out."""
    return [f"the first {n_shown} of {n:,} {what}"] if n > n_shown else []


def _cells(row: Sequence[Cell]) -> Markup:
    """The cells of a row, the first one to the left."""
    cells = [Markup('<td style="text-align:left">{}</td>').format(cell) for cell in row]
    return Markup("").join(cells)
