"""The graph of a prompt through all layers in the format of circuit-tracer and Neuronpedia: nodes and their flow.

A link is the exact flow from one node to another: links into a node add up to its flow, and those into the target to
its value less the constant. What flows in from nodes left out is a node of its own at each layer and token. Heads and
MLPs are nodes of what no dictionary explains, "lorsa error" and "mlp reconstruction error": viewers take types with
"error" in them for no features. Pairs of scores stand under "qk_tracing_results", where Neuronpedia reads them.
"""

from collections.abc import Callable, Sequence
from typing import Any

import torch

from bilinear_circuits.paths.graph import PromptGraph
from bilinear_circuits.paths.links import links_between
from bilinear_circuits.paths.nodes import Node
from bilinear_circuits.paths.why import AttentionLedger
from bilinear_circuits.report.graph_draft import (
    FEATURE_TYPE,
    GRAPH_VERSION,
    NO_FEATURE,
    GraphDraft,
    GraphNode,
    GraphSource,
    graph_metadata,
)
from bilinear_circuits.report.graph_ids import cantor_pair
from bilinear_circuits.report.payload import plain

MAX_NODES = 300
ATTENTION = "lorsa error"
_N_CONTRIBUTORS = 10
# Numbers that no feature has; those of heads follow.
_NUMBERS = {"error": -1, "bias": -2, "rest": -3, "mlp": -4, "attention bias": -5, "constant": -6}
_FIRST_HEAD = 10
_REST = "the rest: nodes left out of this graph, and biases, summed"
_DESCRIPTION = (
    "One prompt through all layers, with attention patterns, scales of norms and gate factors held fixed. A link is the"
    " exact flow of the target from one node to another: links into a node add up to its flow. The flow is an account,"
    " no prediction of what removals do. Nodes left out are summed into one at each layer and token. Pairs of attention"
    " scores: qk_tracing_results of heads, as log-odds against the mean key."
)


def path_graph(
    graph: PromptGraph,
    source: GraphSource,
    token_text: Callable[[int], str],
    ledgers: Sequence[AttentionLedger] = (),
    max_nodes: int = MAX_NODES,
) -> dict[str, Any]:
    """Write the graph of a prompt as a JSON document.

    Cost: the parts of the residual stream at every place, and (nodes kept)^2 d_model.

    Args:
        graph: The graph.
        source: What it says of itself.
        token_text: Text of a token id.
        ledgers: Attention scores whose pairs are written.
        max_nodes: Nodes kept, the largest, besides the embeddings and the target.

    Raises:
        ValueError: If no node may be kept.
    """
    if max_nodes < 1:
        raise ValueError(f"max_nodes must be at least 1, got {max_nodes}.")
    draft = _PathDraft(graph, [token_text(token) for token in graph.frozen.tokens.tolist()])
    every = graph.nodes()
    kept = every.top(max_nodes)
    embeddings = [node for node in every.nodes if node.kind == "embedding"]
    chosen = list(dict.fromkeys([*embeddings, *kept.nodes]))
    for node in chosen:
        draft.put(node)
    target = draft.put_target(token_text)
    draft.connect(chosen, target)
    draft.share_out({draft.name(node): abs(flow) for node, flow in zip(kept.nodes, kept.value.tolist(), strict=True)})
    others = draft.trace(ledgers, graph.sources)
    document = _document(draft, source, target, {"max_nodes": max_nodes}, graph)
    document["bilinear_circuits"]["n_nodes"] = len(every.nodes)
    return {**document, "qk_only_nodes": others} if others else document


def _document(
    draft: "_PathDraft", source: GraphSource, target: str, caps: dict[str, int], graph: PromptGraph
) -> dict[str, Any]:
    """Nodes and links with all that a graph says of itself."""
    shown = {"supernodes": [], "linkType": "both", "sg_pos": ""}
    return {
        "metadata": graph_metadata(source, draft.texts, caps, _DESCRIPTION),
        "qParams": {"pinnedIds": [target], "clickedId": target, **shown},
        "nodes": list(draft.nodes.values()),
        "links": draft.links,
        "bilinear_circuits": {
            "schema_version": GRAPH_VERSION,
            "target": graph.target.name,
            "value": graph.total,
            "constant": graph.flow.constant,
            "provenance": plain(source.provenance or {}),
        },
    }


