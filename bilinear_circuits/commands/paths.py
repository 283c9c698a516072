"""Account for a logit of one prompt through attention and every layer: tokens, heads, MLPs and pairs of them.

Works for bilinear and for ordinary gated Llama-type models; dictionaries are not needed. The flow is an account, never
a prediction: beside it stands what removals of heads and MLPs are predicted to do, and what they do in the model.
Writes report.html, paths.json, result.json and result.safetensors, tables of nodes and pairs, and a folder of graphs
that circuit-tracer's server opens.

  bilinear-circuits paths --prompt "tom saw a dog . lily" --out out/paths
"""

import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bilinear_circuits import zoo
from bilinear_circuits.command_line import common, images, records, tables
from bilinear_circuits.command_line.outputs import RESULT_FILES, Outputs
from bilinear_circuits.command_line.values import check_least, check_most
from bilinear_circuits.commands.graph import default_slug
from bilinear_circuits.commands.graph_folder import NEURONPEDIA, GraphFolder
from bilinear_circuits.utilities.feature import Feature

if TYPE_CHECKING:
    from bilinear_circuits.dictionaries.dictionary import Dictionary
    from bilinear_circuits.paths.account import PathAccount
    from bilinear_circuits.paths.graph import PromptGraph
    from bilinear_circuits.paths.run import FrozenRun

_TABLES = ("nodes.csv", "nodes.parquet", "pairs.csv", "pairs.parquet")
OUTPUTS = Outputs("paths.json", "prompt graph", ("report.html", *RESULT_FILES, *_TABLES))
GRAPHS = "graphs"
_MOST_TOKENS = 64  # up to which messages of a head from different tokens are different nodes


@dataclass(kw_only=True)
class Arguments(common.ModelArguments):
    """Options of `paths`."""

    prompt: str
    """Text to explain, without [BOS]."""

    target: str | None = None
    """Token whose logit is explained, the likelier of its spellings with and without a space in front; by default the
    likeliest next token."""

    against: str | None = None
    """Token whose logit is taken away from that of --target."""

    feature: str | None = None
    """Feature of a dictionary of an MLP output, such as 4/143, in place of a logit."""

    position: int | None = None
    """Token at which it is read, [BOS] being 0; by default the last."""

    layers: list[int] | None = None
    """Layers whose MLPs are divided into the features of their dictionary; by default none, with --saes all that have
    dictionaries."""

    n_pairs: int = 20
    """Pairs listed of each MLP that is looked into."""

    n_mlps: int = 6
    """MLPs at a token that are looked into, those of largest flow."""

    n_removed: int = 200
    """Heads and MLPs removed, each in two runs of its own, those of largest flow."""

    device: str = "cpu"
    """Where to compute: cpu, cuda, cuda:1."""

    out: str | None = None
    """Folder for all that is written; nothing by default. Graphs of other prompts in its folder of graphs are kept."""

    images: list[str] | None = None
    """Write the figures to OUT/images, too: png, svg or both."""

    def __post_init__(self) -> None:
        check_least(self, n_pairs=1, n_mlps=1, n_removed=1)
        check_most(self, n_pairs=10_000, n_mlps=1_000, n_removed=100_000)
        check_least(self, position=0)
        if self.against is not None and self.target is None:
            raise ValueError("target must be given with against: the difference is of two tokens.")
        if self.feature is not None and self.target is not None:
            raise ValueError("target must not be given with feature: one of the two is explained.")


def run(arguments: Arguments) -> None:
    """Account, print, write."""
    started = time.perf_counter()
    common.check_out(arguments.out)
    images.check(arguments.images, arguments.out)
    feature = None if arguments.feature is None else Feature.parse(arguments.feature)
    layers = _layers(arguments, feature)
    asked = arguments.feature or " ".join(one for one in (arguments.target, arguments.against) if one)
    slug = default_slug([], f"paths {asked} {arguments.prompt}")
    folder = None if arguments.out is None else GraphFolder(Path(arguments.out) / GRAPHS, slug, "bilinear-circuits")
    if folder is not None:
        folder.check(arguments.prompt)
    zoo.model_path(arguments.model)
    common.check_device(arguments.device)

    from bilinear_circuits.commands.path_tables import describe
    from bilinear_circuits.data.token_texts import TokenTexts
    from bilinear_circuits.models.running import context_length
    from bilinear_circuits.paths.account import AccountSettings, account_for
    from bilinear_circuits.paths.run import FrozenRun
    from bilinear_circuits.prompts.accounts import prompt_tokens

    common.note(f"loading {arguments.model}")
    dictionaries = {layer: zoo.load_dictionaries(layer, _saes(arguments), arguments.device)[1] for layer in layers}
    model, tokenizer = common.quietly_load(zoo.load_plain_model, arguments.model, arguments.device)
    tokens = prompt_tokens(arguments.prompt, tokenizer, context_length(model))
    if arguments.position is not None and arguments.position >= len(tokens):
        raise ValueError(f"position must be below {len(tokens)}, the prompt's tokens, got {arguments.position}.")
    frozen = FrozenRun(model, tokens.to(arguments.device), dictionaries=dictionaries)
    graph = _graph(arguments, frozen, feature, tokenizer)
    settings = AccountSettings(n_matrices=arguments.n_mlps, n_pairs=arguments.n_pairs, n_removed=arguments.n_removed)
    account, texts = account_for(frozen, graph, settings), TokenTexts(tokenizer)
    print(describe(account, texts))
    if folder is not None:
        provenance = _provenance(arguments, list(dictionaries.values()), time.perf_counter() - started)
        _write(arguments, account, texts, provenance)
        document = _document(arguments, slug, graph, account, texts, provenance)
        folder.write(arguments.prompt, document, {f"{NEURONPEDIA}/{slug}.json": _upload(arguments, document)})
        _say_written(arguments, account, folder, document)
    print(f"{time.perf_counter() - started:.0f} s")


