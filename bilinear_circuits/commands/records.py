"""What it takes to repeat a result: configuration, versions, hashes; and names that tell of no machine's folders."""

import contextlib
import json
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bilinear_circuits import feature_names, zoo
from bilinear_circuits.commands.common import CommonArguments, saes_of
from bilinear_circuits.commands.corpus import settings_of
from bilinear_circuits.corpora import Corpus
from bilinear_circuits.folders import Fingerprint, file_hash, read_json

if TYPE_CHECKING:
    from bilinear_circuits.interactions import FeatureInteractions

_PACKAGES = ("bilinear-circuits", "torch", "transformers", "transformer-lens", "sae-lens", "tokenizers")


def provenance(
    arguments: CommonArguments,
    interactions: "Sequence[FeatureInteractions]",
    corpus: Corpus | None,
    n_stories: int,
    seconds: float,
) -> dict[str, Any]:
    """What it takes to repeat a result: configuration, versions, commit, hashes of model, dictionaries and data."""
    saes = zoo.dictionaries_path(saes_of(arguments))
    dictionaries = [
        {
            **dictionary_source(saes / dictionary.name),
            "names_sha256": file_hash(saes / dictionary.name / feature_names.FILE),
            "d_in": dictionary.d_in,
            "d_sae": dictionary.d_sae,
            "activation": dictionary.activation.kind,
        }
        for layer in interactions
        for dictionary in (layer.sae_in, layer.sae_out)
    ]
    return {
        "model": model_source(arguments.model),
        "dictionaries": dictionaries,
        "corpus": None if corpus is None else corpus_source(corpus, n_stories),
        **environment(),
        "config": shared_config(arguments),
        "seconds": round(seconds, 1),
    }


def model_source(name_or_path: str) -> dict[str, Any]:
    """Name a model with the hash of all that decides what it computes, and of each file."""
    return _source(name_or_path, zoo.model_fingerprint(name_or_path))


def dictionary_source(folder: Path) -> dict[str, Any]:
    """Name a dictionary with the hash of all that decides what it computes, and of each file."""
    return _source(str(folder), zoo.dictionary_fingerprint(folder))


def _source(name_or_path: str, fingerprint: Fingerprint) -> dict[str, Any]:
    return {"name": display_name(name_or_path), "sha256": fingerprint.sha256, "files": dict(fingerprint.files)}


def layer_hashes(arguments: CommonArguments, layer: int) -> dict[str, Any]:
    """Model and dictionaries of a layer by their hashes, in the settings that a resumed run must share."""
    saes = zoo.dictionaries_path(saes_of(arguments))
    names = [f"blocks.{layer}.mlp.{side}" for side in ("hook_in", "hook_out")]
    return {
        "model": display_name(arguments.model),
        "model_sha256": zoo.model_fingerprint(arguments.model).sha256,
        "dictionaries_sha256": [zoo.dictionary_fingerprint(saes / name).sha256 for name in names],
    }


def names_hashes(arguments: CommonArguments, layer: int) -> list[str | None]:
    """The names stored with both dictionaries of a layer, by their hashes; None where none are."""
    saes = zoo.dictionaries_path(saes_of(arguments))
    return [file_hash(saes / f"blocks.{layer}.mlp.{side}" / feature_names.FILE) for side in ("hook_in", "hook_out")]


def corpus_source(corpus: Corpus, n_stories: int) -> dict[str, Any]:
    """Name a corpus with its hash, where it is a file, how stories are found in it, and the number of stories read."""
    named = {"name": display_name(corpus.path), "sha256": file_hash(corpus.path), "n_stories": n_stories}
    return named | settings_of(corpus)


def shared_config(arguments: Any) -> dict[str, Any]:
    """Write options as plain data that can be sent to others: files and folders by the last part of their path."""
    named = {
        key: value if key.startswith("prompt") else _without_paths(value) for key, value in asdict(arguments).items()
    }
    return named | {"out": Path(named["out"]).name} if named.get("out") else named


def _without_paths(value: Any) -> Any:
    if isinstance(value, str):
        return display_name(value)
    if isinstance(value, list | tuple):
        return [_without_paths(part) for part in value]
    return {key: _without_paths(part) for key, part in value.items()} if isinstance(value, dict) else value


def environment() -> dict[str, Any]:
    """Versions of the packages that matter, and the commit of this one."""
    return {"versions": {name: _version(name) for name in _PACKAGES}, "commit": _commit()}


def display_name(name_or_path: str) -> str:
    """Name a model, corpus or folder in results: the last part of a path, so that no machine's folders get there."""
    try:
        path = Path(name_or_path).expanduser()
        is_path = path.is_absolute() or ".." in path.parts or path.exists()
    except (OSError, ValueError, RuntimeError):  # too long for a path, with a zero byte, or of a user there is not
        return name_or_path
    return path.resolve().name if is_path and name_or_path else name_or_path


def changed_settings(marker: Path, resolved: Mapping[str, Any]) -> list[str]:
    """Keys in which a run that was started, as recorded in a marker file, differs from the one asked for."""
    started = read_json(marker, marker.name)
    return [key for key, value in json.loads(json.dumps(resolved)).items() if started.get(key) != value]


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def _commit() -> str | None:
    """Commit of the checkout the package runs from; None where it is installed elsewhere."""
    root = Path(__file__).parents[2]
    if not (root / ".git").exists():
        return None
    command = ["git", "-C", str(root), "describe", "--always", "--dirty", "--abbrev=40"]
    with contextlib.suppress(OSError, subprocess.CalledProcessError):
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    return None
