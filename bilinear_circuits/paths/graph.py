"""The graph of a prompt: nodes, the flow of a target between them, and the pairs that MLPs consist of.

1. `flow` traces the target back, in one pass; every node gets its flow.
2. Flows into a node, and out of it, are products of what others wrote with cotangents: made when asked for.
3. The pairs of an MLP are made when asked for, and by `mass` all of them.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from bilinear_circuits.paths import edges
from bilinear_circuits.paths.checks import check_node
from bilinear_circuits.paths.edge_sets import KeptEdges, largest_edges
from bilinear_circuits.paths.edges import Flows
from bilinear_circuits.paths.flow import Flow, flow
from bilinear_circuits.paths.frozen import Frozen
from bilinear_circuits.paths.nodes import Node
from bilinear_circuits.paths.pairs import NodePairs, PartProducts
from bilinear_circuits.paths.prune import KeptPairs, PrunedRun, largest_pairs, run_pruned
from bilinear_circuits.paths.target import Asked, Target, target_of
from bilinear_circuits.utilities.display import Brief
from bilinear_circuits.utilities.kinds import check_whole


@dataclass(frozen=True, eq=False, repr=False)
class PromptGraph(Brief):
    """Where the value of a target comes from, exactly. An account; effects of removals are `FrozenRun.effect`.

    Attributes:
        frozen: The run.
        target: What is explained.
        flow: Cotangents, and the flow of every component.
        sources: Whether a head's messages from different tokens are different parts.
    """

    frozen: Frozen
    target: Target
    flow: Flow
    sources: bool

    @property
    def total(self) -> float:
        """Value of the target in this run."""
        return self.flow.total

    def cut(self, layer: int, mid: bool = False) -> float:
        """Sum the flows across the cut before a block, or between its attention and its MLP; the total, everywhere.

        Raises:
            ValueError: If there is no such cut in front of the target.
        """
        n_cuts = len(self.flow.cuts)
        layer = check_whole("layer", layer, 0, (n_cuts - 1) // 2)
        if 2 * layer + mid >= n_cuts:
            raise ValueError(f"mid must be False for the last cut in front of the target, that of layer {layer}.")
        return self.flow.cuts[2 * layer + mid].item()

    def nodes(self, k: int | None = None) -> Flows:
        """List the nodes with a flow: all of them in their order, or the k largest.

        A node's flow goes on into other nodes, so these flows do not add up to the target; those of a cut do.
        """
        names: list[Node] = []
        values = []
        for some, flows in self._nodes():
            here = flows.nonzero().flatten()
            values.append(flows[here])
            names += [some[i] for i in here.tolist()]
        found = Flows(tuple(names), torch.cat(values))
        return found if k is None else found.top(k)

    def _nodes(self) -> Iterator[tuple[list[Node], Tensor]]:
        """Every node and its flow, by component."""
        places, heads = range(self.frozen.n_pos), range(self.frozen.n_heads)
        yield [Node("embedding", position=t) for t in places], self.flow.embeddings
        for layer in range(self.frozen.n_layers):
            flows = self.flow.heads[layer]
            if self.sources:
                yield [Node("head", layer, q, h, k) for h in heads for q in places for k in places], flows.flatten()
            else:
                yield [Node("head", layer, q, h) for h in heads for q in places], flows.sum(-1).flatten()
            yield [Node("bias", layer, t, -1) for t in places], self.flow.biases[layer]
            if layer in self.frozen.dictionaries and self.flow.c_pre[layer + 1].any():
                yield self._dictionary_nodes(layer)
            else:
                yield [Node("mlp", layer, t) for t in places], self.flow.mlps[layer]

    def _dictionary_nodes(self, layer: int) -> tuple[list[Node], Tensor]:
        """Active features, decoder bias and error at every token."""
        found = [Node("feature", layer, t, feature=a) for t, a in self.frozen.active[layer].nonzero().tolist()]
        found += [Node(kind, layer, t) for kind in ("bias", "error") for t in range(self.frozen.n_pos)]
        return found, self.flow.embeddings.new_tensor([self.value(node) for node in found])

    def value(self, node: Node) -> float:
        """Flow of one node.

        Raises:
            ValueError: If there is no such node; TypeError if it is none. So do the methods below.
        """
        return edges.node_flow(self.frozen, self.flow, self._checked(node))

    def inflows(self, node: Node) -> Flows:
        """Flows into a node from the parts of what it reads. They add up to its flow.

        Raises:
            ValueError: If there is no such node, or nothing flows into its kind.
        """
        return edges.inflows(self.frozen, self.flow, self._checked(node), self.sources)

    def outflows(self, node: Node) -> Flows:
        """Flows from a node into all that read it, the target last as "constant". They add up to its flow.

        Raises:
            ValueError: If there is no such node.
        """
        return edges.outflows(self.frozen, self.flow, self._checked(node))

    def pairs(self, node: Node, k: int = 20) -> NodePairs:
        """Find the largest pairs of an MLP at a token, or of a feature or the error of its dictionary, exactly.

        Cost: n^2 d_mlp for n parts, in blocks; memory is that of 2 n d_mlp numbers and one block.

        Raises:
            ValueError: If the node is of another kind, has no gate, or has too many parts.
        """
        return PartProducts.of(self.frozen, self.flow, self._checked(node), self.sources).largest(k)

    def mass(self, q: float = 0.9) -> KeptPairs:
        """Find the smallest set of pairs that holds a share q of the sum of all magnitudes, over all MLPs.

        Cost: all pairs of all MLPs on which the target depends, 8 bytes each.

        Raises:
            ValueError: If q is not between 0 and 1, or there are too many pairs to hold.
        """
        return largest_pairs(self.frozen, self.flow, q, self.sources)

    def edges(self, q: float = 0.9) -> KeptEdges:
        """Find the smallest set of edges, flows from one node into another, with a share q of all magnitudes.

        Cost: all edges, 48 bytes each; edges of biases are left out.

        Raises:
            ValueError: If q is not between 0 and 1, or there are too many edges to hold.
        """
        return largest_edges(self.frozen, self.flow, q, self.sources)

    def prune(self, q: float = 0.9) -> PrunedRun:
        """Run the frozen model with the pairs of `mass(q)` alone, whose values change with those before them.

        Raises:
            ValueError: See `mass`.
        """
        return run_pruned(self.frozen, self.target, self.mass(q))

    def _checked(self, node: Node) -> Node:
        """Refuse a node that the run does not have, or that has no flow of its own."""
        if check_node(self.frozen, node).kind == "constant":
            raise ValueError(f"node must be one that writes, got {node!r}. Inflows and pairs name what is constant.")
        return node


def prompt_graph(frozen: Frozen, asked: Asked, position: int = -1, sources: bool = True) -> PromptGraph:
    """Trace a target back to the tokens of a prompt. Cost: one backward pass.

    Args:
        frozen: The run.
        asked: See `target_of`.
        position: Token at which the target is read.
        sources: Whether a head's messages from different tokens are different parts.

    Raises:
        ValueError: See `target_of`.
    """
    target = target_of(frozen, asked, position)
    return PromptGraph(frozen, target, flow(frozen, target), sources)
