"""Pairs: what the products of two parts of an MLP's input add to the flow of the MLP, exactly.

For parts p_a of the residual stream at a token, x = sum_a p_a / s2, an MLP's flow is the sum over unordered pairs of

    sum_m w_m ((p_a . g_m)(p_b . u_m) + (p_b . g_m)(p_a . u_m)) / s2^2,   the second product only for a != b,

and a constant, the output bias. Biases of the gate and of W_in are one more part. Pairs are made in blocks of rows.
"""

from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from bilinear_circuits.algebra.halves import pair_blocks
from bilinear_circuits.paths.checks import check_consists_of_pairs
from bilinear_circuits.paths.edges import mlp_readout
from bilinear_circuits.paths.flow import Flow
from bilinear_circuits.paths.frozen import Frozen
from bilinear_circuits.paths.nodes import Node, residual_parts
from bilinear_circuits.utilities.display import Brief, Shown, Tabled
from bilinear_circuits.utilities.kinds import check_whole

_MOST_PROJECTED = 1 << 28


@dataclass(frozen=True, eq=False, repr=False)
class NodePairs(Shown, Tabled):
    """The largest pairs of one MLP at one token, or of one feature or error of its dictionary.

    Attributes:
        node: Whose flow they add up to.
        parts: The parts of the MLP input; the last is "constant" where gate or W_in have biases.
        first: Index of one part of each pair kept, by falling magnitude.
        second: Of the other; equal for a part with itself.
        value: Flow of each.
        total: Sum of all pairs, kept or not.
        constant: The rest of the node's flow: biases behind the product.
        mass: Sum of the magnitudes of all pairs.
        n_pairs: Number of pairs.
    """

    node: Node
    parts: tuple[Node, ...]
    first: Int[Tensor, " k"]
    second: Int[Tensor, " k"]
    value: Float[Tensor, " k"]
    total: float
    constant: float
    mass: float
    n_pairs: int

    def table(self) -> dict[str, list[Any]]:
        """The pairs kept as columns."""
        ends = {
            name: [str(self.parts[i]) for i in column.tolist()]
            for name, column in (("first", self.first), ("second", self.second))
        }
        return {**ends, "flow": self.value.tolist()}


@dataclass(frozen=True, eq=False, repr=False)
class Projected(Brief):
    """The parts of the input of one MLP, for all tokens, as its neurons read them.

    Attributes:
        nodes: Names of the rows; a last one "constant" where the MLP has biases inside.
        weight: Factor of each at each token, the norm's scale included.
        gate: Rows through W_gate.
        input: Rows through W_in.
    """

    nodes: tuple[Node, ...]
    weight: Float[Tensor, "pos part"]
    gate: Float[Tensor, "part d_mlp"]
    input: Float[Tensor, "part d_mlp"]

    def here(self, position: int) -> Int[Tensor, " part_here"]:
        """Rows that are parts at a token."""
        return self.weight[position].nonzero().flatten()

    def at(self, position: int) -> tuple[Float[Tensor, "part_here d_mlp"], Float[Tensor, "part_here d_mlp"]]:
        """Read the parts at a token by every neuron's gate and input."""
        here = self.here(position)
        factor = self.weight[position, here].unsqueeze(1)
        return self.gate[here] * factor, self.input[here] * factor

    def names(self, position: int) -> tuple[Node, ...]:
        """Names of the parts at a token."""
        return tuple(self.nodes[i]._replace(position=position) for i in self.here(position).tolist())


