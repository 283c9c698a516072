"""Arguments of the wrong class refused in one line that says which is wanted and where it comes from."""

from numbers import Integral, Real
from typing import Any


def check_finite(name: str, rows: Any) -> None:
    """Refuse rows of a tensor that hold infinite or undefined numbers.

    Raises:
        ValueError: If there are some.
    """
    if bad := int((~rows.isfinite().all(dim=1)).sum()):
        raise ValueError(f"{name} must be finite, got {bad} of {len(rows)} rows that are not.")


def check_whole(name: str, value: Any, least: int | None = 1, most: int | None = None) -> int:
    """Refuse a number that is not whole or out of range.

    Args:
        name: Name of the argument.
        value: Its value; integers of any library pass.
        least: The smallest that may be, if there is one.
        most: The largest, if there is one.

    Returns:
        The number as an int.

    Raises:
        TypeError: If it is not whole.
        ValueError: If it is out of range.
    """
    if isinstance(value, bool) or not isinstance(value, Integral):
        raise TypeError(f"{name} must be an int, got {value!r:.40} of type {type(value).__name__}.")
    value = int(value)
    if (least is not None and value < least) or (most is not None and value > most):
        wanted = f"at least {least}" if most is None else f"between {least} and {most}"
        raise ValueError(f"{name} must be {wanted}, got {value}.")
    return value


def check_share(name: str, value: Any) -> None:
    """Refuse what is no share above 0 and at most 1.

    Raises:
        TypeError: If it is no number.
        ValueError: If it is out of range.
    """
    if isinstance(value, bool) or not isinstance(value, Real):
        raise TypeError(f"{name} must be a number, got {value!r:.40} of type {type(value).__name__}.")
    if not 0 < float(value) <= 1:
        raise ValueError(f"{name} must be a share above 0 and at most 1, got {value}.")


def check_kind(name: str, value: Any, kinds: type | tuple[type, ...], advice: str) -> None:
    """Refuse an argument that is of none of some classes.

    Args:
        name: Name of the argument.
        value: Its value.
        kinds: The classes that it may be of.
        advice: Where one is got from.

    Raises:
        TypeError: If it is of none of them.
    """
    kinds = kinds if isinstance(kinds, tuple) else (kinds,)
    if not isinstance(value, kinds):
        wanted = " or ".join(kind.__name__ for kind in kinds)
        raise TypeError(f"{name} must be a {wanted}, got a {type(value).__name__}. {advice}")
