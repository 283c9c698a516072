"""Effects of removing parts of a run: predicted with norms alive, and real.

The flow accounts for a value; it does not predict what a removal does, because every norm rescales what is left. The
prediction here holds patterns and gate factors fixed and computes all norms again; the real effect computes everything
again. A removed head, MLP or embedding is zero where it is removed. A removed feature, error, bias or pair takes away
from the residual stream what it wrote in this run.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from bilinear_circuits.paths.forward import (
    attention_pattern,
    final_logits,
    gate_factor,
    gates_and_inputs,
    head_values,
    norm_scale,
    write_heads,
)
from bilinear_circuits.paths.frozen import Frozen, out_scale, written_by
from bilinear_circuits.paths.nodes import Node
from bilinear_circuits.paths.removal import Pair, Removal, Removed, removal_of
from bilinear_circuits.paths.target import Asked, Target, read_target, target_of
from bilinear_circuits.statistics.correlations import correlation, slope
from bilinear_circuits.utilities.display import Shown, Tabled

_NUMBERS_AT_ONCE = 1 << 24


@dataclass(frozen=True, eq=False, repr=False)
class Effects(Shown, Tabled):
    """Changes of a target when parts of a run are removed.

    Attributes:
        removed: What each run removed, as text.
        predicted: Change with patterns and gate factors fixed and norms computed again.
        real: Change in the model.
        value: The target without a removal.
    """

    removed: tuple[str, ...]
    predicted: Float[Tensor, " run"]
    real: Float[Tensor, " run"]
    value: float

    @property
    def correlation(self) -> float:
        """Pearson correlation of predicted and real."""
        return correlation(self.predicted, self.real)

    @property
    def slope(self) -> float:
        """Real change per unit predicted: the least-squares line through the origin."""
        return slope(self.predicted, self.real)

    def table(self) -> dict[str, list[Any]]:
        """One row for each run."""
        return {"removed": [*self.removed], "predicted": self.predicted.tolist(), "real": self.real.tolist()}


@torch.no_grad()
def measure_effects(
    frozen: Frozen, asked: Asked, remove: Sequence[Removed] | Node | Pair, position: int = -1
) -> Effects:
    """Remove parts of a run, each in two runs of its own: one predicted, one real.

    Cost: two forward passes for each, in batches.

    Args:
        frozen: The run.
        asked: See `target_of`.
        remove: Nodes, pairs, or sequences of them that are removed together; or one alone. A head or an MLP without a
            position is removed at all tokens, and a head without a source from all of them.
        position: Token at which the target is read.

    Raises:
        ValueError: See `target_of` and `removal_of`, which raise TypeErrors too.
    """
    target, removal = target_of(frozen, asked, position), removal_of(frozen, remove)
    if target.feature is not None:
        _check_beside(removal, target.feature.layer, target.position)
    layers = frozen.weights.layers
    width = max(layers[0].W_gate.shape[1], frozen.n_heads * frozen.n_pos, frozen.weights.d_model)
    step = max(1, _NUMBERS_AT_ONCE // (frozen.n_pos * width))
    parts = [removal.select(at, at + step) for at in range(0, len(removal.rows), step)]
    predicted, real = (torch.cat([_values(frozen, target, one, live) for one in parts]) for live in (False, True))
    value = _values(frozen, target, Removal(frozen, ((),)), False)
    names = tuple(" + ".join(map(str, row)) for row in removal.rows)
    return Effects(names, predicted - value, real - value, value.item())


def _check_beside(removal: Removal, layer: int, position: int) -> None:
    """Refuse pairs of the MLP that a target feature reads: they are taken out of the residual stream behind it."""
    for one in (one for row in removal.rows for one in row):
        if isinstance(one, Pair) and (one.mlp.layer, one.mlp.position) == (layer, position):
            raise ValueError(
                f"remove must hold no pairs of the MLP that the target feature reads, got {one}: what they add to the"
                " feature is graph.pairs(node)."
            )


def _values(frozen: Frozen, target: Target, removal: Removal, live: bool) -> Tensor:
    """The target in every run."""
    if target.feature is None:
        x = rerun(frozen, removal, live)[1][:, target.position]
        return read_target(target, final_logits(x, norm_scale(x, frozen.weights.eps), frozen.weights))
    layer, feature = target.feature
    dictionary = frozen.dictionaries[layer]
    y = rerun(frozen, removal, live)[0][layer][:, target.position]
    return y @ dictionary.W_enc[:, feature] + dictionary.b_enc[feature]


def rerun(
    frozen: Frozen, removal: Removal, live: bool
) -> tuple[list[Float[Tensor, "row pos d_model"]], Float[Tensor, "row pos d_model"]]:
    """Run the prompt once for each removal, all norms computed again, patterns and gate factors only if `live`.

    Returns:
        What each MLP writes, and the last residual stream.
    """
    x, outputs, eps = removal.embedded(), [], frozen.weights.eps
    for layer, one in enumerate(frozen.weights.layers):
        normed = x / norm_scale(x, eps)
        pattern = attention_pattern(normed, one, frozen.weights, frozen.rope) if live else frozen.patterns[layer]
        if (kept := removal.messages(layer)) is not None:
            pattern = pattern * kept
        written = write_heads(pattern @ head_values(normed, one), one)
        x = x + written_by(written, out_scale(written, one.attention_out_norm, eps), one.attention_out_norm)
        x = x + removal.change(layer, mid=True)
        gates, inputs = gates_and_inputs(x / norm_scale(x, eps), one)
        sigma = gate_factor(gates, one.act) if live else frozen.sigma[layer]
        y = (sigma * gates if inputs is None else sigma * gates * inputs) @ one.W_out + one.b_out
        if (kept := removal.mlps(layer)) is not None:
            y = y * kept
        x = x + written_by(y, out_scale(y, one.mlp_out_norm, eps), one.mlp_out_norm)
        x = x + removal.change(layer, mid=False)
        outputs.append(y)
    return outputs, x
