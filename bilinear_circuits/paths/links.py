"""Flows between chosen nodes of a graph, all at once: what `inflows` gives one node at a time, without the others."""

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor

from bilinear_circuits.paths.edges import OF_MLP, mlp_reading
from bilinear_circuits.paths.graph import PromptGraph
from bilinear_circuits.paths.nodes import Node, residual_parts


class Link(NamedTuple):
    """The flow from one node into another.

    Attributes:
        source: The node that wrote it.
        target: The node that reads it; None for the target of the graph.
        flow: The flow.
    """

    source: Node
    target: Node | None
    flow: float


class _Place:
    """The chosen nodes among the parts of the residual stream at one place of the model."""

    def __init__(self, graph: PromptGraph, nodes: Sequence[Node], layer: int, mid: bool) -> None:
        parts = residual_parts(graph.frozen, layer, mid, graph.sources)
        row_of = {node: row for row, node in enumerate(parts.nodes)}
        found = [(row_of.get(node, row_of.get(node._replace(position=None))), node) for node in nodes]
        self.nodes = [node for row, node in found if row is not None]
        device = graph.frozen.tokens.device
        rows = torch.tensor([row for row, _ in found if row is not None], dtype=torch.long, device=device)
        self.position = torch.tensor([node.position for node in self.nodes], dtype=torch.long, device=device)
        self._written = parts.rows[rows] * parts.weight[self.position, rows].unsqueeze(1)

    def read(
        self, reads: Float[Tensor, " d_model"], factor: Float[Tensor, " pos"], target: Node | None
    ) -> Iterator[Link]:
        """Links into a reader that reads the tokens with a factor each, zero for those it does not read."""
        here: Int[Tensor, " chosen"] = factor[self.position].nonzero().flatten()
        values = self._written[here] @ reads * factor[self.position[here]]
        for at, value in zip(here.tolist(), values.tolist(), strict=True):
            if value:
                yield Link(self.nodes[at], target, value)


@torch.no_grad()
def links_between(graph: PromptGraph, nodes: Sequence[Node]) -> list[Link]:
    """Find the flows from chosen nodes into chosen nodes, and into the target of the graph.

    What a node is missing to its own flow comes from nodes that were not chosen, and from biases.
    Cost: the parts of the residual stream once for each place, and (chosen) d_model for each node.

    Args:
        graph: The graph.
        nodes: Nodes at a token.
    """
    found: list[Link] = []
    frozen, flow, target = graph.frozen, graph.flow, graph.target
    ones = torch.eye(frozen.n_pos).to(frozen.embedded)
    for layer in range(frozen.n_layers):
        readers = [node for node in nodes if node.layer == layer]
        if heads := [node for node in readers if node.kind == "head"]:
            place = _Place(graph, nodes, layer, False)
            for node in heads:
                found += place.read(*_head_reading(graph, node), node)
        if mlps := [node for node in readers if node.kind in OF_MLP]:
            place = _Place(graph, nodes, layer, True)
            for node in mlps:
                found += place.read(mlp_reading(frozen, flow, node)[0], ones[node.position], node)
    if target.feature is None:
        place = _Place(graph, nodes, frozen.n_layers, False)
        return [*found, *place.read(flow.c_pre[-1, target.position], ones[target.position], None)]
    mlp = Node("mlp", target.feature.layer, target.position)
    return [*found, Link(mlp, None, graph.value(mlp))] if mlp in nodes else found


def _head_reading(graph: PromptGraph, node: Node) -> tuple[Float[Tensor, " d_model"], Float[Tensor, " pos"]]:
    """With which a head reads the residual stream, and its factor at each token."""
    frozen, layer, head = graph.frozen, node.layer, node.head
    assert layer is not None
    assert head is not None
    one = frozen.weights.layers[layer]
    factor = frozen.patterns[layer, head, node.position] / frozen.s1[layer].squeeze(1)
    if node.source is not None:
        factor = factor * (torch.arange(frozen.n_pos, device=factor.device) == node.source)
    return one.W_V[head // one.group] @ graph.flow.c_heads[layer, head, node.position], factor
