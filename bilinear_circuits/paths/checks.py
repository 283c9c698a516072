"""What is refused before it is read: nodes that a run does not have, and pairs that no MLP of it multiplies."""

from collections.abc import Sequence
from typing import Any, get_args

from bilinear_circuits.paths.edges import OF_MLP
from bilinear_circuits.paths.frozen import Frozen
from bilinear_circuits.paths.nodes import Kind, Node

_FIELDS = {
    "embedding": ("position",),
    "head": ("layer", "position", "head"),
    "feature": ("layer", "position", "feature"),
}
"""Fields that nodes must have, if not layer and position."""
_OPTIONAL = {"head": ("source",), "bias": ("head",)}


def check_node(frozen: Frozen, node: Any, everywhere: bool = False) -> Node:
    """Refuse a node that the run does not have.

    Args:
        frozen: The run.
        node: What is meant as a node.
        everywhere: Whether embeddings, heads and MLPs may lack a position, for all tokens.

    Raises:
        TypeError: If it is no node, or a number in it no int.
        ValueError: If there is no such node.
    """
    if not isinstance(node, Node):
        raise TypeError(
            f"node must be a Node, such as Node('mlp', 3, 5) for MLP 3 at token 5, got a {type(node).__name__}."
        )
    if node.kind not in get_args(Kind):
        raise ValueError(f"kind of a node must be one of {', '.join(get_args(Kind))}, got {node.kind!r}.")
    sizes = {"layer": frozen.n_layers, "position": frozen.n_pos, "head": frozen.n_heads, "source": frozen.n_pos}
    for name, size in sizes.items():
        _check_number(node, name, size, everywhere)
    of_dictionary = node.kind in ("feature", "error") or (node.kind == "bias" and node.head is None)
    if of_dictionary and node.layer not in frozen.dictionaries:
        known = [*frozen.dictionaries]
        raise ValueError(
            f"node must be of a layer with a dictionary {known}, got {node}. FrozenRun(..., dictionaries=) takes them."
        )
    _check_number(node, "feature", frozen.dictionaries[node.layer].d_sae if node.kind == "feature" else 0)  # type: ignore[index]
    if node.source is not None and node.position is not None and node.source > node.position:
        raise ValueError(
            f"source of a node must not come after its position, since heads look back, got {node.source} after"
            f" {node.position} in {node}."
        )
    return node


def _check_number(node: Node, name: str, size: int, everywhere: bool = False) -> None:
    """Refuse a number that a node lacks, has in vain, or that is out of range."""
    at, needed = getattr(node, name), _FIELDS.get(node.kind, ("layer", "position"))
    if at is None:
        for_all = name == "position" and everywhere and node.kind in ("embedding", "head", "mlp")
        if name in needed and not for_all:
            each = " Name each head: a sequence of nodes is removed together." if name == "head" else ""
            raise ValueError(f"{name} of a node must be given for the kind {node.kind!r}, got {node!r}.{each}")
    elif name not in (*needed, *_OPTIONAL.get(node.kind, ())):
        raise ValueError(f"{name} of a node must be left out for the kind {node.kind!r}, got {node!r}.")
    elif type(at) is not int:
        raise TypeError(f"{name} of a node must be an int, got {at!r:.40} of type {type(at).__name__}.")
    elif node.kind == "bias" and name == "head":
        if at != -1:
            raise ValueError(f"head of a bias must be -1 for that of attention, or None for a decoder's, got {node!r}.")
    elif not 0 <= at < size:
        raise ValueError(f"{name} of a node must be between 0 and {size - 1}, got {at} in {node}.")


def check_consists_of_pairs(node: Node) -> None:
    """Refuse a node that is no sum of products of two parts.

    Raises:
        ValueError: If it is neither an MLP, nor a feature or an error of its dictionary, at a token.
    """
    if node.kind not in OF_MLP or node.layer is None or node.position is None:
        raise ValueError(f"node must be an MLP, a feature or an error at a token to consist of pairs, got {node}.")


def check_pair(frozen: Frozen, node: Any, parts: Sequence[Any]) -> None:
    """Refuse a pair that is none of a node.

    Args:
        frozen: The run.
        node: The MLP at a token, or a feature or the error of its dictionary.
        parts: The two parts.

    Raises:
        TypeError: See `check_node`.
        ValueError: If the node is of another kind or has no gate, or does not read both parts as parts of their own.
    """
    check_consists_of_pairs(check_node(frozen, node))
    if frozen.weights.layers[node.layer].W_in is None:
        raise ValueError(f"pairs must be of MLPs with a gate, got {node}. Remove the node itself.")
    for part in parts:
        if not is_part(frozen, node, check_node(frozen, part)):
            raise ValueError(
                f"parts of a pair must be of the input of {node}: what earlier nodes wrote to token {node.position}"
                f' before that MLP, and "constant" where it has biases, got {part}. graph.pairs(node) lists them.'
            )
    first, second = parts
    same_head = first != second and first._replace(source=None) == second._replace(source=None)
    if same_head and None in (first.source, second.source):
        raise ValueError(
            f"parts of a pair must not contain one another, got {first} and {second}. Name sources in both or in none."
        )


def is_part(frozen: Frozen, node: Node, part: Node) -> bool:
    """Tell whether a part is one that the MLP of a node reads: as `residual_parts` lists them, with sources or not.

    Args:
        frozen: The run.
        node: An MLP at a token, or a feature or the error of its dictionary.
        part: A node that `check_node` passed.
    """
    layer, t = node.layer, node.position
    assert layer is not None
    one = frozen.weights.layers[layer]
    if part.position != t:
        return False
    if part.kind == "constant":
        return part.layer == layer and bool(one.b_gate.any() or one.b_in.any())
    if part.kind == "embedding":
        return True
    assert part.layer is not None
    of_attention = part.kind == "head" or part.head is not None
    if part.layer > layer or (part.layer == layer and not of_attention):
        return False
    if part.kind == "head":
        pattern = frozen.patterns[part.layer, part.head, t]
        return part.source is None or bool(pattern[part.source] != 0)
    if of_attention:
        return bool(frozen.weights.layers[part.layer].b_O.any())
    if part.kind == "feature":
        return bool(frozen.active[part.layer][t, part.feature])
    return part.kind != "mlp" or part.layer not in frozen.dictionaries
