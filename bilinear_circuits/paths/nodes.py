"""Nodes of a prompt's graph, and what each has written into the residual stream at a place: its parts."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal, NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor

from bilinear_circuits.paths.frozen import Frozen
from bilinear_circuits.utilities.display import Brief

Kind = Literal["embedding", "head", "mlp", "feature", "error", "bias", "constant"]


class Node(NamedTuple):
    """Something that writes into the residual stream, as text "mlp 3 @5", "head 2.1 4->5" or "feature 3/17 @5".

    Attributes:
        kind: "embedding"; "head" (the message of a head from one token to another); "mlp"; "feature" of a dictionary of
            an MLP output, "error" what it misses and "bias" its decoder bias or the output bias of attention (`head`
            -1); "constant" for biases inside of the part that is looked into.
        layer: Layer; None for embeddings.
        position: Token at which it writes; None for all, where an embedding, a head or an MLP is removed.
        head: Head; a head is always named, all heads of a layer are a sequence of nodes.
        source: Token from which a head moves; None for all of them together.
        feature: Feature of a dictionary.
    """

    kind: Kind
    layer: int | None = None
    position: int | None = None
    head: int | None = None
    source: int | None = None
    feature: int | None = None

    def __str__(self) -> str:
        if self.kind == "head" and self.head is not None:
            place = "" if self.position is None else f" @{self.position}"
            place = place if self.source is None else f" {self.source}->{self.position}"
            return f"head {self.layer}.{self.head}{place}"
        if self.kind == "bias" and self.head is not None:
            return f"attention bias {self.layer}{'' if self.position is None else f' @{self.position}'}"
        name = {"feature": f" {self.layer}/{self.feature}", "embedding": "", "constant": ""}.get(
            self.kind, f" {self.layer}"
        )
        return f"{self.kind}{name}{'' if self.position is None else f' @{self.position}'}"


@dataclass(frozen=True, eq=False, repr=False)
class Parts(Brief):
    """What the residual stream consists of at one place of the model, for all tokens at once.

    At token t the stream is sum_n weight[t, n] rows[n]: a head's message is the same vector for all queries, but for
    its pattern.

    Attributes:
        nodes: What the rows are; a head's message lacks the position that it goes to.
        rows: Vectors.
        weight: Factor of each at each token, zero where it writes nothing.
    """

    nodes: tuple[Node, ...]
    rows: Float[Tensor, "part d_model"]
    weight: Float[Tensor, "pos part"]

    def at(self, position: int) -> tuple[tuple[Node, ...], Int[Tensor, " part_here"]]:
        """Name what is written at one token, and give the indices of its rows."""
        here = self.weight[position].nonzero().flatten()
        return tuple(self.nodes[i]._replace(position=position) for i in here.tolist()), here


def residual_parts(frozen: Frozen, layer: int, mid: bool, sources: bool = True) -> Parts:
    """Divide the residual stream before a block, or between its attention and its MLP, into what wrote it.

    Cost: n_heads n_pos d_head d_model for each earlier layer, and as many rows as there are nodes before.

    Args:
        frozen: The run.
        layer: Block; n_layers for the end of the model.
        mid: After the block's attention.
        sources: One part for each token a head moves from; otherwise all of them together.
    """
    nodes, rows, weights = [], [frozen.embedded], [torch.eye(frozen.n_pos).to(frozen.embedded)]
    nodes += [Node("embedding", position=t) for t in range(frozen.n_pos)]
    for at in range(layer + mid):
        for some, written, weight in _layer_parts(frozen, at, sources, at < layer):
            nodes += some
            rows.append(written)
            weights.append(weight)
    return Parts(tuple(nodes), torch.cat(rows), torch.cat(weights, 1))


def _layer_parts(
    frozen: Frozen, layer: int, sources: bool, with_mlp: bool
) -> Iterator[tuple[list[Node], Tensor, Tensor]]:
    """Nodes, rows and weights of one block's attention and MLP."""
    eye = torch.eye(frozen.n_pos).to(frozen.embedded)
    heads, bias = head_writes(frozen, layer, sources), frozen.weights.layers[layer].b_O
    for head in range(frozen.n_heads):
        if sources:
            some = [Node("head", layer, None, head, k) for k in range(frozen.n_pos)]
            yield some, heads[head], frozen.patterns[layer, head] / frozen.t1[layer]
        else:
            some = [Node("head", layer, t, head) for t in range(frozen.n_pos)]
            yield some, heads[head] / frozen.t1[layer], eye
    if bias.any():
        norm = frozen.weights.layers[layer].attention_out_norm
        row = (bias if norm is None else bias * norm).unsqueeze(0)
        yield [Node("bias", layer, None, -1)], row, 1 / frozen.t1[layer]
    if with_mlp:
        yield from _mlp_parts(frozen, layer, eye)


def _mlp_parts(frozen: Frozen, layer: int, eye: Tensor) -> Iterator[tuple[list[Node], Tensor, Tensor]]:
    """An MLP as one node for each token, or its dictionary's features, decoder bias and error."""
    norm = frozen.weights.layers[layer].mlp_out_norm
    factor = torch.ones_like(frozen.embedded[:1]) if norm is None else norm.unsqueeze(0)
    places = range(frozen.n_pos)
    if (dictionary := frozen.dictionaries.get(layer)) is None:
        rows = frozen.mlp_out[layer] * factor / frozen.t2[layer]
        yield [Node("mlp", layer, t) for t in places], rows, eye
        return
    z = dictionary.pre_activations(frozen.mlp_out[layer]) * frozen.active[layer]
    position, feature = frozen.active[layer].nonzero().unbind(1)
    rows = z[position, feature].unsqueeze(1) * dictionary.W_dec[feature] * factor / frozen.t2[layer][position]
    pairs = zip(position.tolist(), feature.tolist(), strict=True)
    yield [Node("feature", layer, t, feature=a) for t, a in pairs], rows, eye[:, position]
    yield [Node("bias", layer)], dictionary.b_dec * factor, 1 / frozen.t2[layer]
    error = (frozen.mlp_out[layer] - dictionary.decode(z)) * factor / frozen.t2[layer]
    yield [Node("error", layer, t) for t in places], error, eye


def head_writes(frozen: Frozen, layer: int, sources: bool) -> Float[Tensor, "head pos d_model"]:
    """Compute what heads write for each token they move from, before the pattern, or in all for each they move to."""
    one = frozen.weights.layers[layer]
    values = frozen.values[layer] if sources else frozen.patterns[layer] @ frozen.values[layer]
    written = values @ one.W_O
    return written if one.attention_out_norm is None else written * one.attention_out_norm
