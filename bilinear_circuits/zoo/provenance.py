"""What it takes to repeat a result: versions and hashes; and names that tell of no machine's folders."""

import contextlib
import subprocess
from collections.abc import Sequence
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bilinear_circuits import zoo
from bilinear_circuits.data.corpora import Corpus
from bilinear_circuits.dictionaries import names as feature_names
from bilinear_circuits.utilities.folders import Fingerprint, file_hash

if TYPE_CHECKING:
    from bilinear_circuits.dictionaries.dictionary import Dictionary

_PACKAGES = ("bilinear-circuits", "torch", "transformers", "transformer-lens", "sae-lens", "tokenizers")


def provenance(
    model: str, saes: str, dictionaries: "Sequence[Dictionary]", corpus: Corpus | None, n_stories: int
) -> dict[str, Any]:
    """Gather versions, commit, and hashes of model, dictionaries and data.

    Args:
        model: Name, folder or Hub id of the model.
        saes: Name or folder of its dictionaries.
        dictionaries: Those of them that were used.
        corpus: The corpus, if one was read.
        n_stories: Stories read of it.
    """
    folders = [zoo.dictionary_folder(saes, dictionary.name) for dictionary in dictionaries]
    described = [
        {
            **(
                dictionary_source(folder)
                if folder is not None
                else {"name": dictionary.name, "sha256": None, "files": {}}
            ),
            "names_sha256": None if folder is None else file_hash(folder / feature_names.FILE),
            "d_in": dictionary.d_in,
            "d_sae": dictionary.d_sae,
            "activation": dictionary.activation.kind,
        }
        for dictionary, folder in zip(dictionaries, folders, strict=True)
    ]
    return {
        "model": model_source(model),
        "dictionaries": described,
        "corpus": None if corpus is None else corpus_source(corpus, n_stories),
        **environment(),
    }


def model_source(name_or_path: str) -> dict[str, Any]:
    """Name a model with the hash of all that decides what it computes, and of each file."""
    return _source(name_or_path, zoo.model_fingerprint(name_or_path))


def dictionary_source(folder: Path) -> dict[str, Any]:
    """Name a dictionary with the hash of all that decides what it computes, and of each file."""
    return _source(str(folder), zoo.dictionary_fingerprint(folder))


def _source(name_or_path: str, fingerprint: Fingerprint) -> dict[str, Any]:
    return {"name": display_name(name_or_path), "sha256": fingerprint.sha256, "files": dict(fingerprint.files)}


def corpus_source(corpus: Corpus, n_stories: int) -> dict[str, Any]:
    """Name a corpus with its hash, where it is a file, how stories are found in it, and the number of stories read."""
    named = {"name": display_name(corpus.path), "sha256": file_hash(corpus.path), "n_stories": n_stories}
    return named | {"separator": corpus.separator, "column": corpus.column}


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
