"""Arguments of the wrong class refused in one line that says which is wanted and where it comes from."""

from typing import Any


def check_finite(name: str, rows: Any) -> None:
    """Refuse rows of a tensor that hold infinite or undefined numbers.

    Raises:
        ValueError: If there are some.
    """
    if bad := int((~rows.isfinite().all(dim=1)).sum()):
        raise ValueError(f"{name} must be finite, got {bad} of {len(rows)} rows that are not.")


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
