"""The smallest set of pairs that holds most of the mass, and the run of a prompt with these pairs alone."""

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from bilinear_circuits.algebra.halves import pair_blocks
from bilinear_circuits.paths.flow import Flow
from bilinear_circuits.paths.forward import head_values, write_heads
from bilinear_circuits.paths.frozen import Frozen, written_by
from bilinear_circuits.paths.nodes import Node
from bilinear_circuits.paths.pairs import project
from bilinear_circuits.paths.target import Target, readout
from bilinear_circuits.utilities.display import Brief, Shown, Tabled
from bilinear_circuits.utilities.kinds import check_share

MOST_PAIRS = 1 << 25


@dataclass(frozen=True, eq=False, repr=False)
class KeptPairs(Shown, Tabled):
    """The smallest set of pairs with a share of the mass, largest first.

    Attributes:
        layer: Layer of each pair's MLP.
        position: Token.
        first: One part, counted among the parts of the MLP input at that token.
        second: The other.
        value: Flow.
        n_pairs: All pairs that there are.
        mass: Sum of the magnitudes of all.
        total: Sum of all.
        sources: Whether a head's messages from different tokens are different parts.
    """

    layer: Int[Tensor, " kept"]
    position: Int[Tensor, " kept"]
    first: Int[Tensor, " kept"]
    second: Int[Tensor, " kept"]
    value: Float[Tensor, " kept"]
    n_pairs: int
    mass: float
    total: float
    sources: bool

    @property
    def share_of_pairs(self) -> float:
        """Share of all pairs that is kept."""
        return len(self.value) / max(self.n_pairs, 1)

    @property
    def share_of_mass(self) -> float:
        """Share of the mass that they hold."""
        return self.value.abs().sum().item() / self.mass if self.mass else 1.0

    def table(self) -> dict[str, list[Any]]:
        """The pairs kept as columns, parts by number; `named` gives the largest their names."""
        names = ("layer", "position", "first", "second", "value")
        return {name: getattr(self, name).tolist() for name in names}

    def named(self, frozen: Frozen, k: int = 20) -> list[tuple[Node, Node, Node, float]]:
        """Name the k largest: the MLP, the two parts, and the flow. Cost: the parts of each MLP named, once."""
        found, known = [], {}
        for at in range(min(k, len(self.value))):
            layer, t = int(self.layer[at]), int(self.position[at])
            if (layer, t) not in known:
                known[layer, t] = project(frozen, layer, self.sources).names(t)
            names = known[layer, t]
            ends = (names[int(self.first[at])], names[int(self.second[at])])
            found.append((Node("mlp", layer, t), *ends, self.value[at].item()))
        return found


@dataclass(frozen=True, eq=False, repr=False)
class PrunedRun(Brief):
    """A run of the frozen model in which MLPs consist of the pairs kept alone.

    Attributes:
        kept: The pairs.
        value: Value of the target.
        full: Its value with all pairs.
        logits: Logits at the target's token, before a soft cap, with the final norm's scale held fixed; None of a
            feature, behind which nothing is kept.
        full_logits: Those with all pairs.
    """

    kept: KeptPairs
    value: float
    full: float
    logits: Float[Tensor, " d_vocab"] | None
    full_logits: Float[Tensor, " d_vocab"] | None

    @property
    def share(self) -> float:
        """Share of the target that is left."""
        return self.value / self.full

    @property
    def keeps_argmax(self) -> bool | None:
        """True if the most likely token stays; None where there are no logits."""
        if self.logits is None or self.full_logits is None:
            return None
        return bool(self.logits.argmax() == self.full_logits.argmax())

    @property
    def kl(self) -> float:
        """Kullback-Leibler divergence of the pruned distribution from the full one, nats; nan without logits."""
        if self.logits is None or self.full_logits is None:
            return math.nan
        full, pruned = self.full_logits.log_softmax(-1), self.logits.log_softmax(-1)
        return (full.exp() * (full - pruned)).sum().item()


def all_pairs(frozen: Frozen, flow: Flow, sources: bool) -> Iterator[tuple[int, int, int, Tensor]]:
    """All pairs of all gated MLPs with a flow: layer, token, number of parts, and values by rows of the upper triangle.

    Raises:
        ValueError: If there are too many parts to hold.
    """
    for layer, one in enumerate(frozen.weights.layers):
        if one.W_in is None or not flow.c_mlp[layer].any():
            continue
        projected = project(frozen, layer, sources)
        for t in flow.c_mlp[layer].any(-1).nonzero().flatten().tolist():
            gate, inputs = projected.at(t)
            w = frozen.sigma[layer, t] * (one.W_out @ flow.c_mlp[layer, t])
            values = []
            for _, block in pair_blocks(gate, inputs, w):
                rows, columns = torch.triu_indices(*block.shape, device=block.device)
                values.append(block[rows, columns])
            yield layer, t, len(gate), torch.cat(values)


