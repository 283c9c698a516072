"""YAML files read as mappings, and mappings as dataclasses; what is unknown, missing or no YAML is refused by name."""

import difflib
import math
from collections.abc import Mapping
from dataclasses import MISSING, fields
from pathlib import Path
from types import NoneType, UnionType
from typing import Any, TypeVar, get_args

T = TypeVar("T")
_KINDS: Mapping[type, str] = {float: "a finite number", int: "a whole number", str: "a text", bool: "true or false"}


def read_yaml(path: str, what: str) -> dict[Any, Any]:
    """Read a YAML mapping.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If it is not YAML, or no mapping.
    """
    import yaml

    file = Path(path)
    if not file.is_file():
        missing = "that is no file" if file.exists() else "no such file"
        raise FileNotFoundError(f"{what} must be a YAML file, got {path}: {missing}.")
    try:
        content = yaml.safe_load(file.read_text(encoding="utf-8"))
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        reason = "it is nested too deeply" if isinstance(error, RecursionError) else error
        raise ValueError(f"{what} must be a YAML file, got {path}: {reason}") from error
    if not isinstance(content, dict):
        raise ValueError(f"{what} must be a YAML mapping of keys to values, got {path}, which holds {content!r:.60}.")
    return content


def from_mapping(cls: type[T], values: Mapping[str, Any], where: str) -> T:
    """Make a dataclass of a mapping; keys that are unknown or missing and values of another kind are refused by name.

    Raises:
        ValueError: If a key is unknown, one without a default is missing, or a value is not a number, text or truth
            value where the field is one.
    """
    known = [field.name for field in fields(cls)]  # type: ignore[arg-type]
    for key in values:
        if key not in known:
            close = difflib.get_close_matches(str(key), known, n=1)
            hint = f" Did you mean {close[0]}?" if close else ""
            raise ValueError(f"{where} must hold only the keys {', '.join(known)}, got {key!r}.{hint}")
    for field in fields(cls):  # type: ignore[arg-type]
        if field.name not in values and field.default is MISSING and field.default_factory is MISSING:
            raise ValueError(
                f"{where} must hold the key {field.name}, got only {', '.join(map(str, values)) or 'none'}."
            )
        if field.name in values and (wanted := _unlike(field.type, values[field.name])):
            raise ValueError(f"{field.name} of {where} must be {wanted}, got {values[field.name]!r:.60}.")
    return cls(**values)


def _unlike(annotation: Any, value: Any) -> str | None:
    """What a field of numbers, texts or truth values must be, where a value is not; other fields check themselves."""
    kinds = get_args(annotation) if isinstance(annotation, UnionType) else (annotation,)
    if not set(kinds) <= {*_KINDS, NoneType} or (value is None and NoneType in kinds):
        return None
    if isinstance(value, bool):
        fits = bool in kinds
    elif isinstance(value, int | float):
        fits = math.isfinite(value) and (float in kinds or (isinstance(value, int) and int in kinds))
    else:
        fits = type(value) in kinds
    return None if fits else next(words for kind, words in _KINDS.items() if kind in kinds)
