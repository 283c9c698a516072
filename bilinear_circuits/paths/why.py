"""Why a head looks from one token at another: the exact ledger of an attention score.

Query and key are linear in the residual streams, the scales of the norms held fixed, so the score is a sum over pairs
of a part at the query and a part at the key. Softmax ignores what all keys share: less their mean over the keys that
the query sees, the terms add up to log A_qk - mean_j log A_qj, the log-odds against the mean key.
"""

from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from bilinear_circuits.paths.forward import causal_mask, norm_scale, rotate, soft_cap
from bilinear_circuits.paths.frozen import Frozen
from bilinear_circuits.paths.nodes import Node, residual_parts
from bilinear_circuits.utilities.display import Shown, Tabled
from bilinear_circuits.utilities.kinds import check_whole


@dataclass(frozen=True, eq=False, repr=False)
class AttentionLedger(Shown, Tabled):
    """The terms of one attention score.

    Attributes:
        layer: Layer of the head.
        head: Head.
        query_pos: Token that looks.
        key_pos: Token that is looked at.
        query_parts: What the residual stream at the query consists of; biases of queries are "constant".
        key_parts: Parts at the keys, named at the key looked at; biases of keys are "constant".
        terms: Product of every part at the query with every one at the key.
        centred: The same less the mean over the keys that the query sees.
        score: Sum of the terms: the score before softmax.
        log_odds: Sum of the centred terms.
        pattern: What the query gives this key.
    """

    layer: int
    head: int
    query_pos: int
    key_pos: int
    query_parts: tuple[Node, ...]
    key_parts: tuple[Node, ...]
    terms: Float[Tensor, "query_part key_part"]
    centred: Float[Tensor, "query_part key_part"]
    score: float
    log_odds: float
    pattern: float

    def by_query(self) -> Float[Tensor, " query_part"]:
        """Centred terms of each part at the query, with all parts at the key."""
        return self.centred.sum(1)

    def by_key(self) -> Float[Tensor, " key_part"]:
        """Centred terms of each part at the key, with all parts at the query."""
        return self.centred.sum(0)

    def top(self, k: int = 10) -> list[tuple[Node, Node, float]]:
        """Name the k centred terms of largest magnitude: part at the query, part at the key, value."""
        flat, n = self.centred.flatten(), len(self.key_parts)
        best = flat.abs().argsort(descending=True, stable=True)[: check_whole("k", k)].tolist()
        return [(self.query_parts[at // n], self.key_parts[at % n], flat[at].item()) for at in best]

    def table(self, k: int = 10) -> dict[str, list[Any]]:
        """The largest terms as columns."""
        rows = self.top(k)
        return {
            "query_part": [str(one) for one, _, _ in rows],
            "key_part": [str(one) for _, one, _ in rows],
            "log_odds": [value for *_, value in rows],
        }


@torch.no_grad()
def explain_attention(frozen: Frozen, layer: int, head: int, query_pos: int, key_pos: int) -> AttentionLedger:
    """Divide an attention score into products of parts at the query and at the key, exactly.

    Parts are the embedding, every earlier head, and every earlier MLP or its features and error. Under a soft cap every
    score is multiplied with its own tanh(s / cap) / (s / cap), held fixed.
    Cost: (parts at the query + parts at all keys) d_model d_head.

    Args:
        frozen: The run.
        layer: Layer of the head.
        head: Head.
        query_pos: Token that looks, counted from the start or, if negative, from the end.
        key_pos: Token that is looked at, likewise.

    Raises:
        ValueError: If there is no such head or token, or the query does not see the key.
    """
    q, k, seen = _checked(frozen, layer, head, query_pos, key_pos)
    nodes, queries, keys = _part_vectors(frozen, layer, head)
    scores = (queries[:, q].sum(0) @ keys[:, seen].sum(0).T) * frozen.weights.scaling
    capped = soft_cap(scores, frozen.weights.score_cap)
    factor = torch.where(scores == 0, torch.ones_like(scores), capped / scores) * frozen.weights.scaling
    weighed = keys[:, seen] * factor.unsqueeze(1)
    here, mean = weighed[:, seen == k].squeeze(1), weighed.mean(1)
    at_query, at_key = queries[:, q].any(1), weighed.any(-1).any(1)
    terms = queries[at_query, q] @ here[at_key].T
    centred = terms - queries[at_query, q] @ mean[at_key].T
    return AttentionLedger(
        layer=layer,
        head=head,
        query_pos=q,
        key_pos=k,
        query_parts=tuple(nodes[i]._replace(position=q) for i in at_query.nonzero().flatten().tolist()),
        key_parts=tuple(nodes[i]._replace(position=k) for i in at_key.nonzero().flatten().tolist()),
        terms=terms,
        centred=centred,
        score=terms.sum().item(),
        log_odds=centred.sum().item(),
        pattern=frozen.patterns[layer, head, q, k].item(),
    )


def _checked(frozen: Frozen, layer: int, head: int, query_pos: int, key_pos: int) -> tuple[int, int, Tensor]:
    """Query and key counted from the start, and the keys that the query sees."""
    n = frozen.n_pos
    layer = check_whole("layer", layer, 0, frozen.n_layers - 1)
    check_whole("head", head, 0, frozen.n_heads - 1)
    q = check_whole("query_pos", query_pos, -n, n - 1) % n
    k = check_whole("key_pos", key_pos, -n, n - 1) % n
    seen = causal_mask(n, frozen.weights.layers[layer].window, frozen.tokens.device)[q].nonzero().flatten()
    if k not in seen.tolist():
        raise ValueError(f"key_pos must be seen by the query at {q}, from {seen[0]} to {seen[-1]}, got {k}.")
    return q, k, seen


def _part_vectors(
    frozen: Frozen, layer: int, head: int
) -> tuple[list[Node], Float[Tensor, "part pos d_head"], Float[Tensor, "part pos d_head"]]:
    """Rotated queries and keys of every part, alike at all tokens, at every token; biases come last."""
    parts = residual_parts(frozen, layer, False, sources=False)
    kinds: dict[Node, int] = {}
    owner = torch.tensor([kinds.setdefault(node._replace(position=None), len(kinds)) for node in parts.nodes])
    one = frozen.weights.layers[layer]
    at, part = parts.weight.nonzero().unbind(1)
    factor = (parts.weight[at, part] / frozen.s1[layer].squeeze(1)[at]).unsqueeze(1)
    found = []
    for W, bias, norm in (
        (one.W_Q[head], one.b_Q[head], one.q_norm),
        (one.W_K[head // one.group], one.b_K[head // one.group], one.k_norm),
    ):
        rows = (parts.rows @ W)[part] * factor
        vectors = rows.new_zeros(len(kinds) + 1, frozen.n_pos, rows.shape[1])
        vectors.index_put_((owner.to(at.device)[part], at), rows, accumulate=True)
        vectors[-1] = bias
        if norm is not None:
            vectors = vectors / norm_scale(vectors.sum(0), frozen.weights.eps) * norm
        found.append(rotate(vectors, frozen.rope))
    return [*kinds, Node("constant", layer)], found[0], found[1]
