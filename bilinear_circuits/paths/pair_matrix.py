"""The pairs of one MLP at a token as a small matrix: what the kinds of its parts add together, exactly."""

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from bilinear_circuits.algebra.halves import pair_rows
from bilinear_circuits.paths.graph import PromptGraph
from bilinear_circuits.paths.nodes import Node
from bilinear_circuits.paths.pairs import NodePairs, PartProducts
from bilinear_circuits.utilities.display import Brief


@dataclass(frozen=True, eq=False, repr=False)
class PairMatrix(Brief):
    """The pairs of an MLP at a token, summed by kind, and the largest of them.

    Attributes:
        node: The MLP at a token.
        value: Its flow: the sum of the matrix and the constant.
        groups: Kinds of parts: "embedding", and the attention and the MLP of every earlier layer.
        matrix: Sum of the pairs between two kinds, in the lower triangle.
        first: One part of each of the largest pairs, by falling magnitude.
        second: The other.
        flow: Flow of each.
        constant: What biases behind the product add.
        mass: Sum of the magnitudes of all pairs.
        n_pairs: Number of all pairs.
    """

    node: Node
    value: float
    groups: tuple[str, ...]
    matrix: Float[Tensor, "group group"]
    first: tuple[Node, ...]
    second: tuple[Node, ...]
    flow: Float[Tensor, " pair"]
    constant: float
    mass: float
    n_pairs: int


def pair_matrix(graph: PromptGraph, node: Node, k: int = 20) -> PairMatrix:
    """Sum the pairs of an MLP by kind, and find the k largest. Cost: that of `PromptGraph.pairs`.

    Raises:
        ValueError: See `PromptGraph.pairs`.
    """
    products = PartProducts.of(graph.frozen, graph.flow, node, graph.sources)
    pairs = products.largest(k)
    kinds = [group_of(part) for part in products.parts]
    groups = tuple(dict.fromkeys(kinds))
    owner = torch.tensor([groups.index(kind) for kind in kinds], device=products.weight.device)
    gate, inputs = (
        rows.new_zeros(len(groups), rows.shape[1]).index_add_(0, owner, rows)
        for rows in (products.gate, products.input)
    )
    matrix = pair_rows(gate, inputs, products.weight).T
    return PairMatrix(
        node=node,
        value=graph.value(node),
        groups=groups,
        matrix=matrix,
        first=_named(pairs, pairs.first),
        second=_named(pairs, pairs.second),
        flow=pairs.value,
        constant=pairs.constant,
        mass=pairs.mass,
        n_pairs=pairs.n_pairs,
    )


def group_of(part: Node) -> str:
    """Name the kind of a part: "embedding", "attention 2", "MLP 1", or "constant"."""
    if part.kind in ("embedding", "constant"):
        return part.kind
    return f"{'attention' if part.head is not None else 'MLP'} {part.layer}"


def _named(pairs: NodePairs, column: Tensor) -> tuple[Node, ...]:
    return tuple(pairs.parts[i] for i in column.tolist())
