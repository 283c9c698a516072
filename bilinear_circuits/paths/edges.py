"""Flows into and out of single nodes: what others wrote times the cotangent with which a node reads it."""

from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from bilinear_circuits.paths.flow import Flow, back_through_norm, through_mlp
from bilinear_circuits.paths.frozen import Frozen
from bilinear_circuits.paths.nodes import Node, head_writes, residual_parts
from bilinear_circuits.utilities.display import Shown, Tabled
from bilinear_circuits.utilities.kinds import check_whole

OF_MLP = ("mlp", "feature", "error")


@dataclass(frozen=True, eq=False, repr=False)
class Flows(Shown, Tabled):
    """Flows of some nodes, or into or out of one.

    Attributes:
        nodes: The nodes.
        value: Flow of each.
    """

    nodes: tuple[Node, ...]
    value: Float[Tensor, " node"]

    @property
    def total(self) -> float:
        """Their sum."""
        return self.value.sum().item()

    def top(self, k: int) -> "Flows":
        """The k of largest magnitude."""
        best = self.value.abs().argsort(descending=True, stable=True)[: check_whole("k", k)]
        return Flows(tuple(self.nodes[i] for i in best.tolist()), self.value[best])

    def table(self) -> dict[str, list[Any]]:
        """Nodes and flows as columns."""
        return {"node": [str(node) for node in self.nodes], "flow": self.value.tolist()}


def written(frozen: Frozen, node: Node) -> Float[Tensor, " d_model"]:
    """Find what a node has written into the residual stream at its token."""
    layer, t = node.layer, node.position
    if node.kind == "embedding":
        return frozen.embedded[t]
    assert layer is not None
    if node.kind == "head":
        sources, at = node.source is not None, t if node.source is None else node.source
        row = head_writes(frozen, layer, sources)[node.head, at] / frozen.t1[layer, t]
        return row * frozen.patterns[layer, node.head, t, at] if sources else row
    one = frozen.weights.layers[layer]
    if node.kind == "bias" and node.head is not None:
        return back_through_norm(one.b_O, frozen.t1[layer, t], one.attention_out_norm)
    return back_through_norm(_mlp_output(frozen, node), frozen.t2[layer, t], one.mlp_out_norm)


def _mlp_output(frozen: Frozen, node: Node) -> Tensor:
    """What an MLP, or a part of its dictionary, adds to the MLP's output."""
    y = frozen.mlp_out[node.layer, node.position]
    if node.kind == "mlp":
        return y
    dictionary = frozen.dictionaries[node.layer]  # type: ignore[index]
    if node.kind == "bias":
        return dictionary.b_dec
    z = dictionary.pre_activations(y) * frozen.active[node.layer][node.position]  # type: ignore[index]
    if node.kind == "feature":
        return z[node.feature] * dictionary.W_dec[node.feature]
    return y - dictionary.decode(z)


def share_of(frozen: Frozen, node: Node, y: Float[Tensor, " d_model"]) -> Float[Tensor, " d_model"]:
    """Find what a node of an MLP holds of a summand y of the MLP's output: all, what its feature reads, or the rest."""
    if node.kind == "mlp":
        return y
    assert node.layer is not None
    dictionary = frozen.dictionaries[node.layer]
    along = (y @ dictionary.W_enc) * frozen.active[node.layer][node.position]
    return (
        along[node.feature] * dictionary.W_dec[node.feature] if node.kind == "feature" else y - along @ dictionary.W_dec
    )


def node_flow(frozen: Frozen, flow: Flow, node: Node) -> float:
    """Flow of one node."""
    t = node.position
    if node.kind == "embedding":
        return flow.embeddings[t].item()
    if node.kind == "head":
        here = flow.heads[node.layer, node.head, t]
        return (here.sum() if node.source is None else here[node.source]).item()
    if node.kind == "mlp":
        return flow.mlps[node.layer, t].item()
    assert node.layer is not None
    c = flow.c_mid[node.layer] if node.head is not None else flow.c_pre[node.layer + 1]
    return (written(frozen, node) @ c[t]).item()


def mlp_readout(frozen: Frozen, flow: Flow, node: Node) -> tuple[Float[Tensor, " d_model"], float]:
    """Cotangent with which a node reads the output of its MLP, and the constant part of its flow.

    A feature's activation is its pre-activation y . W_enc[:, a] + b_enc[a] as long as it stays active, so its flow
    z_a d_a . c reads y along W_enc[:, a]; the error reads what the active features leave over.
    """
    layer, t = node.layer, node.position
    assert layer is not None
    assert t is not None
    if node.kind == "mlp":
        return flow.c_mlp[layer, t], 0.0
    c = back_through_norm(flow.c_pre[layer + 1, t], frozen.t2[layer, t], frozen.weights.layers[layer].mlp_out_norm)
    dictionary, active = frozen.dictionaries[layer], frozen.active[layer][t]
    along = (dictionary.W_dec @ c) * active
    if node.kind == "feature":
        share = along[node.feature]
        return share * dictionary.W_enc[:, node.feature], (share * dictionary.b_enc[node.feature]).item()
    return c - dictionary.W_enc @ along, -(along @ dictionary.b_enc + dictionary.b_dec @ c).item()