class _PathDraft(GraphDraft):
    """Nodes and links of the graph of a prompt."""

    def __init__(self, graph: PromptGraph, texts: list[str]) -> None:
        super().__init__(len(texts))
        self._graph, self.texts = graph, texts

    def name(self, node: Node) -> str:
        """The id of a node."""
        if node.kind == "embedding":
            return f"E_{int(self._graph.frozen.tokens[node.position])}_{node.position}"
        return f"{node.layer}_{self._number(node)}_{node.position}"

    def _number(self, node: Node) -> int:
        if node.kind == "feature":
            return node.feature or 0
        if node.kind == "head" and node.head is not None:
            source = 0 if node.source is None else node.source + 1
            return -(_FIRST_HEAD + node.head * (len(self.texts) + 1) + source)
        return _NUMBERS["attention bias" if node.kind == "bias" and node.head is not None else node.kind]

    def _node(self, node: Node) -> GraphNode:
        """What is said of a node."""
        position = node.position or 0
        if node.kind == "embedding":
            return GraphNode(self.name(node), "E", position, position, "embedding", self.texts[position])
        number = self._number(node)
        kind = ATTENTION if node.head is not None else FEATURE_TYPE if node.kind == "feature" else NO_FEATURE
        feature = cantor_pair(node.layer or 0, number) if node.kind == "feature" else number
        return GraphNode(self.name(node), str(node.layer), feature, position, kind, self._text(node))

    def _text(self, node: Node) -> str:
        """The name of a node, with its tokens."""
        at = self.texts[node.position or 0]
        return f"{node}: {at}" if node.source is None else f"{node}: {self.texts[node.source]} to {at}"

    def put(self, node: Node) -> None:
        """Add a node with its flow."""
        name = self.add(self._node(node))
        self.nodes[name]["flow"] = self._graph.value(node)

    def put_target(self, token_text: Callable[[int], str]) -> str:
        """Add the target; its id."""
        frozen, target = self._graph.frozen, self._graph.target
        if target.feature is not None:
            layer, number = target.feature
            name = f"{layer}_{number}_{target.position}"
            clerp = f"target: feature {target.feature}"
            place = (cantor_pair(layer, number), target.position)
            return self.add(GraphNode(name, str(layer), *place, FEATURE_TYPE, clerp))
        token, layer = next(iter(target.logits)), frozen.n_layers + 1
        probability = frozen.logits[target.position].softmax(-1)[token].item()
        said = [f'{"-" if weight < 0 else "+"} "{token_text(one)}"' for one, weight in target.logits.items()][:8]
        return self.add_logit(layer, token, target.position, " ".join(said).removeprefix("+ "), probability, True)

    def connect(self, nodes: Sequence[Node], target: str) -> None:
        """Link nodes that are there, and the sum of all others to each."""
        graph = self._graph
        readers = [one for one in nodes if one.kind not in ("embedding", "bias")]
        sums: dict[Node | None, float] = dict.fromkeys([*readers, None], 0.0)
        sizes = dict(sums)
        for link in links_between(graph, nodes):
            self.link(self.name(link.source), target if link.target is None else self.name(link.target), link.flow)
            sums[link.target] += link.flow
            sizes[link.target] += abs(link.flow)
        noise = 64 * torch.finfo(graph.frozen.embedded.dtype).eps
        for node, linked in sums.items():
            value = graph.total - graph.flow.constant if node is None else graph.value(node)
            if abs(value - linked) > noise * max(sizes[node], abs(value)):
                self._add_rest(node, target, value - linked)

    def _add_rest(self, node: Node | None, target: str, flow: float) -> None:
        """Link to a node what flows into it from nodes that are left out."""
        place = Node("mlp", self._graph.frozen.n_layers, self._graph.target.position) if node is None else node
        number = _NUMBERS["rest"]
        node_id = f"{place.layer}_{number}_{place.position}"
        name = self.add(GraphNode(node_id, str(place.layer), number, place.position or 0, NO_FEATURE, _REST))
        self.link(name, target if node is None else self.name(node), flow)

    def trace(self, ledgers: Sequence[AttentionLedger], sources: bool) -> dict[str, dict[str, Any]]:
        """Add the pairs of attention scores to their heads; the nodes that they name and that are not in the graph."""
        others: dict[str, dict[str, Any]] = {}
        for ledger in ledgers:
            head = Node("head", ledger.layer, ledger.query_pos, ledger.head, ledger.key_pos if sources else None)
            if (name := self.name(head)) not in self.nodes:
                continue
            self.nodes[name]["qk_tracing_results"] = {
                "pair_wise_contributors": [
                    [self._named(q, others), self._named(k, others), value]
                    for q, k, value in ledger.top(_N_CONTRIBUTORS)
                ],
                "top_q_marginal_contributors": self._largest(ledger.query_parts, ledger.by_query(), others),
                "top_k_marginal_contributors": self._largest(ledger.key_parts, ledger.by_key(), others),
            }
        return others

    def _largest(
        self, parts: Sequence[Node], values: torch.Tensor, others: dict[str, dict[str, Any]]
    ) -> list[list[Any]]:
        best = values.abs().argsort(descending=True, stable=True)[:_N_CONTRIBUTORS].tolist()
        return [[self._named(parts[i], others), values[i].item()] for i in best]

    def _named(self, node: Node, others: dict[str, dict[str, Any]]) -> str:
        """The id of a node, which is described if it is not in the graph."""
        if (name := self.name(node)) not in self.nodes:
            others.setdefault(name, self.described(self._node(node)))
        return name
