"""Names of the features of a dictionary that are fixed: stored in its folder, the same whatever stories are read."""

import contextlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from bilinear_circuits.utilities.folders import DICTIONARY_FILES, fingerprint, read_json

FILE = "names.json"
KIND = "feature names"
VERSION = 1


def read_names(folder: str | Path, d_sae: int) -> dict[int, str]:
    """Read the names stored in a dictionary's folder; none where there are none.

    Raises:
        ValueError: If the file is not what `names_document` makes, or names features that the dictionary lacks.
    """
    path = Path(folder) / FILE
    if not path.is_file():
        return {}
    document = read_json(path, FILE)
    if (document.get("kind"), document.get("schema_version")) != (KIND, VERSION):
        raise ValueError(f"{FILE} must be {KIND!r} of version {VERSION}, got {path} with something else.")
    if not _fits(document, Path(folder)):
        raise ValueError(
            f"{FILE} must be of the dictionary beside it, got {path}, whose names were made of other weights."
            " Remove it."
        )
    return checked_names(document.get("names"), d_sae, str(path))


def _fits(document: Mapping[str, Any], folder: Path) -> bool:
    """Whether names are of the weights beside them; those that say of no weights are of any."""
    source: Any = document
    for key in ("provenance", "dictionary", "sha256"):
        source = source.get(key) if isinstance(source, Mapping) else None
    return source in (None, fingerprint(folder, DICTIONARY_FILES).sha256)


def checked_names(content: Any, d_sae: int, where: str) -> dict[int, str]:
    """Names by feature number, as a JSON or YAML file holds them.

    Raises:
        ValueError: If they are no mapping of features of the dictionary to texts.
    """
    if not isinstance(content, Mapping):
        raise ValueError(f"names must map feature numbers to texts, got {content!r:.60} in {where}.")
    names = {}
    for key, name in content.items():
        if isinstance(key, bool) or not str(key).isdecimal() or not isinstance(name, str) or not name.strip():
            raise ValueError(f"names must map feature numbers to texts, got {key!r:.40}: {name!r:.60} in {where}.")
        if int(key) >= d_sae:
            raise ValueError(f"names must be of features between 0 and {d_sae - 1}, got {key} in {where}.")
        names[int(key)] = name
    return names


def names_document(names: Mapping[int, str], provenance: Mapping[str, Any]) -> str:
    """The text of the file: names of all features that have one, and the stories they were made on."""
    document = {"schema_version": VERSION, "kind": KIND, "provenance": provenance, "names": dict(sorted(names.items()))}
    return json.dumps(document, indent=0, ensure_ascii=False, allow_nan=False) + "\n"


def drop_names(folder: str | Path) -> None:
    """Remove names beside a dictionary that were made of other weights; whatever else is there stays."""
    path = Path(folder) / FILE
    with contextlib.suppress(OSError, ValueError):
        document = read_json(path, FILE)
        if document.get("kind") == KIND and not _fits(document, Path(folder)):
            path.unlink()


def write_names(folder: str | Path, names: Mapping[int, str]) -> None:
    """Store names beside the dictionary of a folder that were not made on stories."""
    made_of = {"dictionary": {"sha256": fingerprint(folder, DICTIONARY_FILES).sha256}}
    (Path(folder) / FILE).write_text(names_document(names, made_of), encoding="utf-8")
