"""Stability of circuits: which of them return in other dictionaries or models, matched by function.

1. Every circuit of the first set is compared with all output features of the second (`likeness`): with those of its
   layer where both sets belong to one model, with those of all layers where they do not.
2. The best match has a percentile: the share of random features of its layer whose own best match is worse. That says
   whether circuits return better than features do in general.
3. It has a p-value too: the same search after shifting one side's tokens against the other's by a random number, which
   keeps how often and in what runs a feature is active, and breaks only what it is active on.
4. It is mutual where the circuit is the best match of its match. Last, the two sets of circuits are assigned to each
   other, one to one, so that the sum of their likenesses is largest (Kuhn 1955, by `scipy`).
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import get_args

import torch
from jaxtyping import Float
from scipy.optimize import linear_sum_assignment
from torch import Tensor

from bilinear_circuits.comparison.likeness import (
    ANY_MODEL,
    SAME_MLP,
    CircuitSet,
    Likeness,
    Measure,
    activations,
    compare_features,
    correlation_with_all,
    pair_likeness,
    same_mlp,
)
from bilinear_circuits.utilities.display import Result
from bilinear_circuits.utilities.feature import Feature
from bilinear_circuits.utilities.progress import Progress, silent

MIN_ACTIVE, MAX_P_VALUE = 10, 0.05
_ROUNDING = 1e-6


@dataclass(frozen=True)
class Match:
    """A circuit and the feature of the other set that is most like it.

    Attributes:
        circuit: The circuit, as "layer/feature".
        match: The feature of the other set.
        is_circuit: Whether that feature is among the other set's circuits.
        mutual: Whether the circuit is the most alike of all features of its own set to its match.
        likeness: How alike they are.
        percentile: Share of random features of the circuit's layer whose best match is less alike, ties counted half.
        chance: Largest correlation with any candidate after a shift of the tokens, median over the shifts.
        p_value: (1 + shifts that find a correlation at least as large as the match's) / (1 + shifts).
        returns: Mutual, p_value at most `MAX_P_VALUE` and correlation at least the threshold of the comparison.
    """

    circuit: str
    match: str
    is_circuit: bool
    mutual: bool
    likeness: Likeness
    percentile: float
    chance: float
    p_value: float
    returns: bool


@dataclass(frozen=True)
class Pair:
    """Two circuits assigned to each other."""

    first: str
    second: str
    likeness: Likeness


@dataclass(frozen=True)
class Stability:
    """Which circuits of one set return in another.

    Attributes:
        first: Name of the set whose circuits are looked for.
        second: Name of the set they are looked for in.
        by: Measure that matches were chosen by.
        matches: One for every circuit of the first set.
        assignment: Circuits of both sets, one to one.
        threshold: Least correlation of a circuit that returns.
        n_tokens: Tokens of the corpus.
        n_null: Random features of each layer.
        n_shifts: Shifts of the tokens.
        seed: Seed of both.
    """

    first: str
    second: str
    by: str
    matches: tuple[Match, ...]
    assignment: tuple[Pair, ...]
    threshold: float
    n_tokens: int
    n_null: int
    n_shifts: int
    seed: int

    @property
    def n_returned(self) -> int:
        """Circuits of the first set that return."""
        return sum(match.returns for match in self.matches)


@dataclass(frozen=True, repr=False)
class StabilityTable(Result):
    """The circuits of one set looked for in several others.

    Attributes:
        comparisons: One for each of the others.
    """

    comparisons: tuple[Stability, ...]


@torch.no_grad()
def compare_circuits(
    first: CircuitSet,
    second: CircuitSet,
    by: Measure = "activation",
    threshold: float = 0.5,
    n_null: int = 64,
    n_shifts: int = 99,
    seed: int = 0,
    progress: Progress = silent,
) -> Stability:
    """Look for the circuits of one set in another, on the same tokens.

    Args:
        first: Circuits to look for.
        second: Where to look.
        by: Measure that chooses the matches; one of weights only between dictionaries on the same MLPs.
        threshold: Least correlation of activations of a circuit that returns.
        n_null: Random features of each layer for the percentiles, of those active at more than ten tokens.
        n_shifts: Shifts of the tokens for the p-values.
        seed: Seed of both.
        progress: Wraps the circuits.

    Raises:
        ValueError: If the two were not run on the same tokens, a circuit has no candidate by this measure, or a number
            is out of range.
    """
    check_settings(by, threshold, n_null, n_shifts)
    n_tokens = _shared_tokens(first, second)
    if by in SAME_MLP and not any(same_mlp(a, b) for a in first.activity for b in second.activity):
        raise ValueError(f"by must be {', '.join(ANY_MODEL)} between different models, got {by}.")
    generator = torch.Generator().manual_seed(seed)
    shifts = torch.randint(n_tokens // 8, n_tokens - n_tokens // 8, (n_shifts,), generator=generator).tolist()
    nulls = {
        layer: _null(first, layer, second, by, n_null, generator)
        for layer in dict.fromkeys(layer for layer, _ in first.circuits)
    }
    matches = tuple(
        _match(first, circuit, second, by, nulls[circuit[0]], shifts, threshold)
        for circuit in progress(first.circuits, "match circuits")
    )
    return Stability(
        first.name, second.name, by, matches, _assign(first, second, by), threshold, n_tokens, n_null, n_shifts, seed
    )


def _match(
    first: CircuitSet,
    circuit: tuple[int, int],
    second: CircuitSet,
    by: Measure,
    null: Float[Tensor, " n_null"],
    shifts: Sequence[int],
    threshold: float,
) -> Match:
    row = _table(first, [circuit], second, by)[0]
    if (row == -torch.inf).all():
        raise ValueError(
            f"circuits of {first.name} must have a candidate in {second.name} by {by}, got {Feature(*circuit)} without:"
            " it is never active on this corpus, or its layer has no dictionaries there."
        )
    best = second.features[int(row.argmax())]
    alike = pair_likeness(first.one(circuit), second.one(best))
    back = _table(second, [best], first, by)[0]
    mutual = first.features[int(back.argmax())] == circuit
    chance = _shifted(first, circuit, second, shifts)
    p_value = (1 + int((chance >= alike.activation).sum())) / (1 + len(shifts))
    return Match(
        circuit=str(Feature(*circuit)),
        match=str(Feature(*best)),
        is_circuit=best in second.circuits,
        mutual=mutual,
        likeness=alike,
        percentile=_percentile(row.max(), null),
        chance=chance.median().item(),
        p_value=p_value,
        returns=mutual and p_value <= MAX_P_VALUE and alike.activation >= threshold,
    )


def _table(
    first: CircuitSet, features: Sequence[tuple[int, int]], second: CircuitSet, by: Measure
) -> Float[Tensor, "n n_second"]:
    """One measure of some features of the first against all of the second; minus infinity where it cannot be taken."""
    rows = torch.full((len(features), len(second.features)), -torch.inf, dtype=torch.double)
    for layer in dict.fromkeys(layer for layer, _ in features):
        index = [i for i, feature in enumerate(features) if feature[0] == layer]
        side = first.side(layer, [features[i][1] for i in index])
        for other in _candidates(first, layer, second):
            start = second.offset(other)
            values = compare_features(by, side, second.side(other)).cpu()
            rows[index, start : start + values.shape[1]] = values.nan_to_num(-torch.inf)
    return rows


def _candidates(first: CircuitSet, layer: int, second: CircuitSet) -> list[int]:
    """Layers of the second where a feature of a layer of the first may return: its own, or all in another model."""
    shared = [
        layer_activity.interactions.mlp.layer
        for layer_activity in first.activity
        for other in second.activity
        if same_mlp(layer_activity, other)
    ]
    if not shared:
        return second.layers
    return [layer] if layer in shared else []


def _null(
    first: CircuitSet, layer: int, second: CircuitSet, by: Measure, n: int, generator: torch.Generator
) -> Float[Tensor, " n_null"]:
    """Likeness of random features of a layer, no circuits, to their best matches."""
    counts = first.side(layer).activity.outputs.counts.cpu()
    alive = [f for f in (counts > MIN_ACTIVE).nonzero().squeeze(1).tolist() if (layer, f) not in first.circuits]
    chosen = torch.randperm(len(alive), generator=generator)[:n].tolist()
    return _table(first, [(layer, alive[i]) for i in chosen], second, by).amax(1)


def _shifted(
    first: CircuitSet, circuit: tuple[int, int], second: CircuitSet, shifts: Sequence[int]
) -> Float[Tensor, " n_shifts"]:
    """Largest correlation of a circuit with any candidate, after each shift of its tokens."""
    side = first.one(circuit)
    z = activations(side.activity, side.features)[:, 0]
    moved = torch.stack([z.roll(shift) for shift in shifts], 1)
    best = [
        correlation_with_all(moved, second.side(layer).activity.outputs).nan_to_num(-1).amax(1)
        for layer in _candidates(first, circuit[0], second)
    ]
    return torch.stack(best).amax(0).cpu()


def _percentile(value: Tensor, null: Float[Tensor, " n_null"]) -> float:
    """Share of the null below a value; what differs from it by rounding alone is a tie, and counts half."""
    tied = (null - value).abs() < _ROUNDING
    return (((null < value) & ~tied).double() + tied.double() / 2).mean().item()


def _assign(first: CircuitSet, second: CircuitSet, by: Measure) -> tuple[Pair, ...]:
    """The circuits of both sets, one to one, as alike as they can be; those that cannot be compared are left out."""
    columns = [second.features.index(Feature(*circuit)) for circuit in second.circuits]
    scores = _table(first, first.circuits, second, by)[:, columns]
    comparable = scores > -torch.inf
    rows, columns = linear_sum_assignment(scores.where(comparable, -2).numpy(), maximize=True)
    return tuple(
        Pair(str(Feature(*one)), str(Feature(*other)), pair_likeness(first.one(one), second.one(other)))
        for one, other in (
            (first.circuits[i], second.circuits[j])
            for i, j in zip(rows.tolist(), columns.tolist(), strict=True)
            if comparable[i, j]
        )
    )


def check_settings(by: str, threshold: float, n_null: int, n_shifts: int) -> None:
    """Refuse settings of `compare_circuits` before anything is run.

    Raises:
        ValueError: If one is unknown or out of range.
    """
    for name, value in (("n_null", n_null), ("n_shifts", n_shifts)):
        if value < 1:
            raise ValueError(f"{name} must be at least 1, got {value}.")
    if not -1 <= threshold <= 1:
        raise ValueError(f"threshold must be a correlation between -1 and 1, got {threshold}.")
    if by not in get_args(Measure):
        raise ValueError(f"by must be one of {', '.join(get_args(Measure))}, got {by}.")


def _shared_tokens(first: CircuitSet, second: CircuitSet) -> int:
    """How many tokens both were run on; others are refused."""
    one, other = (side.activity[0].token_ids.cpu() for side in (first, second))
    if not torch.equal(one, other):
        raise ValueError(
            f"second must be run on the tokens of first, {first.name} with {len(one)} tokens, got {second.name} with"
            f" {len(other)}{' others' if len(one) == len(other) else ''}. Use stories and context of one kind, and"
            " models of one tokenizer."
        )
    return len(one)
