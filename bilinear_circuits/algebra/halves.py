"""Products of two linear functions of one input, divided among the parts of that input.

A neuron multiplies x . W_gate[:, m] and x . W_in[:, m]. For parts that add up to x, each product of two parts is
split half and half between them (the Shapley value), or kept as a pair. One layer, a form and a whole prompt are
accounted for by these functions.
"""

from collections.abc import Iterator

from jaxtyping import Float
from torch import Tensor

_BLOCK = 1 << 22


def half_rule(
    weight: Float[Tensor, "*#n d_mlp"],
    gate: Float[Tensor, "*#n d_mlp"],
    other: Float[Tensor, "*#n d_mlp"],
    W_gate: Float[Tensor, "d_in d_mlp"],
    W_in: Float[Tensor, "d_in d_mlp"],
) -> Float[Tensor, "*#n d_in"]:
    """Direct a weighted sum of products back to their input: what each part p adds is p . c.

    c = 1/2 [(weight * other) W_gate^T + (weight * gate) W_in^T], half the gradient where there are no biases.
    Source: RelP, arXiv 2508.21258. Cost: two products with the matrices.

    Args:
        weight: What each neuron counts.
        gate: x W_gate, a bias included.
        other: x W_in, a bias included.
        W_gate: Gate weights.
        W_in: The other factor's.
    """
    return ((weight * other) @ W_gate.T + (weight * gate) @ W_in.T) / 2


def pair_blocks(
    gate: Float[Tensor, "part d_mlp"], other: Float[Tensor, "part d_mlp"], weight: Float[Tensor, " d_mlp"]
) -> Iterator[tuple[int, Float[Tensor, "rows columns"]]]:
    """Make all unordered pairs of parts, in blocks of rows.

    Cost: n^2 d_mlp products for n parts; blocks of at most 4 million numbers.

    Args:
        gate: Each part through W_gate.
        other: Each part through W_in.
        weight: What each neuron counts.

    Yields:
        First row, and the values of its pairs with itself and all parts after it: the block's entry (i, j) is of the
        parts first + i and first + j, and zero for j < i.
    """
    step = max(1, _BLOCK // max(1, len(gate)))
    for first in range(0, len(gate), step):
        yield first, pair_rows(gate, other, weight, slice(first, first + step))


def pair_rows(
    gate: Float[Tensor, "part d_mlp"],
    other: Float[Tensor, "part d_mlp"],
    weight: Float[Tensor, " d_mlp"],
    rows: slice = slice(None),
) -> Float[Tensor, "rows columns"]:
    """Make the unordered pairs of some parts, all by default, with themselves and the parts after the first of them.

    Both orders of a pair are one entry, on or above the diagonal; below it are zeros. The entries of all parts add up
    to the weighted sum of products.
    """
    after = slice(rows.start, None)
    block = (gate[rows] * weight) @ other[after].T + (other[rows] * weight) @ gate[after].T
    block.diagonal().div_(2)
    return block.triu_()
