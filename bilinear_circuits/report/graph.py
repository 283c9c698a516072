"""Attribution graphs in the format of circuit-tracer and Neuronpedia, schema version 1.

Layers of nodes are layers of the model, and both dictionaries of a layer share its numbers (`report.graph_ids`). Links
into an output feature are the shares of `bilinear_circuits.prompts.attribution`. They add up to its pre-activation,
also where small ones are left out: those are summed into one node. Each link also says what the removal of its source
does. Pairs, which a graph has no place for, stand under the key "bilinear_circuits", which viewers ignore.
"""

from collections import defaultdict
from collections.abc import Callable
from typing import Any

from bilinear_circuits.data.token_texts import token_text
from bilinear_circuits.interactions.activity import Side
from bilinear_circuits.prompts.attribution import Attribution, PromptAttribution
from bilinear_circuits.report.graph_draft import FEATURE_TYPE as FEATURE_TYPE
from bilinear_circuits.report.graph_draft import GENERATOR as GENERATOR
from bilinear_circuits.report.graph_draft import GRAPH_VERSION as GRAPH_VERSION
from bilinear_circuits.report.graph_draft import NO_FEATURE, GraphDraft, GraphNode, graph_metadata
from bilinear_circuits.report.graph_draft import GraphSource as GraphSource
from bilinear_circuits.report.graph_ids import cantor_pair, shared_index
from bilinear_circuits.report.payload import plain
from bilinear_circuits.utilities.feature import Feature

MAX_LINKS, MAX_PAIRS = 2000, 2000
_ERROR, _BIAS, _REST, _REMAINDER = -1, -2, -3, -4  # numbers that no feature has
_PARTS = {
    _ERROR: "what the input dictionary misses",
    _BIAS: "decoder bias of the input dictionary and constant",
    _REST: "the rest: input features left out of this graph, summed",
    _REMAINDER: "what the gates of the model do more than the layer fitted to it",
}
_DESCRIPTION = (
    "Output features of bilinear MLPs. Both dictionaries of a layer share its numbers: output features keep theirs,"
    " those of input features follow. Links into an output feature add up to its pre-activation: each product of two"
    " input features, or of one with the bias or the error, is split half and half between the two (Shapley values);"
    " `removal` is the change where the source is taken out, all of its products with it. Links into a logit are the"
    " direct path alone: activation times decoder row through the unembedding, with the final norm's scale held fixed."
    " Not in the graph: attention, later layers, other output features, and what makes the input features active, hence"
    " no links from embeddings. Pairs of input features: key bilinear_circuits."
)
_NO_LOGITS = " Next tokens are left out: no feature of the graph is active at the last token, so nothing links to them."


def graph_payload(
    graph: PromptAttribution,
    source: GraphSource,
    tokenizer: Any,
    name: Callable[[int, int, Side], str],
    max_links: int = MAX_LINKS,
    max_pairs: int = MAX_PAIRS,
) -> dict[str, Any]:
    """An attribution graph as a JSON document; link weights keep all their digits, so that sums hold.

    Args:
        graph: The prompt's attribution.
        source: What the graph says of itself.
        tokenizer: Gives token ids their text.
        name: Name of a feature, from its layer, its number and "in" or "out"; asked once for each.
        max_links: Most links from input features, shared equally among the output features and tokens; the largest of
            each are kept, and the others summed.
        max_pairs: Most pairs listed, shared in the same way.

    Raises:
        ValueError: If one of the two limits is not positive.
    """
    for limit, value in (("max_links", max_links), ("max_pairs", max_pairs)):
        if value < 1:
            raise ValueError(f"{limit} must be at least 1, got {value}.")
    texts = [token_text(tokenizer, token_id) for token_id in graph.token_ids.tolist()]
    draft = _Draft(len(texts), name)
    for position, token_id in enumerate(graph.token_ids.tolist()):
        draft.add(GraphNode(f"E_{token_id}_{position}", "E", position, position, "embedding", texts[position]))
    for attribution in graph.attributions:
        draft.add_target(attribution, _share(graph, max_links))
    if has_logits(graph):
        _add_logits(draft, graph, tokenizer)
    draft.set_influence()
    targets = [_target_id(attribution) for attribution in graph.attributions]
    caps = {"max_n_logits": len(graph.logit_ids), "max_links": max_links, "max_pairs": max_pairs}
    return {
        "metadata": graph_metadata(source, texts, caps, _description(graph, source)),
        "qParams": {
            "pinnedIds": targets,
            "supernodes": [],
            "linkType": "both",
            "clickedId": targets[0],
            "sg_pos": "",
        },
        "nodes": list(draft.nodes.values()),
        "links": draft.links,
        "bilinear_circuits": {
            "schema_version": GRAPH_VERSION,
            "targets": [_target(attribution, _share(graph, max_pairs)) for attribution in graph.attributions],
            "pair_columns": ["first", "second", "weight", "contribution"],
            "provenance": plain(source.provenance or {}),
        },
    }


def _description(graph: PromptAttribution, source: GraphSource) -> str:
    """How the graph is to be read, and which of its layers are fits to others."""
    fits = (source.provenance or {}).get("approximations") or {}
    said = [
        f" Layer {layer} is no bilinear MLP: pairs are of a layer fitted to it, {fit}." for layer, fit in fits.items()
    ]
    return _DESCRIPTION + ("" if has_logits(graph) else _NO_LOGITS) + "".join(said)


