"""What it takes to repeat a result: configuration, versions, hashes; and names that tell of no machine's folders."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bilinear_circuits import zoo
from bilinear_circuits.command_line.common import CommonArguments, saes_of
from bilinear_circuits.data.corpora import Corpus
from bilinear_circuits.dictionaries import names as feature_names
from bilinear_circuits.utilities.folders import file_hash, read_json
from bilinear_circuits.zoo.provenance import corpus_source as corpus_source
from bilinear_circuits.zoo.provenance import dictionary_source as dictionary_source
from bilinear_circuits.zoo.provenance import display_name as display_name
from bilinear_circuits.zoo.provenance import environment as environment
from bilinear_circuits.zoo.provenance import model_source as model_source
from bilinear_circuits.zoo.provenance import provenance as zoo_provenance

if TYPE_CHECKING:
    from bilinear_circuits.interactions.feature_interactions import FeatureInteractions

_TEXTS = ("prompt", "target", "against")  # options that hold text of the user's, which is no path


def provenance(
    arguments: CommonArguments,
    interactions: "Sequence[FeatureInteractions]",
    corpus: Corpus | None,
    n_stories: int,
    seconds: float,
) -> dict[str, Any]:
    """Gather what it takes to repeat a result: configuration, versions, commit, hashes of all that was read."""
    from bilinear_circuits.interactions.fit import approximations

    dictionaries = [dictionary for layer in interactions for dictionary in (layer.sae_in, layer.sae_out)]
    source = zoo_provenance(arguments.model, saes_of(arguments), dictionaries, corpus, n_stories)
    return (
        source
        | approximations([one.mlp for one in interactions])
        | {"config": shared_config(arguments), "seconds": round(seconds, 1)}
    )


def prompt_provenance(arguments: Any, dictionaries: Sequence[Mapping[str, Any]], seconds: float) -> dict[str, Any]:
    """Gather what it takes to repeat a result of a model that reads no stories.

    Args:
        arguments: Arguments of a verb, with a model.
        dictionaries: Sources of the dictionaries that were read.
        seconds: How long it took.
    """
    source = {"model": model_source(arguments.model), "dictionaries": [*dictionaries], "corpus": None, **environment()}
    return source | {"config": shared_config(arguments), "seconds": round(seconds, 1)}


def layer_hashes(arguments: CommonArguments, layer: int) -> dict[str, Any]:
    """Model and dictionaries of a layer by their hashes, in the settings that a resumed run must share."""
    folders = zoo.dictionary_folders(saes_of(arguments), layer)
    return {
        "model": display_name(arguments.model),
        "model_sha256": zoo.model_fingerprint(arguments.model).sha256,
        "dictionaries_sha256": [None if one is None else zoo.dictionary_fingerprint(one).sha256 for one in folders],
    }


def names_hashes(arguments: CommonArguments, layer: int) -> list[str | None]:
    """The names stored with both dictionaries of a layer, by their hashes; None where none are."""
    folders = zoo.dictionary_folders(saes_of(arguments), layer)
    return [None if one is None else file_hash(one / feature_names.FILE) for one in folders]


def shared_config(arguments: Any) -> dict[str, Any]:
    """Write options as plain data that can be sent to others: files and folders by the last part of their path."""
    named = {
        key: value if key.startswith(_TEXTS) else _without_paths(value) for key, value in asdict(arguments).items()
    }
    return named | {"out": Path(named["out"]).name} if named.get("out") else named


def _without_paths(value: Any) -> Any:
    if isinstance(value, str):
        return display_name(value)
    if isinstance(value, list | tuple):
        return [_without_paths(part) for part in value]
    return {key: _without_paths(part) for key, part in value.items()} if isinstance(value, dict) else value


def changed_settings(marker: Path, resolved: Mapping[str, Any]) -> list[str]:
    """Keys in which a run that was started, as recorded in a marker file, differs from the one asked for."""
    started = read_json(marker, marker.name)
    return [key for key, value in json.loads(json.dumps(resolved)).items() if started.get(key) != value]