def _layers(arguments: Arguments, feature: Feature | None) -> list[int]:
    """Layers whose dictionaries are read."""
    asked = [*(arguments.layers or []), *([feature.layer] if feature is not None else [])]
    if not asked and arguments.saes is None:
        return []
    return common.check_layers(asked or None, _saes(arguments))


def _saes(arguments: Arguments) -> str:
    return common.saes_of(arguments, reads_corpus=False)


def _graph(arguments: Arguments, frozen: "FrozenRun", feature: Feature | None, tokenizer: Any) -> "PromptGraph":
    """The graph of what is asked for."""
    position = len(frozen.tokens) - 1 if arguments.position is None else arguments.position
    sources = len(frozen.tokens) <= _MOST_TOKENS
    if not sources:
        common.note(f"more than {_MOST_TOKENS} tokens: one node for all messages of a head to a token")
    if feature is not None:
        return frozen.graph(feature, position, sources)
    logits = frozen.logits[position]
    names = {"target": arguments.target, "against": arguments.against}
    chosen = [token_of(name, text, tokenizer, logits) for name, text in names.items() if text is not None]
    if len(set(chosen)) < len(chosen):
        raise ValueError(
            f"against must be another token than target, got {arguments.against!r}, which the tokenizer reads as"
            f" {arguments.target!r} too."
        )
    asked = (chosen[0], chosen[1]) if len(chosen) == 2 else chosen[0] if chosen else int(logits.argmax())
    return frozen.graph(asked, position, sources)


def token_of(name: str, text: str, tokenizer: Any, logits: Any) -> int:
    """Find the token that a text is: of its spellings with and without a space in front, the likelier.

    Raises:
        ValueError: If it is no single token.
    """
    pieces = [tokenizer.encode(one, add_special_tokens=False) for one in (text, f" {text}")]
    found = {piece[0] for piece in pieces if len(piece) == 1}
    known = tokenizer.convert_tokens_to_ids(text)  # as the vocabulary spells it, such as <0x0A>
    found |= {known} if isinstance(known, int) else set()
    found -= {tokenizer.unk_token_id}
    if not found:
        what = f"{len(pieces[0])} tokens" if len(pieces[0]) > 1 else "unknown to it"
        raise ValueError(
            f"{name} must be a single token of the model's vocabulary, got {text!r}, which is {what}."
            " Name its first part."
        )
    return max(found, key=lambda token: float(logits[token]))


def _provenance(arguments: Arguments, dictionaries: "Sequence[Dictionary]", seconds: float) -> dict[str, Any]:
    saes = _saes(arguments) if dictionaries else None
    folders = [] if saes is None else [zoo.dictionary_folder(saes, dictionary.name) for dictionary in dictionaries]
    sources = [records.dictionary_source(folder) for folder in folders if folder is not None]
    return records.prompt_provenance(replace(arguments, saes=saes), sources, seconds)


def _write(arguments: Arguments, account: "PathAccount", texts: Any, provenance: dict[str, Any]) -> None:
    """Numbers, tables, then the page, which must not take them along if it fails, and images."""
    from bilinear_circuits.commands.path_tables import node_columns, pair_columns, payload
    from bilinear_circuits.report.figures.paths import account_figures
    from bilinear_circuits.report.pages import paths_page
    from bilinear_circuits.report.payload import plain
    from bilinear_circuits.utilities.saving import save_result

    assert arguments.out is not None
    with common.written_whole(arguments.out, first=OUTPUTS.record) as folder:
        save_result(account, folder, provenance)
        head = {"schema_version": 1, "kind": OUTPUTS.kind, "provenance": provenance, "prompt": arguments.prompt}
        document = plain({**head, **payload(account, texts)})
        (folder / OUTPUTS.record).write_text(common.to_json(document), encoding="utf-8")
        tables.write(folder, "nodes", node_columns(account, texts))
        tables.write(folder, "pairs", pair_columns(account, texts))
    common.write_page(arguments.out, lambda: paths_page(account, texts, provenance))
    images.written(account_figures(account), arguments.out, arguments.images)


def _document(
    arguments: Arguments, slug: str, graph: "PromptGraph", account: "PathAccount", texts: Any, provenance: Any
) -> dict[str, Any]:
    """The graph for viewers."""
    from bilinear_circuits.report.graph_draft import GraphSource
    from bilinear_circuits.report.path_graph import path_graph

    names = tuple(dictionary.name for dictionary in graph.frozen.dictionaries.values())
    # A scan that begins so is looked for in the folder alone, and nothing is there: no details of features are written.
    source = GraphSource(arguments.prompt, slug, "./data/features/none", names, provenance=provenance)
    return path_graph(graph, source, texts, account.ledgers)


def _upload(arguments: Arguments, document: dict[str, Any]) -> dict[str, Any]:
    from bilinear_circuits.report.graph_features import neuronpedia_document

    saes = "none" if arguments.saes is None else records.display_name(arguments.saes)
    return neuronpedia_document(document, records.display_name(arguments.model), saes)


def _say_written(arguments: Arguments, account: "PathAccount", folder: GraphFolder, document: dict[str, Any]) -> None:
    print(f"\nwritten:\n{OUTPUTS.listed(str(arguments.out))}")
    size = f"{len(document['nodes'])} nodes, {len(document['links'])} links"
    print(f"  {folder.folder / folder.slug}.json, {size}; for an upload: {folder.folder / NEURONPEDIA}")
