"""YAML files read as mappings, and mappings as dataclasses; what is unknown, missing or no YAML is refused by name."""

import difflib
from collections.abc import Mapping
from dataclasses import MISSING, fields
from pathlib import Path
from typing import Any, TypeVar

T = TypeVar("T")


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
    """A dataclass from a mapping; unknown and missing keys are refused by name.

    Raises:
        ValueError: If a key is unknown, or one without a default is missing.
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
    return cls(**values)
