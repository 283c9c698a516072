"""Text for people: tokens made visible, numbers, nested settings as rows."""

import math
import unicodedata
from collections.abc import Mapping, Sequence
from typing import Any

MISSING = "–"
_LABEL_JOINT = " · "
_MARKS = {"\n": "↵", "\r": "↵", "\t": "⇥"}
# Control, format (bidirectional overrides among them), surrogate and separator characters: invisible, or worse.
_HIDDEN = {"Cc", "Cf", "Cs", "Zl", "Zp"}


def visible(token: str) -> str:
    r"""A token as it can be seen: spaces at its ends as ␣, line ends as ↵, hidden characters by their code point.

    Examples:
        >>> visible(" not"), visible("\n"), visible(""), visible("a\u2028")
        ('␣not', '↵', '∅', 'a⟨U+2028⟩')
    """
    if not token:
        return "∅"
    core = token.strip(" ")
    before = len(token) - len(token.lstrip(" "))
    after = len(token) - len(core) - before
    return "␣" * before + "".join(map(_shown, core)) + "␣" * after


def visible_label(label: str) -> str:
    """The name of an input feature, each of its tokens made visible."""
    return _LABEL_JOINT.join(visible(token) for token in label.split(_LABEL_JOINT))


def shorten(text: str, length: int) -> str:
    """Text of at most `length` characters, with an ellipsis where it was cut."""
    return text if len(text) <= length else text[: length - 1].rstrip(" ·") + "…"


def number(value: float | int | None, digits: int = 3) -> str:
    """A number with some significant digits; integers in full; a dash for None and NaN.

    Examples:
        >>> number(-0.12345), number(0.6), number(252.0), number(1234567), number(None), number(float("nan"))
        ('−0.123', '0.600', '252', '1,234,567', '–', '–')
    """
    if value is None or math.isnan(value):
        return MISSING
    if isinstance(value, int):
        return f"{value:,}".replace("-", "−")
    return f"{value:#.{digits}g}".rstrip(".").replace("-", "−")


def signed(value: float | int | None, decimals: int = 3) -> str:
    """A change, always with its sign; a dash for None.

    Examples:
        >>> signed(0.5), signed(-0.00021, 4)
        ('+0.500', '−0.0002')
    """
    return MISSING if value is None else f"{value:+.{decimals}f}".replace("-", "−")


def interval(effect: Mapping[str, Any], decimals: int = 3) -> str:
    """An effect of the JSON document as "mean [low, high]".

    Examples:
        >>> interval({"mean": -0.5, "low": -0.6, "high": -0.4}, 1)
        '−0.5 [−0.6, −0.4]'
    """
    mean, low, high = (signed(effect[key], decimals) for key in ("mean", "low", "high"))
    return MISSING if effect["mean"] is None else f"{mean} [{low}, {high}]"


def largest(values: Any) -> float:
    """Largest magnitude in nested lists of numbers, leaving out None; 0 where there is none.

    Examples:
        >>> largest([[1.0, -3.0], [None, 2.0]])
        3.0
    """
    if isinstance(values, Sequence):
        return max(map(largest, values), default=0.0)
    return 0.0 if values is None else float(abs(values))


def share(value: float | int | None, limit: float = 1.0) -> str:
    """Magnitude of a value relative to a limit, between 0 and 1, for a colour."""
    return f"{min(abs(value) / limit, 1.0):.3f}" if value and limit else "0"


def flatten(value: Any, path: str = "") -> list[tuple[str, str]]:
    """Rows (path, text) of a nested document.

    Examples:
        >>> flatten({"model": {"name": "m"}, "sizes": [1, 2], "commit": None})
        [('model.name', 'm'), ('sizes', '1, 2'), ('commit', '–')]
    """
    if isinstance(value, Mapping):
        return [row for key, item in value.items() for row in flatten(item, f"{path}.{key}" if path else str(key))]
    if isinstance(value, Sequence) and not isinstance(value, str):
        if any(isinstance(item, Mapping | list | tuple) for item in value):
            return [row for index, item in enumerate(value) for row in flatten(item, f"{path}[{index}]")]
        return [(path, ", ".join(map(_plain, value)) or MISSING)]
    return [(path, _plain(value))]


def _plain(value: Any) -> str:
    return MISSING if value is None else "".join(map(_shown, str(value)))


def _shown(character: str) -> str:
    if character in _MARKS:
        return _MARKS[character]
    return f"⟨U+{ord(character):04X}⟩" if unicodedata.category(character) in _HIDDEN else character
