"""Write the attribution graph of a prompt: which inputs made output features active, for graph viewers.

The folder opens in circuit-tracer's server as it is: SLUG.json, its entry in graph-metadata.json beside those that are
there, and details of its features. neuronpedia/SLUG.json is the same graph for an upload at neuronpedia.org. Links into
an output feature add up to its pre-activation: products of two input features are split half and half, and what the
dictionary misses, its bias and the inputs too small to show are nodes of their own. Each link also says what the
removal of its source does.

  bilinear-circuits graph --prompt "she could not" --layer 4 --feature 143 --out graph
"""

import hashlib
import json
import re
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from simple_parsing import field

from bilinear_circuits.command_line import common, records
from bilinear_circuits.command_line.corpus import corpus_of, tokenized
from bilinear_circuits.command_line.values import check_least, short
from bilinear_circuits.commands.graph_folder import FEATURES, LIST, NEURONPEDIA, GraphFolder
from bilinear_circuits.utilities.feature import Feature

if TYPE_CHECKING:
    from torch import nn

    from bilinear_circuits.interactions.activity import LayerActivity
    from bilinear_circuits.interactions.naming import FeatureNames
    from bilinear_circuits.prompts.attribution import Attribution, PromptAttribution

_SLUG = 60  # characters
_LONGEST_SLUG = 200  # it is the name of a file
_PAIRS_SHOWN = 3
_DIGEST = 8  # characters of a hash that tell folders apart