def project(frozen: Frozen, layer: int, sources: bool) -> Projected:
    """Read all parts of an MLP's input by its neurons. Cost: 2 d_model d_mlp for each part.

    Raises:
        ValueError: If the MLP has no gate, or there are too many parts to hold.
    """
    one = frozen.weights.layers[layer]
    if one.W_in is None:
        raise ValueError(
            f"layer {layer} must have a gate to consist of pairs, but its MLP is linear once its gate factor is fixed."
            " Read graph.inflows(node)."
        )
    n_features = sum(int(frozen.active[at].sum()) for at in frozen.dictionaries if at < layer)
    n_rows = frozen.n_pos * (1 + (layer + 1) * frozen.n_heads + layer) + n_features
    if n_rows * one.W_gate.shape[1] > _MOST_PROJECTED:
        raise ValueError(
            f"parts of layer {layer} must be at most {_MOST_PROJECTED // one.W_gate.shape[1]} to be held, got {n_rows}"
            f" for {frozen.n_pos} tokens. Shorten the prompt"
            + (", or pass sources=False for one part a head." if sources else ".")
        )
    parts = residual_parts(frozen, layer, True, sources)
    nodes, weight = parts.nodes, parts.weight / frozen.s2[layer]
    gate, inputs = parts.rows @ one.W_gate, parts.rows @ one.W_in
    if one.b_gate.any() or one.b_in.any():
        nodes += (Node("constant", layer),)
        weight = torch.cat([weight, torch.ones_like(weight[:, :1])], 1)
        gate, inputs = torch.cat([gate, one.b_gate.unsqueeze(0)]), torch.cat([inputs, one.b_in.unsqueeze(0)])
    return Projected(nodes, weight, gate, inputs)


@dataclass(frozen=True, eq=False, repr=False)
class PartProducts(Brief):
    """The parts of one MLP's input at a token as its neurons read them, and what each neuron counts in a node's flow.

    Attributes:
        node: The MLP, or a feature or the error of its dictionary.
        parts: The parts; the last is "constant" where gate or W_in have biases.
        gate: Each part through W_gate.
        input: Each part through W_in.
        weight: What each neuron counts.
        constant: Flow of the node that is no product: biases behind.
    """

    node: Node
    parts: tuple[Node, ...]
    gate: Float[Tensor, "part d_mlp"]
    input: Float[Tensor, "part d_mlp"]
    weight: Float[Tensor, " d_mlp"]
    constant: float

    @classmethod
    def of(cls, frozen: Frozen, flow: Flow, node: Node, sources: bool) -> "PartProducts":
        """Read the parts of a node.

        Raises:
            ValueError: If the node is of another kind, has no gate, or has too many parts.
        """
        check_consists_of_pairs(node)
        layer, t = node.layer, node.position
        assert layer is not None
        assert t is not None
        projected, (c, constant) = project(frozen, layer, sources), mlp_readout(frozen, flow, node)
        one = frozen.weights.layers[layer]
        weight = frozen.sigma[layer, t] * (one.W_out @ c)
        return cls(node, projected.names(t), *projected.at(t), weight, constant + (c @ one.b_out).item())

    def largest(self, k: int) -> NodePairs:
        """Find the k largest pairs. See `PromptGraph.pairs`.

        Raises:
            ValueError: If k is not positive.
        """
        kept = top_pairs(self.gate, self.input, self.weight, check_whole("k", k))
        first, second, value, total, mass = kept
        n_pairs = len(self.parts) * (len(self.parts) + 1) // 2
        return NodePairs(self.node, self.parts, first, second, value, total, self.constant, mass, n_pairs)


def top_pairs(
    gate: Float[Tensor, "part d_mlp"], inputs: Float[Tensor, "part d_mlp"], w: Float[Tensor, " d_mlp"], k: int
) -> tuple[Tensor, Tensor, Tensor, float, float]:
    """Find the k pairs of largest magnitude, and total and mass of all. Memory: that of the parts, and one block.

    Returns:
        First and second part, value, total and mass.
    """
    nothing = torch.zeros(0, dtype=torch.long, device=gate.device)
    first, second, value, total, mass = nothing, nothing, gate.new_zeros(0), 0.0, 0.0
    for start, block in pair_blocks(gate, inputs, w):
        total, mass = total + block.sum().item(), mass + block.abs().sum().item()
        rows, columns = torch.triu_indices(*block.shape, device=block.device)
        some = block[rows, columns]
        best = some.abs().topk(min(k, len(some))).indices
        value = torch.cat([value, some[best]])
        first, second = torch.cat([first, rows[best] + start]), torch.cat([second, columns[best] + start])
        kept = value.abs().argsort(descending=True, stable=True)[:k]
        first, second, value = first[kept], second[kept], value[kept]
    return first, second, value, total, mass