def largest_pairs(frozen: Frozen, flow: Flow, q: float, sources: bool) -> KeptPairs:
    """Find the smallest set of pairs that holds a share q of the sum of all magnitudes. See `PromptGraph.mass`."""
    n_pairs, places, values = 0, [], []
    for layer, t, n, some in all_pairs(frozen, flow, sources):
        n_pairs += len(some)
        refuse_too_many("pairs", n_pairs, frozen.n_pos, sources)
        places.append((layer, t, n, len(some)))
        values.append(some)
    flat = torch.cat(values) if values else frozen.embedded.new_zeros(0)
    kept, mass = covering(flat, q)
    ends = torch.tensor([count for *_, count in places], dtype=torch.long).cumsum(0)
    place = torch.bucketize(kept.cpu(), ends, right=True)
    columns = torch.tensor([one[:3] for one in places], dtype=torch.long).reshape(-1, 3)[place]
    starts = ends - torch.tensor([count for *_, count in places], dtype=torch.long)
    first, second = _unravel(kept.cpu() - starts[place], columns[:, 2])
    return KeptPairs(columns[:, 0], columns[:, 1], first, second, flat[kept], n_pairs, mass, flat.sum().item(), sources)


def refuse_too_many(what: str, n: int, n_pos: int, sources: bool) -> None:
    """Refuse more pairs or edges than are meant to be held together.

    Raises:
        ValueError: If there are more than 2^25.
    """
    if n > MOST_PAIRS:
        raise ValueError(
            f"{what} must be at most {MOST_PAIRS} to be held together, got more for {n_pos} tokens."
            + (" Make the graph with sources=False." if sources else " Shorten the prompt.")
        )


def covering(values: Float[Tensor, " n"], q: float) -> tuple[Int[Tensor, " kept"], float]:
    """Find the fewest values that hold a share q of the sum of all magnitudes, largest first, and that sum.

    Raises:
        ValueError: If q is not above 0 and at most 1.
    """
    check_share("q", q)
    size, order = values.abs().sort(descending=True)
    covered = size.double().cumsum(0)
    mass = covered[-1].item() if len(covered) else 0.0
    return order[: len(values) if q == 1 else int((covered < q * mass).sum()) + 1], mass


def _unravel(at: Tensor, n: Tensor) -> tuple[Tensor, Tensor]:
    """Row and column of an entry of the upper triangle of an n x n matrix, counted by rows."""
    # Row i starts at i n - i (i - 1) / 2; the root is exact up to rounding, which one step either way mends.
    b = (2 * n + 1).double()
    row = ((b - (b.square() - 8 * at.double()).sqrt()) / 2).floor().long()
    start = row * n - row * (row - 1) // 2
    row = row - (start > at).long()
    row = row + (at >= (row + 1) * n - (row + 1) * row // 2).long()
    return row, at - (row * n - row * (row - 1) // 2) + row


@torch.no_grad()
def run_pruned(frozen: Frozen, target: Target, kept: KeptPairs) -> PrunedRun:
    """Run the frozen model with the pairs kept alone: layer by layer, on what pruned layers before wrote.

    Biases of MLPs stay, and MLPs without a gate are whole. Cost: as much as all pairs.
    """
    state = replace(frozen, values=frozen.values.clone(), mlp_out=torch.zeros_like(frozen.mlp_out))
    x = frozen.embedded
    for layer, one in enumerate(frozen.weights.layers):
        state.values[layer] = head_values(x / frozen.s1[layer], one)
        mixed = write_heads(frozen.patterns[layer] @ state.values[layer], one)
        x = x + written_by(mixed, frozen.t1[layer], one.attention_out_norm)
        if one.W_in is None:
            gates = x / frozen.s2[layer] @ one.W_gate + one.b_gate
            state.mlp_out[layer] = (frozen.sigma[layer] * gates) @ one.W_out + one.b_out
        else:
            state.mlp_out[layer] = _pruned_mlp(state, layer, kept)
        x = x + written_by(state.mlp_out[layer], frozen.t2[layer], one.mlp_out_norm)
    asked, t = readout(frozen, target), target.position
    place = x if target.feature is None else state.mlp_out[target.feature.layer]
    value = (place[t] @ asked.direction).item() + asked.constant
    if target.feature is not None:
        return PrunedRun(kept, value, asked.value, None, None)
    logits, full = (
        stream[t] / frozen.s_final[t] @ frozen.weights.W_U + frozen.weights.b_U for stream in (x, frozen.resid_pre[-1])
    )
    return PrunedRun(kept, value, asked.value, logits, full)


def _pruned_mlp(state: Frozen, layer: int, kept: KeptPairs) -> Tensor:
    """Output of an MLP of the pairs kept, at every token."""
    one, here = state.weights.layers[layer], (kept.layer == layer).nonzero().flatten()
    projected = project(state, layer, kept.sources)
    neurons = torch.zeros_like(state.sigma[layer])
    for t in kept.position[here].unique().tolist():
        chosen = here[kept.position[here] == t]
        gate, inputs = projected.at(t)
        first, second = kept.first[chosen], kept.second[chosen]
        mask = gate.new_zeros(len(gate), len(gate))
        mask[first, second] = mask[second, first] = 1
        neurons[t] = (gate * (mask @ inputs)).sum(0)
    return (state.sigma[layer] * neurons) @ one.W_out + one.b_out
