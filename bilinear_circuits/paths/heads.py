"""All heads of a model from weights alone: copying, what they move, where they look, and with whom they compose.

Token directions are embeddings as the norm of the first layer scales them: in layer 0 scores are those of the model,
but for biases; later they are of the direct path alone.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor

from bilinear_circuits.paths.attention import AttentionHead
from bilinear_circuits.paths.forms import TopEntries
from bilinear_circuits.paths.forward import norm_scale
from bilinear_circuits.paths.qk import TopScores
from bilinear_circuits.paths.weights import LlamaWeights
from bilinear_circuits.utilities.display import Brief, Result
from bilinear_circuits.utilities.kinds import check_whole
from bilinear_circuits.utilities.progress import Progress, silent

_BY: tuple[Literal["Q", "K", "V"], ...] = ("Q", "K", "V")


class Composition(NamedTuple):
    """How much of what an earlier head writes is read.

    Attributes:
        by: By queries "Q", keys "K" or values "V".
        layer: Layer of the earlier head.
        head: Its number.
        value: |M_earlier M| / (|M_earlier| |M|).
    """

    by: str
    layer: int
    head: int
    value: float


class ReadByMLP(NamedTuple):
    """How much of what a head writes an MLP reads.

    Attributes:
        layer: Layer of the MLP that reads most.
        gate: By its gate.
        input: By W_in; 0 without a gate.
    """

    layer: int
    gate: float
    input: float


@dataclass(frozen=True, eq=False, repr=False)
class HeadSummary(Brief):
    """One head from its weights.

    Attributes:
        layer: Its layer.
        head: Its number.
        copying: Share of the magnitude of the OV eigenvalues, between tokens and logits, with a positive real part.
        moves: Largest entries of the OV form: which token it is at (row), and what that does to which logit (column).
        looks: Highest scores over tokens at the query, tokens at the key, and distances, less the mean over keys.
        curves: Scores of these pairs of tokens at every distance.
        by_distance: Mean score over all pairs of tokens, at every distance.
        spread: Standard deviation of the scores over pairs of tokens, as a root mean square over keys less their mean.
        compositions: The strongest composition with an earlier head by queries, by keys and by values.
        read: The MLP that reads most of what it writes.
    """

    layer: int
    head: int
    copying: float
    moves: TopEntries
    looks: TopScores
    curves: Float[Tensor, "pair distance"]
    by_distance: Float[Tensor, " distance"]
    spread: float
    compositions: tuple[Composition, ...]
    read: ReadByMLP

    @property
    def name(self) -> str:
        """Layer and head, as 3.1."""
        return f"{self.layer}.{self.head}"

    @property
    def preference(self) -> Float[Tensor, " distance"]:
        """Mean score at each distance, less its mean over distances, in units of the spread over pairs of tokens."""
        return (self.by_distance - self.by_distance.mean()) / max(self.spread, 1e-30)

    @property
    def distance(self) -> int:
        """The distance at which the mean score is highest."""
        return int(self.by_distance.argmax())


@dataclass(frozen=True, eq=False, repr=False)
class HeadTable(Result):
    """Heads from weights alone.

    Attributes:
        heads: The heads.
        token_ids: Tokens that rows and columns of `moves` and `looks` count.
        chance: Composition of random matrices of this width: 1 / sqrt(d_model).
        n_distances: Distances 0 to n - 1.
    """

    heads: tuple[HeadSummary, ...]
    token_ids: Int[Tensor, " token"]
    chance: float
    n_distances: int


@torch.no_grad()
def summarize_heads(
    weights: LlamaWeights,
    names: Sequence[tuple[int, int]],
    token_ids: Int[Tensor, " token"],
    n_distances: int = 32,
    k: int = 5,
    progress: Progress = silent,
) -> HeadTable:
    """Summarize some heads. Cost, for each: tokens^2 d_head for OV and QK, and (earlier heads) d_model d_head^2.

    Args:
        weights: The model.
        names: Layer and number of each head.
        token_ids: Tokens between which OV and QK are searched.
        n_distances: Distances 0 to n - 1.
        k: Entries and scores kept.
        progress: Wraps the loop.

    Raises:
        ValueError: If there is no such head, no token, or k or n_distances is not positive.
    """
    check_whole("k", k)
    if not len(token_ids):
        raise ValueError("token_ids must name at least one token, got none.")
    heads = tuple(
        _summary(weights, AttentionHead.of(weights, *name), token_ids, n_distances, k)
        for name in progress(names, "heads")
    )
    return HeadTable(heads, token_ids, weights.d_model**-0.5, n_distances)


def _summary(weights: LlamaWeights, head: AttentionHead, token_ids: Tensor, n_distances: int, k: int) -> HeadSummary:
    directions = weights.W_E / norm_scale(weights.W_E, weights.eps)
    some, readouts = directions[token_ids], weights.W_U.T
    mean = some.mean(0, keepdim=True)
    form = head.qk(some, some).centred()
    looks = form.top(k, n_distances)
    first = torch.zeros(1, dtype=torch.long, device=some.device)
    by_distance = head.qk(mean, mean).scores(first, first, n_distances)[0]
    distance = int(by_distance.argmax())
    return HeadSummary(
        layer=head.layer,
        head=head.head,
        copying=head.copying_score(directions, readouts),
        moves=head.ov(some, readouts[token_ids]).top(k),
        looks=looks,
        curves=form.scores(looks.query, looks.key, n_distances),
        by_distance=by_distance,
        spread=form.at(0).norm() / len(some),
        compositions=_compositions(weights, head, distance),
        read=_read(weights, head),
    )


def _compositions(weights: LlamaWeights, head: AttentionHead, distance: int) -> tuple[Composition, ...]:
    """The strongest with an earlier head, by queries, keys and values; queries and keys at the distance preferred."""
    earlier = [AttentionHead.of(weights, layer, one) for layer in range(head.layer) for one in range(weights.n_heads)]
    found = []
    for by in _BY if earlier else ():
        values = [head.composition(one, by, distance) for one in earlier]
        best = max(range(len(values)), key=values.__getitem__)
        found.append(Composition(by, earlier[best].layer, earlier[best].head, values[best]))
    return tuple(found)


def _read(weights: LlamaWeights, head: AttentionHead) -> ReadByMLP:
    """The MLP, of its own layer or a later one, whose gate or W_in reads most of what a head writes."""
    layers = range(head.layer, weights.n_layers)
    return max(
        (ReadByMLP(layer, *head.read_by_mlp(weights.layers[layer])) for layer in layers), key=lambda x: max(x[1:])
    )