@dataclass(kw_only=True)
class Arguments(common.GateArguments, common.LabelArguments):
    """Options of `graph`."""

    prompt: str
    """Text to explain, without [BOS]."""

    layer: int
    """Layer of the MLP."""

    feature: list[int] = field(action="extend", nargs="+", metavar="int")  # noqa: RUF009
    """Output features, one or more; also given several times."""

    out: str
    """Folder of graphs; this one is added to those that are there."""

    slug: str | None = None
    """Short name of the graph, of a-z, 0-9 and dashes; by default made of the features and the prompt."""

    creator: str | None = None
    """Your name, if the graph should hold it."""

    n_logits: int = 8
    """Next tokens in the graph, the likeliest."""

    max_links: int = 2000
    """Most links from input features; the smaller ones are summed into one node for each token."""

    max_pairs: int = 2000
    """Most pairs of input features listed beside the graph."""

    n_stories: int = 200
    """Stories read from the corpus, for the names of features."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.prompt.strip():
            raise ValueError(f"prompt must hold at least one token, got {self.prompt!r}. Write a few words.")
        check_least(self, n_logits=1, max_links=1, max_pairs=1, n_stories=1)
        if self.slug is not None and not re.fullmatch("[a-z0-9]+(-[a-z0-9]+)*", self.slug):
            raise ValueError(f"slug must be made of a-z, 0-9 and single dashes, got {short(self.slug)}.")
        if self.slug is not None and len(self.slug) > _LONGEST_SLUG:
            raise ValueError(f"slug must be at most {_LONGEST_SLUG} characters long, got {len(self.slug)}.")
        if self.slug == Path(LIST).stem:
            raise ValueError(f"slug must not be {self.slug}: {LIST} is the list of graphs.")


def results_folder(arguments: Arguments) -> None:
    """Name no folder to be held during the run: many graphs are added to one, which is held while it is written."""


def run(arguments: Arguments) -> None:
    """Attribute, print, write."""
    started = time.perf_counter()
    common.check_out(arguments.out)
    layers = common.check_layers([arguments.layer], common.saes_of(arguments))
    corpus = corpus_of(arguments)
    features = [Feature(arguments.layer, feature) for feature in dict.fromkeys(arguments.feature)]

    from bilinear_circuits.interactions.activity import collect_activity
    from bilinear_circuits.interactions.naming import FeatureNames
    from bilinear_circuits.models.running import context_length
    from bilinear_circuits.prompts.accounts import prompt_tokens
    from bilinear_circuits.prompts.attribution import attribute_prompt
    from bilinear_circuits.report.graph import GENERATOR

    slug = arguments.slug or default_slug(features, arguments.prompt)
    folder = GraphFolder(arguments.out, slug, GENERATOR)
    folder.check(arguments.prompt)
    stories = corpus.read(arguments.n_stories)
    model, interactions = common.load_interactions(arguments, layers, corpus=corpus)
    token_ids = prompt_tokens(arguments.prompt, model.tokenizer, context_length(model))
    graph = attribute_prompt(model, interactions, features, token_ids, arguments.n_logits)
    tokens = tokenized(corpus, stories, model.tokenizer, context_length(model))
    (activity,) = collect_activity(model, interactions, tokens, common.bar)
    seconds = time.perf_counter() - started
    resolved = replace(arguments, saes=common.saes_of(arguments), corpus=records.display_name(corpus.path))
    provenance = records.provenance(resolved, interactions, corpus, len(stories), seconds)
    name = FeatureNames([activity], model.tokenizer)
    document, others = _documents(arguments, slug, graph, activity, name, model, provenance)
    folder.write(arguments.prompt, document, others)
    print(describe(graph, model.tokenizer, name))
    print(
        f"\nwritten: {arguments.out}/{slug}.json, {len(document['nodes'])} nodes, {len(document['links'])} links,"
        f" details of {len(others) - 1} features; for an upload: {arguments.out}/{NEURONPEDIA}/{slug}.json"
    )


def _documents(
    arguments: Arguments,
    slug: str,
    graph: "PromptAttribution",
    activity: "LayerActivity",
    name: "FeatureNames",
    model: "nn.Module",
    provenance: dict[str, Any],
) -> tuple[dict[str, Any], dict[str, dict[str, Any]]]:
    """The graph, and what belongs to it by its path in the folder: details of its features, and the upload."""
    from bilinear_circuits.models.running import unembedding
    from bilinear_circuits.report import graph_features
    from bilinear_circuits.report.graph import GraphSource, graph_payload
    from bilinear_circuits.report.graph import graph_features as features_of

    model_id, interactions = records.display_name(arguments.model), activity.interactions
    details = details_name(model_id, provenance)
    source = GraphSource(
        prompt=arguments.prompt,
        slug=slug,
        scan=graph_features.details_scan(details),
        dictionaries=(interactions.sae_in.name, interactions.sae_out.name),
        creator=arguments.creator,
        provenance=provenance,
    )
    document = graph_payload(graph, source, model.tokenizer, name, arguments.max_links, arguments.max_pairs)
    maker = graph_features.DetailMaker(activity, unembedding(model), model.tokenizer)
    shown = (maker.detail(feature, side) for _, feature, side in features_of(graph, arguments.max_links))
    others = {f"{FEATURES}/{details}/{number}.json": detail for number, detail in shown}
    source_set = records.display_name(common.saes_of(arguments))
    upload = graph_features.neuronpedia_document(document, model_id, source_set)
    return document, {**others, f"{NEURONPEDIA}/{slug}.json": upload}


def details_name(model_id: str, provenance: Mapping[str, Any]) -> str:
    """Name a folder of feature details, another for every model, dictionaries and stories; as "ts-17m-1f9c30ab"."""
    decisive = [provenance["model"]["sha256"], provenance["dictionaries"], provenance["corpus"]]
    digest = hashlib.sha256(json.dumps(decisive, sort_keys=True).encode()).hexdigest()
    return f"{re.sub('[^A-Za-z0-9._-]+', '-', model_id)}-{digest[:_DIGEST]}"


def default_slug(features: Sequence[tuple[int, int]], prompt: str) -> str:
    """For instance "4-143-the-cake-was-not-good"; other letters than a-z and digits become dashes.

    One that is cut ends in a hash of the whole, so that it stays another than that of other features or prompts.
    """
    words = "-".join([*(f"{layer}-{feature}" for layer, feature in features), prompt.lower()])
    slug = re.sub("[^a-z0-9]+", "-", words).strip("-")
    if len(slug) <= _SLUG:
        return slug
    digest = hashlib.sha256(words.encode()).hexdigest()[:_DIGEST]
    return f"{slug[: _SLUG - _DIGEST - 1].strip('-')}-{digest}"


def describe(graph: "PromptAttribution", tokenizer: Any, name: "FeatureNames") -> str:
    """Write as text where the features are active, and the pairs that make them so."""
    from bilinear_circuits.data.token_texts import token_text
    from bilinear_circuits.report.graph import has_logits

    texts = [token_text(tokenizer, token_id) for token_id in graph.token_ids.tolist()]
    likeliest = zip(graph.logit_ids.tolist(), graph.probabilities.tolist(), strict=True)
    lines = [
        f"{len(texts) - 1} tokens: {' '.join(texts[1:])}",
        f"next: {', '.join(f'{token_text(tokenizer, token_id)} {p:.2g}' for token_id, p in likeliest)}",
    ]
    for feature in graph.features:
        found = [attribution for attribution in graph.attributions if attribution.key == feature]
        where = f"active at {len(found)} of {len(texts) - 1} tokens"
        lines += ["", f"{Feature(*feature)} ({name(*feature, 'out')}): {where}"]
        if found:
            gates = " + gates   " if any(one.remainder for one in found) else ""
            head = f"   token          activation  = inputs   + error    + bias {gates} pairs explain  leading pairs"
            lines.append(head)
        for one in found:
            lines += _row(one, texts[one.position], name, bool(gates))
    if not has_logits(graph):
        lines += [
            "",
            f"none is active at the last token: the {len(graph.logit_ids)} next tokens have no link and are left out",
        ]
    return "\n".join(lines)


def _row(one: "Attribution", token: str, name: "FeatureNames", gates: bool) -> list[str]:
    """One token: what its pre-activation is made of, and its leading pairs below each other."""
    columns = (one.pairs.first, one.pairs.second, one.pairs.contributions)
    leading = [
        f"{contribution:+.3f} {_pair(first, second, one.layer, name)}"
        for first, second, contribution in zip(*(column[:_PAIRS_SHOWN].tolist() for column in columns), strict=True)
    ]
    remainder = f"  {one.remainder:7.3f}" if gates else ""
    head = (
        f"  {one.position:>3} {token:<10} {one.activation:10.3f}  {one.shares.sum().item():8.3f}  {one.error:8.3f}"
        f"  {one.bias:7.3f}{remainder}  {100 * one.ledger.completeness.item():11.0f} %  "
    )
    return [(head if index == 0 else " " * len(head)) + pair for index, pair in enumerate(leading or [""])]


def _pair(first: int, second: int, layer: int, name: "FeatureNames") -> str:
    return " x ".join(f"{feature} {name(layer, feature, 'in')}" for feature in dict.fromkeys((first, second)))
