"""What the verbs share: arguments, loading, progress bars, files written whole or not at all."""

import contextlib
import json
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from bilinear_circuits import zoo
from bilinear_circuits.command_line.arguments import CommonArguments as CommonArguments
from bilinear_circuits.command_line.arguments import GateArguments as GateArguments
from bilinear_circuits.command_line.arguments import LabelArguments as LabelArguments
from bilinear_circuits.command_line.arguments import ModelArguments as ModelArguments
from bilinear_circuits.command_line.arguments import check_seed as check_seed
from bilinear_circuits.command_line.claims import half_written
from bilinear_circuits.command_line.labels import named, read_labels
from bilinear_circuits.command_line.terminal import note as note
from bilinear_circuits.command_line.values import short, why_no_name
from bilinear_circuits.utilities.devices import check_device as check_device
from bilinear_circuits.utilities.folders import ordinary_mode, read_json
from bilinear_circuits.utilities.progress import bar as bar
from bilinear_circuits.utilities.yaml_files import from_mapping as from_mapping
from bilinear_circuits.utilities.yaml_files import read_yaml as read_yaml

if TYPE_CHECKING:
    from bilinear_circuits.data.corpora import Corpus
    from bilinear_circuits.data.stories import StoryTokens
    from bilinear_circuits.interactions.activity import Side
    from bilinear_circuits.interactions.feature_interactions import FeatureInteractions

T = TypeVar("T")


def check_ranks(name: str, ranks: Sequence[int], model: str) -> None:
    """Refuse ranks that no form of a model has, before it is loaded.

    Raises:
        ValueError: If one is below 1 or above d_in.
    """
    d_in = read_json(zoo.model_folder(model) / "config.json", "config.json of the model").get("hidden_size")
    for rank in ranks:
        if rank < 1 or (isinstance(d_in, int) and rank > d_in):
            most = f"d_in={d_in}" if isinstance(d_in, int) else "d_in"
            raise ValueError(f"{name} must be between 1 and {most}, got {rank}.")


def check_out(out: str | None) -> None:
    """Refuse a results folder that is a file, before any work is done.

    Raises:
        ValueError: If it is not a folder, or cannot be made one.
    """
    if out is None:
        return
    if not out.strip():
        raise ValueError(f"out must be the name of a folder, got {out!r}.")
    if reason := why_no_name(out, new=True):
        raise ValueError(f"out must be the name of a folder, got {short(out)}: {reason}.")
    there = next(folder for folder in (Path(out), *Path(out).absolute().parents) if folder.exists())
    if not there.is_dir():
        raise ValueError(f"out must be a folder, got {out}: {there} is a file.")
    if not os.access(there, os.W_OK):
        raise ValueError(f"out must be a folder that can be written, got {out}: no permission for {there}.")


def saes_of(arguments: ModelArguments, *, reads_corpus: bool = True) -> str:
    """The dictionaries asked for, or those shipped with the model.

    Args:
        arguments: Model, dictionaries and corpus asked for.
        reads_corpus: Whether a corpus must be given with a model that is not shipped: then both are asked for at once.

    Raises:
        FileNotFoundError: If there is no such model.
        ValueError: If none are given and none are shipped.
    """
    zoo.model_path(arguments.model)  # an unknown model is the first thing to say
    if arguments.saes is not None:
        return arguments.saes
    missing = {"--saes": "dictionaries"}
    if reads_corpus and getattr(arguments, "corpus", None) is None:
        missing["--corpus"] = "stories"
    zoo.refuse_missing(arguments.model, missing)
    return arguments.model


def check_layers(layers: Sequence[int] | None, saes: str) -> list[int]:
    """Layers asked for that have dictionaries; all of those that have by default.

    Raises:
        ValueError: If a layer has none.
        FileNotFoundError: If the folder of dictionaries is missing or empty.
    """
    known = zoo.dictionary_layers(saes)
    for layer in layers or []:
        if layer not in known:
            raise ValueError(
                f"layer must have dictionaries in {saes} (layers {', '.join(map(str, known))}), got {layer}."
            )
    return list(dict.fromkeys(layers)) if layers else known