def inflows(frozen: Frozen, flow: Flow, node: Node, sources: bool) -> Flows:
    """Flows into a node from the parts of what it reads; biases are one "constant". They add up to its flow.

    Cost: d_model for each part, and the parts.

    Raises:
        ValueError: If nothing flows into nodes of this kind.
    """
    if node.kind in OF_MLP:
        reads, inside = mlp_reading(frozen, flow, node)
        return _from_parts(frozen, node, reads, inside, sources)
    if node.kind != "head":
        raise ValueError(f"node must be a head, an MLP, a feature or an error for others to flow into it, got {node}.")
    layer, head = node.layer, node.head
    assert layer is not None
    assert head is not None
    assert node.position is not None
    keys = range(node.position + 1) if node.source is None else [node.source]
    one, some = frozen.weights.layers[layer], []
    for key in keys:
        pattern = frozen.patterns[layer, head, node.position, key]
        reads = one.W_V[head // one.group] @ flow.c_heads[layer, head, node.position] * pattern / frozen.s1[layer, key]
        inside = flow.value_constants[layer, head, node.position, key].item()
        some.append(_from_parts(frozen, node._replace(position=key), reads, inside, sources))
    return Flows(sum((one.nodes for one in some), ()), torch.cat([one.value for one in some]))


def _from_parts(frozen: Frozen, node: Node, reads: Tensor, inside: float, sources: bool) -> Flows:
    """Parts at the token that a node reads, times its cotangent there."""
    assert node.layer is not None
    assert node.position is not None
    parts = residual_parts(frozen, node.layer, node.kind != "head", sources)
    nodes, here = parts.at(node.position)
    value = parts.weight[node.position, here] * (parts.rows[here] @ reads)
    constant = Node("constant", node.layer, node.position)
    return Flows((*nodes, constant), torch.cat([value, value.new_tensor([inside])]))


def mlp_reading(frozen: Frozen, flow: Flow, node: Node) -> tuple[Tensor, float]:
    """Cotangent with which a node reads the residual stream in front of its MLP, and its constant."""
    assert node.layer is not None
    assert node.position is not None
    c, constant = mlp_readout(frozen, flow, node)
    reads, inside = through_mlp(frozen, node.layer, node.position, c)
    return reads, constant + inside.item()


def read_by_target(frozen: Frozen, flow: Flow, node: Node) -> Float[Tensor, ""]:
    """Find what the target reads of a node beside the residual stream: a feature, the output of its own MLP."""
    layer, t = node.layer, node.position
    if node.kind != "mlp":
        return flow.c_mlp.new_zeros(())
    assert layer is not None
    behind = frozen.weights.layers[layer].mlp_out_norm
    c_stream = back_through_norm(flow.c_pre[layer + 1, t], frozen.t2[layer, t], behind)
    return frozen.mlp_out[layer, t] @ (flow.c_mlp[layer, t] - c_stream)


def outflows(frozen: Frozen, flow: Flow, node: Node) -> Flows:
    """Flows from a node into the messages and MLPs that read it, and into the target: they add up to its flow.

    What ends in the target itself has the kind "constant".
    """
    t, row = node.position, written(frozen, node)
    first = 0 if node.layer is None else node.layer + (node.kind != "head" and node.head is None)
    nodes: list[Node] = []
    values = []
    for layer in range(first, frozen.n_layers):
        one = frozen.weights.layers[layer]
        if layer != node.layer:
            read = (row / frozen.s1[layer, t]) @ one.W_V.repeat_interleave(one.group, 0)
            flows = (flow.c_heads[layer] @ read.unsqueeze(-1)).squeeze(-1) * frozen.patterns[layer, :, :, t]
            nodes += [Node("head", layer, q, h, t) for h in range(frozen.n_heads) for q in range(frozen.n_pos)]
            values.append(flows.flatten())
        nodes.append(Node("mlp", layer, t))
        values.append((row @ (flow.c_mid[layer, t] - flow.c_pre[layer + 1, t])).unsqueeze(0))
    values.append((row @ flow.c_pre[-1, t] + read_by_target(frozen, flow, node)).unsqueeze(0))
    nodes.append(Node("constant", position=t))
    value = torch.cat(values)
    here = value.nonzero().flatten()
    return Flows(tuple(nodes[i] for i in here.tolist()), value[here])
