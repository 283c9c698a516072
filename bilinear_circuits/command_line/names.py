"""Name the features of dictionaries once: the tokens that tell most about each are stored in its folder.

From then on a feature has the same name on every page and in every verb, whatever stories are read there. Names of your
own go before stored ones with --labels, or can be written into names.json.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from bilinear_circuits import zoo
from bilinear_circuits.command_line import common, records
from bilinear_circuits.command_line.corpus import corpus_of, tokenized
from bilinear_circuits.data.corpora import Corpus
from bilinear_circuits.dictionaries.names import FILE, names_document
from bilinear_circuits.utilities.folders import file_hash, read_json

if TYPE_CHECKING:
    from bilinear_circuits.interactions.activity import LayerActivity


@dataclass(kw_only=True)
class Arguments(common.GateArguments, common.CommonArguments):
    """Options of `names`."""

    layers: list[int] | None = None
    """Layers to name features of; by default all that have dictionaries."""

    n_stories: int = 2000
    """Stories read from the corpus."""

    replace: bool = False
    """Replace the names that are stored already."""


def run(arguments: Arguments) -> None:
    """Read the stories, name every feature that is active, and store the names."""
    saes = zoo.dictionaries_path(common.saes_of(arguments))
    layers = common.check_layers(arguments.layers, common.saes_of(arguments))
    sides = {layer: dict(zip(("in", "out"), zoo.dictionary_folders(saes, layer), strict=True)) for layer in layers}
    folders = [one for layer in layers for one in sides[layer].values() if one is not None]
    corpus = corpus_of(arguments)
    _check(folders, corpus, arguments)

    from bilinear_circuits.interactions.activity import collect_activity
    from bilinear_circuits.models.running import context_length

    stories = corpus.read(arguments.n_stories)
    model, interactions = common.load_interactions(arguments, layers)
    tokens = tokenized(corpus, stories, model.tokenizer, context_length(model))
    provenance = {
        "model": records.model_source(arguments.model),
        "corpus": records.corpus_source(corpus, len(stories)),
        **records.environment(),
    }
    for activity in collect_activity(model, interactions, tokens, common.bar):
        layer = activity.interactions.mlp.layer
        for side, names in made_names(activity, model.tokenizer).items():
            if (folder := sides[layer][side]) is None:
                continue
            source = provenance | {"dictionary": records.dictionary_source(folder)}
            with common.written_whole(folder) as whole:
                (whole / FILE).write_text(names_document(names, source), encoding="utf-8")
            print(f"written: {folder / FILE}, names of {len(names)} features")


def results_folder(arguments: Arguments) -> Path | None:
    """The folder of the dictionaries, in whose folders names are stored."""
    return zoo.dictionaries_path(common.saes_of(arguments))


def made_names(activity: "LayerActivity", tokenizer: object) -> dict[str, dict[int, str]]:
    """Names of the active features of both dictionaries by their tokens, whatever names they have."""
    from bilinear_circuits.data.token_texts import TokenTexts
    from bilinear_circuits.interactions.naming import NOT_ACTIVE, token_labels

    texts = TokenTexts(tokenizer)
    made = {"in": token_labels(activity, texts, "in"), "out": token_labels(activity, texts, "out")}
    return {side: {at: name for at, name in enumerate(names) if name != NOT_ACTIVE} for side, names in made.items()}


def _check(folders: list[Path], corpus: Corpus, arguments: Arguments) -> None:
    """Refuse to name features that have names, but for those that a killed run of the same command made.

    Raises:
        ValueError: If a folder has other names, and they are not to be replaced.
    """
    decisive = {"sha256": file_hash(corpus.path), "separator": corpus.separator, "column": corpus.column}
    asked = {"model": records.model_source(arguments.model)["sha256"], "corpus": decisive}
    for folder in folders:
        path = folder / FILE
        if not path.is_file() or arguments.replace:
            continue
        source = read_json(path, FILE).get("provenance") or {}
        corpus_made = source.get("corpus") or {}
        made_of = {"model": (source.get("model") or {}).get("sha256")}
        made_of |= {"corpus": {name: corpus_made.get(name) for name in decisive}}
        stories = corpus_made.get("n_stories", 0)
        if made_of != asked or stories > arguments.n_stories or all((one / FILE).is_file() for one in folders):
            raise ValueError(
                f"names of features are fixed once, and {folder} has a {FILE} already. Leave them, choose other"
                " --layers, or give --replace."
            )
