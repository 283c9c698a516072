"""See which circuits of one circuit.json return in others: other dictionaries (seeds) of a model, or other models.

Every file is one that `bilinear-circuits circuits` wrote. The circuits of the first are looked for among all output
features of each of the others, on the same tokens; they return where the best match is mutual, beyond what shifted
tokens give, and alike enough.
"""

import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from simple_parsing import field

from bilinear_circuits import zoo
from bilinear_circuits.command_line import common, records
from bilinear_circuits.command_line.arguments import CorpusArguments
from bilinear_circuits.command_line.circuit_file import CircuitFile, read_circuit_file
from bilinear_circuits.command_line.corpus import tokenized
from bilinear_circuits.command_line.outputs import Outputs
from bilinear_circuits.command_line.values import check_most
from bilinear_circuits.data.corpora import Corpus
from bilinear_circuits.utilities.folders import file_hash

if TYPE_CHECKING:
    from bilinear_circuits.comparison.likeness import CircuitSet
    from bilinear_circuits.interactions.feature_interactions import FeatureInteractions


OUTPUTS = Outputs("result.json", "StabilityTable", ("report.html", "result.safetensors"))


@dataclass(kw_only=True)
class Arguments(CorpusArguments):
    """Options of `compare`."""

    circuits: list[str] = field(positional=True, nargs="+", metavar="CIRCUIT.json")  # noqa: RUF009
    """Two files or more that `circuits` wrote."""

    models: list[str] | None = None
    """Model of each file, in the order of the files, or one for all; needed for those that are not shipped."""

    saes: list[str] | None = None
    """Dictionaries of each file, in the same order, or one for all; needed for those that are not shipped."""

    corpus: str | None = None
    """Stories: a file of text, CSV, JSON lines or parquet, or a Hub id; by default the corpus of the first file, where
    it is shipped."""

    n_stories: int = 200
    """Stories read from the corpus."""

    by: Literal["activation", "jaccard", "promoted", "decoder", "encoder", "form"] = "activation"
    """What matches are chosen by; decoder, encoder and form only between dictionaries of one model."""

    threshold: float = 0.5
    """Least correlation of activations of a circuit that returns."""

    n_null: int = 64
    """Random features of each layer that percentiles refer to."""

    n_shifts: int = 99
    """Shifts of the tokens that p-values refer to."""

    device: str = "cpu"
    """Where to compute: cpu, cuda, cuda:1."""

    seed: int = 0
    """Seed of everything random."""

    out: str | None = None
    """Folder for report.html, result.json and result.safetensors; not written by default."""

    def __post_init__(self) -> None:
        super().__post_init__()
        common.check_seed(self.seed)


@dataclass(frozen=True)
class Source:
    """One file, its name in tables, and where its model and dictionaries are."""

    name: str
    file: CircuitFile
    place: common.CommonArguments


def run(arguments: Arguments) -> None:
    """Compare, print the tables, write the result."""
    started = time.perf_counter()
    common.check_out(arguments.out)

    from bilinear_circuits.commands.compare_tables import describe, summary
    from bilinear_circuits.comparison.stability import StabilityTable, check_settings, compare_circuits
    from bilinear_circuits.report.pages import comparison_page
    from bilinear_circuits.utilities.saving import save_result

    check_settings(arguments.by, arguments.threshold, arguments.n_null, arguments.n_shifts)
    check_most(arguments, n_shifts=100_000)
    sources = read_sources(arguments)
    layers = layers_for(sources)
    corpus = corpus_for(arguments, sources)
    stories = corpus.read(arguments.n_stories)
    loaded = [common.load_interactions(source.place, layer) for source, layer in zip(sources, layers, strict=True)]
    first, *others = circuit_sets(sources, loaded, corpus, stories)
    result = StabilityTable(
        tuple(
            compare_circuits(
                first,
                other,
                arguments.by,
                arguments.threshold,
                arguments.n_null,
                arguments.n_shifts,
                arguments.seed,
                common.bar,
            )
            for other in others
        )
    )
    print("\n\n".join([*(describe(comparison) for comparison in result.comparisons), summary(result)]))
    if arguments.out is not None:
        source = provenance(arguments, sources, loaded, corpus, len(stories), time.perf_counter() - started)
        with common.written_whole(arguments.out, first=OUTPUTS.record) as folder:
            save_result(result, folder, source)
        common.write_page(arguments.out, lambda: comparison_page(result, source))
        print("\nwritten: " + ", ".join(f"{arguments.out}/{name}" for name in (*OUTPUTS.others, OUTPUTS.record)))


def read_sources(arguments: Arguments) -> list[Source]:
    """Read the files and find their models and dictionaries.

    Raises:
        FileNotFoundError: If a file, model or dictionary is missing.
        ValueError: If a file is no circuit.json, there are too few of them, or weights are not those it was made with.
    """
    n_files = len(arguments.circuits)
    if n_files < 2:
        raise ValueError(f"circuits must be two files or more, got {n_files}.")
    files = [read_circuit_file(path) for path in arguments.circuits]
    _check_places(arguments, files)
    sources = []
    for index, (path, file) in enumerate(zip(arguments.circuits, files, strict=True)):
        place = common.CommonArguments(
            model=_place(arguments.models, index, file.model),
            saes=_place(arguments.saes, index, file.saes),
            corpus=arguments.corpus,
            separator=arguments.separator,
            column=arguments.column,
            device=arguments.device,
            seed=arguments.seed,
        )
        file.check_source(place)
        sources.append(Source(f"[{index + 1}] {Path(path).absolute().parent.name}/{Path(path).name}", file, place))
    return sources