def has_logits(graph: PromptAttribution) -> bool:
    """Find out if a feature is active at the last token, so that something links to the next tokens."""
    return any(attribution.direct is not None for attribution in graph.attributions)


def graph_features(graph: PromptAttribution, max_links: int = MAX_LINKS) -> list[tuple[int, int, Side]]:
    """Layer, number and side of every feature that has a node, each once."""
    found: dict[tuple[int, int, Side], None] = {}
    for attribution in graph.attributions:
        found[attribution.layer, attribution.feature, "out"] = None
        found |= dict.fromkeys(
            (attribution.layer, number, "in") for number in attribution.inputs[: _share(graph, max_links)].tolist()
        )
    return list(found)


def _share(graph: PromptAttribution, limit: int) -> int:
    """What of a limit falls to each output feature and token."""
    return max(1, limit // max(1, len(graph.attributions)))


class _Draft(GraphDraft):
    """Nodes and links of a graph of one layer in the making."""

    def __init__(self, n_tokens: int, name: Callable[[int, int, Side], str]) -> None:
        super().__init__(n_tokens)
        self._name = name

    def add_target(self, one: Attribution, n_links: int) -> None:
        """An output feature at one token, with everything that feeds it."""
        target = self._feature(one, one.feature, "out", one.activation)
        columns = (one.inputs, one.values, one.shares, one.removals)
        for feature, value, weight, removal in zip(*(column[:n_links].tolist() for column in columns), strict=True):
            self.link(self._feature(one, feature, "in", value), target, weight, removal=removal)
        parts: dict[int, tuple[float, float | None]] = {
            _ERROR: (one.error, one.error_removal),
            _BIAS: (one.bias, one.bias_removal),
        }
        if one.remainder:
            parts[_REMAINDER] = (one.remainder, None)
        if len(one.shares) > n_links:
            parts[_REST] = (one.shares[n_links:].sum().item(), one.joint_removal(one.inputs[n_links:]))
        for number, numbers in parts.items():
            node_id = _node_id(one.layer, number, one.position)
            self.add(GraphNode(node_id, str(one.layer), number, one.position, NO_FEATURE, _PARTS[number]))
            self.link(node_id, target, numbers[0], removal=numbers[1])

    def _feature(self, one: Attribution, feature: int, side: Side, activation: float) -> str:
        index = shared_index(feature, side, one.d_sae_out)
        node = GraphNode(
            node_id=_node_id(one.layer, index, one.position),
            layer=str(one.layer),
            feature=cantor_pair(one.layer, index),
            position=one.position,
            feature_type=FEATURE_TYPE,
            clerp=f"{side} {Feature(one.layer, feature)}: {self._name(one.layer, feature, side)}",
            activation=activation,
        )
        return self.add(node)

    def set_influence(self) -> None:
        """Viewers hide nodes above a threshold: the cumulated share of what feeds output features, largest first."""
        fed: dict[str, float] = defaultdict(float)
        for link in self.links:
            fed[link["target"]] += abs(link["weight"])
        weight: dict[str, float] = defaultdict(float)
        for link in self.links:
            if self.nodes[link["target"]]["feature_type"] != "logit" and fed[link["target"]]:
                weight[link["source"]] += abs(link["weight"]) / fed[link["target"]]
        self.share_out(weight)


def _node_id(layer: int, number: int, position: int) -> str:
    return f"{layer}_{number}_{position}"


def _target_id(one: Attribution) -> str:
    return _node_id(one.layer, shared_index(one.feature, "out", one.d_sae_out), one.position)


def _add_logits(draft: _Draft, graph: PromptAttribution, tokenizer: Any) -> None:
    """The most likely next tokens, and the direct effects on them of what is active at the last token."""
    layer, last = graph.n_layers + 1, len(graph.token_ids) - 1
    for index, (token_id, p) in enumerate(zip(graph.logit_ids.tolist(), graph.probabilities.tolist(), strict=True)):
        node_id = draft.add_logit(layer, token_id, last, f'"{token_text(tokenizer, token_id)}"', p, index == 0)
        for attribution in graph.attributions:
            if attribution.direct is not None:
                effect = attribution.direct[index].item()
                draft.link(_target_id(attribution), node_id, effect, removal=-effect)


def _target(one: Attribution, n_pairs: int) -> dict[str, Any]:
    """What the graph has no place for: the pairs before they are split, and the ledger."""
    pairs = one.pairs
    columns = (pairs.first, pairs.second, pairs.weights, pairs.contributions)
    return {
        "node_id": _target_id(one),
        "layer": one.layer,
        "feature": one.feature,
        "position": one.position,
        "activation": one.activation,
        "pre_activation": one.pre_activation,
        "completeness": plain(one.ledger.completeness.item()),
        "terms": {term: value.item() for term, value in one.ledger.terms.items()},
        "pairs": [plain(list(row)) for row in zip(*(column[:n_pairs].tolist() for column in columns), strict=True)],
        "n_pairs": len(pairs.contributions),
        "rest": pairs.contributions[n_pairs:].sum().item(),
    }
