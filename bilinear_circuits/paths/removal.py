"""What is taken out of a model's run: masks of messages and MLPs, and changes of the residual stream."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from bilinear_circuits.paths.checks import check_node, check_pair
from bilinear_circuits.paths.edges import share_of, written
from bilinear_circuits.paths.flow import back_through_norm
from bilinear_circuits.paths.frozen import Frozen
from bilinear_circuits.paths.nodes import Node
from bilinear_circuits.utilities.display import Brief


class Pair(NamedTuple):
    """The product of two parts of an MLP's input at a token, as text "mlp 3 @5: embedding @5 x head 1.0 2->5".

    Attributes:
        mlp: The MLP at a token, or a feature or the error of its dictionary there: their share of the product.
        first: One part of what that MLP reads, as `PromptGraph.pairs` lists them, or all messages of a head to the
            token; "constant" for biases inside of the MLP.
        second: The other, or the same.
    """

    mlp: Node
    first: Node
    second: Node

    def __str__(self) -> str:
        return f"{self.mlp}: {self.first} x {self.second}"


Removed = Node | Pair | Sequence[Node | Pair]
"""One thing to remove, or several together."""


@dataclass(frozen=True, eq=False, repr=False)
class Removal(Brief):
    """Several removals, each of which is a run of its own.

    Attributes:
        frozen: The run from which is removed.
        rows: What each removes.
    """

    frozen: Frozen
    rows: tuple[tuple[Node | Pair, ...], ...]

    def select(self, start: int, stop: int) -> "Removal":
        """Some of them."""
        return Removal(self.frozen, self.rows[start:stop])

    def embedded(self) -> Float[Tensor, "row pos d_model"]:
        """The embedded prompt, without what is removed."""
        x = self.frozen.embedded.repeat(len(self.rows), 1, 1)
        for row, node in self._nodes("embedding", None):
            x[row, slice(None) if node.position is None else node.position] = 0
        return x

    def messages(self, layer: int) -> Float[Tensor, "row head query_pos key_pos"] | None:
        """Zero where a head's message is removed; None where none of the layer is."""
        found = list(self._nodes("head", layer))
        if not found:
            return None
        mask = torch.ones_like(self.frozen.patterns[layer]).repeat(len(self.rows), 1, 1, 1)
        for row, node in found:
            at = (slice(None) if one is None else one for one in (node.head, node.position, node.source))
            mask[(row, *at)] = 0
        return mask

    def mlps(self, layer: int) -> Float[Tensor, "row pos 1"] | None:
        """Zero where an MLP is removed; None where none of the layer is."""
        found = list(self._nodes("mlp", layer))
        if not found:
            return None
        mask = self.frozen.embedded.new_ones(len(self.rows), self.frozen.n_pos, 1)
        for row, node in found:
            mask[row, slice(None) if node.position is None else node.position] = 0
        return mask

    def change(self, layer: int, mid: bool) -> Float[Tensor, "row pos d_model"] | float:
        """Sum what removed biases, features, errors and pairs had written into the stream after a part."""
        change = torch.zeros_like(self.frozen.embedded).repeat(len(self.rows), 1, 1)
        found = False
        for row, items in enumerate(self.rows):
            for one in items:
                if isinstance(one, Node) and one.kind in ("embedding", "head", "mlp"):
                    continue
                place = one.mlp if isinstance(one, Pair) else one
                if place.layer == layer and mid == (place.kind == "bias" and place.head is not None):
                    change[row, place.position] -= _vector(self.frozen, one)
                    found = True
        return change if found else 0.0

    def _nodes(self, kind: str, layer: int | None) -> Iterator[tuple[int, Node]]:
        """Nodes of a kind in a layer that are removed, and the run of each."""
        for row, items in enumerate(self.rows):
            for one in items:
                if isinstance(one, Node) and one.kind == kind and one.layer == layer:
                    yield row, one


def removal_of(frozen: Frozen, remove: Node | Pair | Sequence[Removed]) -> Removal:
    """Check and gather what is to be removed.

    Raises:
        ValueError: If there is nothing, or something that the run does not have; see `check_node` and `check_pair`.
        TypeError: If it is no node, no pair and no sequence of them.
    """
    rows = tuple((one,) if isinstance(one, Node | Pair) else _several(one) for one in _several(remove))
    if not rows or not all(rows):
        raise ValueError(f"remove must name at least one node or pair for each run, got {len(rows)} runs.")
    for one in (one for row in rows for one in row):
        if isinstance(one, Pair):
            check_pair(frozen, one.mlp, one[1:])
        elif isinstance(one, Node):
            if check_node(frozen, one, everywhere=True).kind == "constant":
                raise ValueError(f"node must be of a kind that can be removed by itself, got {one!r}.")
        else:
            raise _no_removal(one)
    rows = tuple(tuple({_unordered(one): one for one in row}.values()) for row in rows)
    for row in rows:
        _check_once(row)
    return Removal(frozen, rows)


def _unordered(one: Node | Pair) -> Any:
    """What is removed, the two parts of a pair in either order."""
    return (one.mlp, frozenset(one[1:])) if isinstance(one, Pair) else one


def _check_once(row: Sequence[Node | Pair]) -> None:
    """Refuse parts of an MLP that the same run removes whole: they would be taken away twice."""
    whole = {(one.layer, one.position) for one in row if isinstance(one, Node) and one.kind == "mlp"}
    for one in row:
        place = one.mlp if isinstance(one, Pair) else one
        part = isinstance(one, Pair) or place.kind in ("feature", "error")
        if part and whole & {(place.layer, place.position), (place.layer, None)}:
            raise ValueError(
                f"remove must hold each part once, got {one} beside the whole MLP of layer {place.layer}. Leave one"
                " of the two out."
            )


def _several(some: Any) -> tuple[Any, ...]:
    """Some nodes or pairs; a single one is one of them, not a tuple of its fields."""
    if isinstance(some, Node | Pair):
        return (some,)
    if not isinstance(some, Sequence) or isinstance(some, str):
        raise _no_removal(some)
    return tuple(some)


def _no_removal(got: Any) -> TypeError:
    return TypeError(
        "remove must hold nodes, pairs, or sequences of them that go together, such as [Node('mlp', 3)], got"
        f" {got!r:.60} of type {type(got).__name__}."
    )


def _vector(frozen: Frozen, one: Node | Pair) -> Tensor:
    """What a node or a pair has written into the residual stream."""
    if isinstance(one, Node):
        return written(frozen, one)
    layer, t = one.mlp.layer, one.mlp.position
    assert layer is not None
    weights = frozen.weights.layers[layer]
    assert weights.W_in is not None
    (g_a, u_a), (g_b, u_b) = (_read(frozen, layer, node, t) for node in one[1:])
    product = g_a * u_a if one.first == one.second else g_a * u_b + g_b * u_a
    y = (frozen.sigma[layer, t] * product) @ weights.W_out
    return back_through_norm(share_of(frozen, one.mlp, y), frozen.t2[layer, t], weights.mlp_out_norm)


def _read(frozen: Frozen, layer: int, part: Node, t: int | None) -> tuple[Tensor, Tensor]:
    """Gate and input of one part."""
    one = frozen.weights.layers[layer]
    assert one.W_in is not None
    if part.kind == "constant":
        return one.b_gate, one.b_in
    x = written(frozen, part) / frozen.s2[layer, t]
    return x @ one.W_gate, x @ one.W_in