def layers_for(sources: Sequence[Source]) -> list[list[int]]:
    """Layers read from each file's dictionaries: those with circuits within one model, all of them between models.

    Raises:
        ValueError: If circuits of one model are on layers that not all dictionaries have.
    """
    layers = sorted({layer for source in sources for layer in source.file.layers})
    one_model = len({source.file.model_files.sha256 for source in sources}) == 1
    saes = [common.saes_of(source.place, reads_corpus=False) for source in sources]
    return [common.check_layers(layers if one_model else None, sae) for sae in saes]


def corpus_for(arguments: Arguments, sources: Sequence[Source]) -> Corpus:
    """The corpus asked for, or the shipped one that the first file was made with.

    Raises:
        ValueError: If none is given and that of the first file is not shipped.
    """
    if arguments.corpus is not None:
        return sources[0].file.corpus_of(sources[0].place)
    for name in zoo.names():
        if file_hash(Path(zoo.corpus_path(name))) == sources[0].file.corpus_hash:
            return sources[0].file.corpus_of(replace(sources[0].place, corpus=name))
    raise ValueError(f"--corpus must be given: that of {arguments.circuits[0]} is not shipped.")


def circuit_sets(
    sources: Sequence[Source],
    loaded: "Sequence[tuple[Any, Sequence[FeatureInteractions]]]",
    corpus: Corpus,
    stories: Sequence[str],
) -> "list[CircuitSet]":
    """Run every model on the same tokens.

    Raises:
        ValueError: If their vocabularies differ.
    """
    from bilinear_circuits.comparison.likeness import CircuitSet
    from bilinear_circuits.interactions.activity import collect_activity
    from bilinear_circuits.models.running import context_length, unembedding

    tokenizer = loaded[0][0].tokenizer
    for source, (model, _) in zip(sources, loaded, strict=True):
        if model.tokenizer.get_vocab() != tokenizer.get_vocab():
            raise ValueError(
                f"circuits must be of models with one vocabulary, got {sources[0].place.model} with"
                f" {len(tokenizer.get_vocab())} tokens and {source.place.model} with"
                f" {len(model.tokenizer.get_vocab())}{'' if len(tokenizer) != len(model.tokenizer) else ' others'}."
            )
    tokens = tokenized(corpus, stories, tokenizer, min(context_length(model) for model, _ in loaded))
    return [
        CircuitSet(
            source.name,
            collect_activity(model, interactions, tokens, common.bar),
            unembedding(model),
            tuple(target.key for target in source.file.targets),
        )
        for source, (model, interactions) in zip(sources, loaded, strict=True)
    ]


def provenance(
    arguments: Arguments,
    sources: Sequence[Source],
    loaded: "Sequence[tuple[Any, Sequence[FeatureInteractions]]]",
    corpus: Corpus,
    n_stories: int,
    seconds: float,
) -> dict[str, Any]:
    """Configuration, and for each file its hash, model, dictionaries and query."""
    files = []
    for path, source, (_, interactions) in zip(arguments.circuits, sources, loaded, strict=True):
        whole = records.provenance(source.place, interactions, corpus, n_stories, seconds)
        files.append(
            {
                "name": source.name,
                "sha256": file_hash(Path(path)),
                "query": asdict(source.file.query),
                **{key: whole[key] for key in ("model", "dictionaries")},
            }
        )
    shared = {key: whole[key] for key in ("corpus", "versions", "commit", "seconds")}
    return {"files": files, **shared, "config": records.shared_config(arguments)}


def _check_places(arguments: Arguments, files: Sequence[CircuitFile]) -> None:
    """Refuse a run in which it is not known where a model or dictionaries are: files do not tell of folders.

    Raises:
        ValueError: If it is not, or places are neither one for all files nor one for each.
    """
    asked = {"models": arguments.models, "saes": arguments.saes}
    for name, values in asked.items():
        if values is not None and len(values) not in (1, len(files)):
            raise ValueError(
                f"{name} must be one for all files, or one for each of the {len(files)}, got {len(values)}."
            )
    recorded = {"models": [file.model for file in files], "saes": [file.saes for file in files]}
    unknown = {
        name: [one for one in recorded[name] if one not in zoo.names()]
        for name, values in asked.items()
        if values is None
    }
    if missing := [name for name, names in unknown.items() if names]:
        used = dict.fromkeys(name for option in missing for name in unknown[option])
        raise ValueError(
            f"{' and '.join(f'--{name}' for name in missing)} must be given, one for all files or one for each: they"
            f" were made with {', '.join(used)}, not shipped"
            f" ({', '.join(zoo.names())}) or moved since."
        )


def _place(values: Sequence[str] | None, index: int, recorded: str) -> str:
    """Model or dictionaries of one of the files."""
    return recorded if values is None else values[index if len(values) > 1 else 0]