def load_interactions(
    arguments: CommonArguments, layers: Sequence[int], side: "Side | None" = None, corpus: "Corpus | None" = None
) -> tuple[Any, "list[FeatureInteractions]"]:
    """Model and feature interactions of some layers, their features named as asked for.

    Args:
        arguments: What names them.
        layers: The layers.
        side: The side that a file of --labels without the keys in and out is of.
        corpus: Where stories are that bilinear layers are fitted on, with --approximate; by default as asked for.
    """
    from bilinear_circuits.interactions.feature_interactions import FeatureInteractions
    from bilinear_circuits.interactions.fit import LEAST_RECOVERED
    from bilinear_circuits.runs.replacement import read_layers

    check_device(arguments.device)
    path = getattr(arguments, "labels", None)
    labels = read_labels(path, layers, side)
    note(f"loading {arguments.model}")
    saes = saes_of(arguments)
    loaded = [zoo.load_dictionaries(layer, saes, arguments.device) for layer in layers]  # faster, and fails sooner
    model = quietly_load_model(arguments.model, arguments.device)
    fit, least = getattr(arguments, "approximate", None), getattr(arguments, "least_recovered", LEAST_RECOVERED)
    mlps = read_layers(model, layers, fit, lambda: _fit_tokens(arguments, corpus, model), bar)
    interactions = []
    for layer, dictionaries in zip(layers, loaded, strict=True):
        pair = zip(dictionaries, ("in", "out"), strict=True)
        both = [named(one, labels[layer, side], f"{side} of {path}") for one, side in pair]
        interactions.append(FeatureInteractions(mlps[layer], *both, least_recovered=least))
        if mlps[layer].approximation is not None:
            print(f"layer {layer}: {mlps[layer].approximation}")
    return model, interactions


def _fit_tokens(arguments: CommonArguments, corpus: "Corpus | None", model: Any) -> "StoryTokens":
    """Stories that bilinear layers are fitted on."""
    from bilinear_circuits.command_line.corpus import corpus_of
    from bilinear_circuits.data.stories import tokenize_stories
    from bilinear_circuits.models.running import context_length
    from bilinear_circuits.runs.replacement import FIT_STORIES

    stories = (corpus or corpus_of(arguments)).read(FIT_STORIES)
    return tokenize_stories(stories, model.tokenizer, context_length(model))


def quietly_load_model(name: str, device: str) -> Any:
    """Load a model as a TransformerBridge without the bars and notices of the libraries below."""
    return quietly_load(zoo.load_model, name, device)


def quietly_load(load: Callable[[str, str], T], name: str, device: str) -> T:
    """Load a model by one of the functions of the zoo without the bars and notices of the libraries below."""
    from transformers.utils import logging

    logging.disable_progress_bar()
    logging.set_verbosity_error()
    return load(name, device)


def write_page(folder: str | Path, page: Callable[[], str]) -> None:
    """Write a result's report.html, after its numbers: a page that fails must not take them along."""
    with written_whole(folder) as whole:
        (whole / "report.html").write_text(page(), encoding="utf-8")


@contextlib.contextmanager
def written_whole(folder: str | Path, *, first: str | None = None, last: str | None = None) -> Iterator[Path]:
    """A temporary folder whose files are moved into `folder` at the end; after an error nothing is left behind.

    Args:
        folder: Where they go; made if needed.
        first: The file by which a result is known as the verb's own: it is moved before the others.
        last: The file that says a run is over: it is moved after the others.
    """
    target = Path(folder).resolve()
    target.parent.mkdir(parents=True, exist_ok=True)
    with half_written(target) as temporary:
        yield Path(temporary)
        ordinary_mode(Path(temporary).rglob("*.safetensors"))
        files = sorted(Path(temporary).iterdir(), key=lambda file: (file.name == last, file.name != first, file.name))
        for file in files:
            if (target / file.name).is_dir():
                raise ValueError(f"out must not hold a folder where a file is written, got {target / file.name}.")
        target.mkdir(exist_ok=True)
        for file in files:
            os.replace(file, target / file.name)


def to_json(payload: Mapping[str, Any]) -> str:
    """JSON text as files hold it."""
    return json.dumps(payload, indent=1, ensure_ascii=False, allow_nan=False) + "\n"
