"""Write the attribution graph of a prompt: which inputs made output features active, for Neuronpedia's viewer.

The file is in the format of circuit-tracer and Neuronpedia (schema version 1). Links into an output feature add up to
its pre-activation: products of two input features are split half and half, and what the dictionary misses, its bias and
the inputs too small to show are nodes of their own. Upload it at neuronpedia.org, or read it as JSON.

  bilinear-circuits graph --prompt "the dog was not bad ." --layer 4 --feature 143 --out graph
"""

import json
import re
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from simple_parsing import field

from bilinear_circuits.commands import common
from bilinear_circuits.commands.corpus import corpus_of, tokenized

if TYPE_CHECKING:
    from bilinear_circuits.activity import LayerActivity
    from bilinear_circuits.attribution import Attribution, PromptAttribution

    Names = Callable[[int, int, str], str]

FILE = "graph.json"
_SLUG = 60  # characters
_PAIRS_SHOWN = 3


@dataclass(kw_only=True)
class Arguments(common.CommonArguments):
    """Options of `graph`."""

    prompt: str
    """Text to explain, without [BOS]."""

    layer: int
    """Layer of the MLP."""

    feature: list[int] = field(action="extend", nargs="+")  # noqa: RUF009
    """Output features, one or more; also given several times."""

    out: str
    """Folder for graph.json."""

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
        for name in ("n_logits", "max_links", "max_pairs", "n_stories"):
            if (value := getattr(self, name)) < 1:
                raise ValueError(f"{name} must be at least 1, got {value}.")
        if self.slug is not None and not re.fullmatch("[a-z0-9]+(-[a-z0-9]+)*", self.slug):
            raise ValueError(f"slug must be made of a-z, 0-9 and single dashes, got {self.slug!r}.")


def run(arguments: Arguments) -> None:
    """Attribute, print, write."""
    started = time.perf_counter()
    common.check_out(arguments.out)
    layers = common.check_layers([arguments.layer], common.saes_of(arguments))
    corpus = corpus_of(arguments)
    features = [(arguments.layer, feature) for feature in dict.fromkeys(arguments.feature)]

    from bilinear_circuits.activity import collect_activity
    from bilinear_circuits.attribution import attribute_prompt
    from bilinear_circuits.prompts import prompt_tokens
    from bilinear_circuits.report.graph import GraphSource, graph_payload
    from bilinear_circuits.running import context_length

    stories = corpus.read(arguments.n_stories)
    model, interactions = common.load_interactions(arguments, layers)
    token_ids = prompt_tokens(arguments.prompt, model.tokenizer, context_length(model))
    graph = attribute_prompt(model, interactions, features, token_ids, arguments.n_logits)
    tokens = tokenized(corpus, stories, model.tokenizer, context_length(model))
    (activity,) = collect_activity(model, interactions, tokens, common.bar)
    name = _names(activity, model.tokenizer)
    seconds = time.perf_counter() - started
    resolved = replace(arguments, saes=common.saes_of(arguments), corpus=common.display_name(corpus.path))
    source = GraphSource(
        prompt=arguments.prompt,
        slug=arguments.slug or default_slug(features, arguments.prompt),
        scan=common.display_name(arguments.model),
        dictionaries=tuple(one.name for one in (interactions[0].sae_in, interactions[0].sae_out)),
        creator=arguments.creator,
        provenance=common.provenance(resolved, interactions, corpus, len(stories), seconds),
    )
    document = graph_payload(graph, source, model.tokenizer, name, arguments.max_links, arguments.max_pairs)
    text = json.dumps(document, ensure_ascii=False, allow_nan=False, separators=(",", ":")) + "\n"
    with common.written_whole(arguments.out) as folder:
        (folder / FILE).write_text(text, encoding="utf-8")
    print(describe(graph, model.tokenizer, name))
    print(
        f"\nwritten: {arguments.out}/{FILE}, {len(document['nodes'])} nodes, {len(document['links'])} links,"
        f" {len(text.encode()) / 1000:.0f} kB"
    )


def default_slug(features: Sequence[tuple[int, int]], prompt: str) -> str:
    """For instance "4-143-the-cake-was-not-good"; other letters than a-z and digits become dashes."""
    words = "-".join([*(f"{layer}-{feature}" for layer, feature in features), prompt.lower()])
    return re.sub("[^a-z0-9]+", "-", words)[:_SLUG].strip("-")


def describe(graph: "PromptAttribution", tokenizer: Any, name: "Names") -> str:
    """Where the features are active, and the pairs that make them so."""
    from bilinear_circuits.naming import token_text

    texts = [token_text(tokenizer, token_id) for token_id in graph.token_ids.tolist()]
    likeliest = zip(graph.logit_ids.tolist(), graph.probabilities.tolist(), strict=True)
    lines = [
        f"{len(texts) - 1} tokens: {' '.join(texts[1:])}",
        f"next: {', '.join(f'{token_text(tokenizer, token_id)} {p:.2f}' for token_id, p in likeliest)}",
    ]
    for layer, feature in graph.features:
        found = [one for one in graph.attributions if (one.layer, one.feature) == (layer, feature)]
        lines += [
            "",
            f"{layer}/{feature} ({name(layer, feature, 'out')}): active at {len(found)} of {len(texts) - 1} tokens",
        ]
        if found:
            lines.append("   token          activation  = inputs   + error    + bias  pairs explain  leading pairs")
        for one in found:
            lines += _row(one, texts[one.position], name)
    return "\n".join(lines)


def _row(one: "Attribution", token: str, name: "Names") -> list[str]:
    """One token: what its pre-activation is made of, and its leading pairs below each other."""
    columns = (one.pairs.first, one.pairs.second, one.pairs.contributions)
    leading = [
        f"{contribution:+.3f} {_pair(first, second, one.layer, name)}"
        for first, second, contribution in zip(*(column[:_PAIRS_SHOWN].tolist() for column in columns), strict=True)
    ]
    head = (
        f"  {one.position:>3} {token:<10} {one.activation:10.3f}  {one.shares.sum().item():8.3f}  {one.error:8.3f}"
        f"  {one.bias:7.3f}  {100 * one.ledger.completeness.item():11.0f} %  "
    )
    return [(head if index == 0 else " " * len(head)) + pair for index, pair in enumerate(leading or [""])]


def _pair(first: int, second: int, layer: int, name: "Names") -> str:
    return " x ".join(f"{one} {name(layer, one, 'in')}" for one in dict.fromkeys((first, second)))


def _names(activity: "LayerActivity", tokenizer: Any) -> "Names":
    """Names of features of either side by their tokens in the corpus, each made once."""
    from functools import cache

    from bilinear_circuits.naming import feature_label

    @cache
    def name(layer: int, feature: int, side: str) -> str:
        active = activity.inputs if side == "in" else activity.outputs
        return feature_label(active, activity.token_ids, feature, tokenizer)

    return name
