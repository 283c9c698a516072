"""All edges of a prompt's graph, and the smallest set of them that holds most of the mass.

An edge is the flow from a part of the residual stream into one that reads it: a head's message, an MLP, or the target.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from bilinear_circuits.paths.edges import read_by_target
from bilinear_circuits.paths.flow import Flow
from bilinear_circuits.paths.frozen import Frozen
from bilinear_circuits.paths.nodes import Node, Parts, residual_parts
from bilinear_circuits.paths.prune import covering, refuse_too_many
from bilinear_circuits.utilities.display import Shown, Tabled
from bilinear_circuits.utilities.kinds import check_whole


@dataclass(frozen=True, eq=False, repr=False)
class KeptEdges(Shown, Tabled):
    """The smallest set of edges with a share of the mass, largest first.

    Attributes:
        layer: Layer of what reads; the number of layers for the target.
        head: Head that reads, or -1 for an MLP or the target.
        position: Token at which it writes.
        source: Token at which it reads.
        part: What it reads, counted among the parts of the residual stream there; -1 for the MLP that a target
            feature reads.
        value: Flow.
        n_edges: All edges that there are.
        mass: Sum of the magnitudes of all.
        sources: Whether a head's messages from different tokens are different parts.
    """

    layer: Int[Tensor, " kept"]
    head: Int[Tensor, " kept"]
    position: Int[Tensor, " kept"]
    source: Int[Tensor, " kept"]
    part: Int[Tensor, " kept"]
    value: Float[Tensor, " kept"]
    n_edges: int
    mass: float
    sources: bool

    def table(self) -> dict[str, list[Any]]:
        """The edges kept as columns, parts by number; `named` gives the largest their names."""
        names = ("layer", "head", "position", "source", "part", "value")
        return {name: getattr(self, name).tolist() for name in names}

    def named(self, frozen: Frozen, k: int = 20) -> list[tuple[Node, Node, float]]:
        """Name the k largest: what is read, what reads it ("constant" for the target), and the flow."""
        found, known = [], {}
        rows = zip(*(column[: check_whole("k", k)] for column in self.table().values()), strict=True)
        for layer, head, position, source, part, value in rows:
            if part < 0:
                found.append((Node("mlp", layer, source), Node("constant", None, position), value))
                continue
            place = (layer, head < 0 and layer < frozen.n_layers)
            if place not in known:
                known[place] = residual_parts(frozen, *place, self.sources).nodes
            reader = Node("mlp", layer, position) if head < 0 else Node("head", layer, position, head, source)
            reader = Node("constant", None, position) if layer == frozen.n_layers else reader
            found.append((known[place][part]._replace(position=source), reader, value))
        return found


def all_edges(frozen: Frozen, flow: Flow, sources: bool) -> Iterator[tuple[Tensor, Tensor]]:
    """All edges: rows of (layer, head, position, source, part), and their flows."""
    for layer in range(frozen.n_layers):
        yield from _into_heads(frozen, flow, layer, residual_parts(frozen, layer, False, sources))
        reads = flow.c_mid[layer] - flow.c_pre[layer + 1]
        yield _into_stream(layer, reads, residual_parts(frozen, layer, True, sources))
    yield _into_stream(frozen.n_layers, flow.c_pre[-1], residual_parts(frozen, frozen.n_layers, False, sources))
    yield from _into_feature(frozen, flow)


def largest_edges(frozen: Frozen, flow: Flow, q: float, sources: bool) -> KeptEdges:
    """Find the smallest set of edges that holds a share q of the sum of all magnitudes. See `PromptGraph.edges`."""
    places, values, n_edges = [], [], 0
    for place, value in all_edges(frozen, flow, sources):
        n_edges += len(value)
        refuse_too_many("edges", n_edges, frozen.n_pos, sources)
        places.append(place)
        values.append(value)
    flat = torch.cat(values)
    kept, mass = covering(flat, q)
    layer, head, position, source, part = torch.cat(places)[kept].long().unbind(1)
    return KeptEdges(layer, head, position, source, part, flat[kept], n_edges, mass, sources)


def _into_heads(frozen: Frozen, flow: Flow, layer: int, parts: Parts) -> Iterator[tuple[Tensor, Tensor]]:
    """Edges into the messages of a layer, for one token they come from after the other."""
    one = frozen.weights.layers[layer]
    W_V = one.W_V.repeat_interleave(one.group, 0)
    for source in range(frozen.n_pos):
        here = parts.weight[source].nonzero().flatten()
        rows = parts.rows[here] * (parts.weight[source, here] / frozen.s1[layer, source]).unsqueeze(1)
        flows = flow.c_heads[layer] @ (rows @ W_V).mT * frozen.patterns[layer, :, :, source].unsqueeze(-1)
        head, position, part = flows.nonzero().unbind(1)
        yield _places(layer, head, position, torch.full_like(head, source), here[part]), flows[head, position, part]


def _into_stream(layer: int, reads: Tensor, parts: Parts) -> tuple[Tensor, Tensor]:
    """Edges into the MLPs of a layer, or into the target."""
    flows = parts.weight * (reads @ parts.rows.T)
    position, part = flows.nonzero().unbind(1)
    return _places(layer, torch.full_like(position, -1), position, position, part), flows[position, part]


def _into_feature(frozen: Frozen, flow: Flow) -> Iterator[tuple[Tensor, Tensor]]:
    """The edge into a target that is a feature, which reads the output of its own MLP."""
    for layer, t in flow.c_mlp.any(-1).nonzero().tolist():
        value = read_by_target(frozen, flow, Node("mlp", layer, t)).unsqueeze(0)
        if value.any():
            at = torch.full_like(value, t, dtype=torch.long)
            none = torch.full_like(at, -1)
            yield _places(layer, none, at, at, none), value


def _places(layer: int, *columns: Tensor) -> Tensor:
    """Five columns of small numbers."""
    return torch.stack([torch.full_like(columns[0], layer), *columns], 1).int()
