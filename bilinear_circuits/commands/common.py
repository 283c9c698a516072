"""What the verbs share: arguments, loading, progress bars, files written whole or not at all."""

import contextlib
import difflib
import json
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import MISSING, dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from bilinear_circuits import zoo
from bilinear_circuits.commands.claims import half_written
from bilinear_circuits.commands.corpus import CorpusArguments
from bilinear_circuits.commands.terminal import bar as bar
from bilinear_circuits.commands.terminal import note as note
from bilinear_circuits.commands.values import short, why_no_name
from bilinear_circuits.utilities.folders import read_json

if TYPE_CHECKING:
    from bilinear_circuits.interactions.activity import Side
    from bilinear_circuits.interactions.feature_interactions import FeatureInteractions

T = TypeVar("T")


@dataclass(kw_only=True)
class ModelArguments:
    """Model and dictionaries."""

    model: str = zoo.DEFAULT_MODEL
    """A shipped model, a Hugging Face model folder, or a Hub id."""

    saes: str | None = None
    """Folder of SAELens folders blocks.L.mlp.hook_in and hook_out; by default those shipped with the model."""


@dataclass(kw_only=True)
class CommonArguments(CorpusArguments, ModelArguments):
    """Model, dictionaries and corpus."""

    device: str = "cpu"
    """Where to compute: cpu, cuda, cuda:1."""

    seed: int = 0
    """Seed of everything random."""

    def __post_init__(self) -> None:
        super().__post_init__()
        check_seed(self.seed)
        n_stories = getattr(self, "n_stories", None)  # of the verbs that count them
        if n_stories is not None and n_stories < 1:
            raise ValueError(f"n_stories must be at least 1, got {n_stories}.")


@dataclass(kw_only=True)
class LabelArguments(CommonArguments):
    """The same of verbs that name features."""

    labels: str | None = None
    """YAML or JSON file of names of features, under the keys in and out: layer/feature: name, such as 4/143: negation,
    or feature: name where there is one layer. The others have the names stored with their dictionary, or are named by
    the tokens they are active at."""


def check_seed(seed: int) -> None:
    """Refuse a seed that torch does not take.

    Raises:
        ValueError: If it is negative or does not fit 63 bits.
    """
    if not 0 <= seed < 2**63:
        raise ValueError(f"seed must be between 0 and 2**63 - 1, got {seed}.")


def check_device(device: str) -> None:
    """Refuse a device that torch does not know or does not have.

    Raises:
        ValueError: If it cannot be used.
    """
    import torch

    try:
        torch.ones(1, device=device).item()
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        reason = str(error).splitlines()[0]
        raise ValueError(f"device must be one that torch can use, got {device}: {reason}") from error


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


def saes_of(arguments: CommonArguments, *, reads_corpus: bool = True) -> str:
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
    if arguments.model in zoo.names():
        return arguments.model
    both = reads_corpus and arguments.corpus is None
    names, what = ("--saes and --corpus", "dictionaries and stories") if both else ("--saes", "dictionaries")
    raise ValueError(f"{names} must be given for {arguments.model}: {what} are shipped for {', '.join(zoo.names())}.")


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
    arguments: CommonArguments, layers: Sequence[int], side: "Side | None" = None
) -> tuple[Any, "list[FeatureInteractions]"]:
    """Model and feature interactions of some layers, their features named as asked for.

    Args:
        arguments: What names them.
        layers: The layers.
        side: The side that a file of --labels without the keys in and out is of.
    """
    from bilinear_circuits import BilinearMLP, FeatureInteractions
    from bilinear_circuits.commands.labels import named, read_labels

    check_device(arguments.device)
    path = getattr(arguments, "labels", None)
    labels = read_labels(path, layers, side)
    note(f"loading {arguments.model}")
    model = quietly_load_model(arguments.model, arguments.device)
    saes = saes_of(arguments)
    interactions = []
    for layer in layers:
        pair = zip(zoo.load_dictionaries(layer, saes, arguments.device), ("in", "out"), strict=True)
        dictionaries = [named(one, labels[layer, side], f"{side} of {path}") for one, side in pair]
        interactions.append(FeatureInteractions(BilinearMLP.from_model(model, layer), *dictionaries))
    return model, interactions


def quietly_load_model(name: str, device: str) -> Any:
    """Load a model as a TransformerBridge without the bars and notices of the libraries below."""
    return quietly_load(zoo.load_model, name, device)


def quietly_load(load: Callable[[str, str], T], name: str, device: str) -> T:
    """Load a model by one of the functions of the zoo without the bars and notices of the libraries below."""
    from transformers.utils import logging

    logging.disable_progress_bar()
    logging.set_verbosity_error()
    return load(name, device)


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
