"""Parts of a run that are kept until it is done, with their hashes: what was damaged on the way is made again."""

import hashlib
import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from bilinear_circuits.utilities.folders import file_hash


def write_sealed(path: Path, content: Any, folder: Path, files: Iterable[str] = ()) -> None:
    """Write a part as JSON with its hash, and those of the files that belong to it.

    Args:
        path: Where.
        content: Data in JSON's own types.
        folder: Where the files are.
        files: Their paths from there.
    """
    part = {"content": content, "files": {name: file_hash(folder / name) for name in files}}
    path.write_text(_text(part | {"sha256": _hash(part)}), encoding="utf-8")


def read_sealed(path: Path, folder: Path) -> Any:
    """Read a part back.

    Args:
        path: Where it is.
        folder: Where the files are that belong to it.

    Returns:
        What was written; None if there is none, or a byte of it or of its files is another.
    """
    try:
        part = json.loads(path.read_text(encoding="utf-8"))
        seal = part.pop("sha256")
        whole = seal == _hash(part) and all(file_hash(folder / name) == known for name, known in part["files"].items())
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return None
    return part["content"] if whole else None


def _hash(part: Mapping[str, Any]) -> str:
    return hashlib.sha256(_text(part).encode()).hexdigest()


def _text(part: Mapping[str, Any]) -> str:
    return json.dumps(part, ensure_ascii=False, allow_nan=False, sort_keys=True)
