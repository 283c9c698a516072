"""What a graph explains: logits at a token, or a feature of a dictionary there."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from numbers import Real
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from bilinear_circuits.circuits.query import CircuitQuery, QueryTokens
from bilinear_circuits.paths.frozen import Frozen
from bilinear_circuits.utilities.display import Brief
from bilinear_circuits.utilities.feature import Feature


@dataclass(frozen=True, eq=False, repr=False)
class Target(Brief):
    """A weighted sum of logits at one token, or the pre-activation of a feature at an MLP output.

    Attributes:
        name: As text.
        position: Token at which it is read, counted from the start of the prompt.
        logits: Weight of each token's logit; empty for a feature.
        feature: Layer and number of a feature, or None.
    """

    name: str
    position: int
    logits: Mapping[int, float]
    feature: Feature | None = None


Asked = int | tuple[int, int] | Mapping[int, float] | QueryTokens | Feature | Target
"""What `target_of` makes a target of."""


@dataclass(frozen=True, eq=False, repr=False)
class Readout(Brief):
    """A target as a linear function of what one place holds: value = direction . x + constant.

    Attributes:
        direction: On the last residual stream, or on the output of the feature's MLP.
        constant: Bias of the logits or of the encoder.
        value: Of this run.
    """

    direction: Float[Tensor, " d_model"]
    constant: float
    value: float


def target_of(frozen: Frozen, asked: Asked, position: int = -1) -> Target:
    """Make a target of what is asked for.

    Args:
        frozen: The run.
        asked: A token; two, for the difference of their logits; weights by token; the poles of a query in the model's
            vocabulary, for the difference of their means; or a `Feature` of a dictionary of the run.
        position: Token at which it is read; the last by default.

    Raises:
        TypeError: If it is none of these, or the position is no int.
        ValueError: If there is no such token, position or feature.
    """
    if isinstance(asked, Target):
        return asked
    if type(position) is not int:
        raise TypeError(f"position must be an int, got {position!r:.40} of type {type(position).__name__}.")
    if not -frozen.n_pos <= position < frozen.n_pos:
        raise ValueError(f"position must be one of the prompt's {frozen.n_pos} tokens, got {position}.")
    position %= frozen.n_pos
    if isinstance(asked, Feature):
        known = {layer: one.d_sae for layer, one in frozen.dictionaries.items()}
        if [*map(type, asked)] != [int, int] or not 0 <= asked.number < known.get(asked.layer, 0):
            raise ValueError(f"target must be a feature of the run's dictionaries {known}, got {asked}.")
        return Target(f"feature {asked} @{position}", position, {}, asked)
    weights = _weights(asked)
    d_vocab = frozen.logits.shape[1]
    if not weights or not all(type(token) is int and 0 <= token < d_vocab for token in weights):
        raise ValueError(f"target must name tokens between 0 and {d_vocab - 1} by ints, got {asked!r:.80}.")
    shown = " ".join(f"{weight:+.3g}*{token}" for token, weight in list(weights.items())[:4])
    return Target(f"logits {shown} @{position}", position, weights)


def _weights(asked: Any) -> dict[int, float]:
    """Weight of each token's logit."""
    if isinstance(asked, QueryTokens):
        poles = ((asked.positive, 1.0), (asked.negative, -1.0))
        return {token: sign / len(pole) for pole, sign in poles for token in pole.tolist()}
    if isinstance(asked, Mapping) and all(_is_number(weight) for weight in asked.values()):
        return {token: float(weight) for token, weight in asked.items()}
    if isinstance(asked, tuple) and len(asked) == 2:
        first, second = asked
        if first == second:
            raise ValueError(f"target must be the difference of two tokens, got {first} twice.")
        return {first: 1.0, second: -1.0}
    if type(asked) is int:
        return {asked: 1.0}
    raise _no_target(asked)


def _is_number(weight: Any) -> bool:
    return isinstance(weight, Real) and not isinstance(weight, bool) and math.isfinite(weight)


def _no_target(got: Any) -> TypeError:
    """What targets there are, and how what was given becomes one."""
    step = ""
    if isinstance(got, CircuitQuery):
        step = (
            " Look its words up: QueryTokens.resolve(query, tokenizer), with QueryTokens from"
            " bilinear_circuits.circuits.query."
        )
    elif isinstance(got, str):
        step = f" Look its id up: tokenizer.convert_tokens_to_ids({got!r:.40})."
    elif isinstance(got, Tensor) and got.numel() == 1:
        step = " Pass int(target)."
    shown = " ".join(repr(got).split())
    return TypeError(
        "target must be a token id (an int), a tuple of two for a difference, finite weights by token id, QueryTokens"
        f" or a Feature, got {shown:.60} of type {type(got).__name__}.{step}"
    )


def readout(frozen: Frozen, target: Target) -> Readout:
    """Make a target linear: the final norm's scale is held fixed, and so is tanh(z / cap) / (z / cap) of a soft cap."""
    t = target.position
    if target.feature is not None:
        dictionary, a = frozen.dictionaries[target.feature.layer], target.feature.number
        direction, constant = dictionary.W_enc[:, a], dictionary.b_enc[a].item()
        value = frozen.mlp_out[target.feature.layer, t] @ direction + constant
        return Readout(direction, constant, value.item())
    tokens = torch.tensor(list(target.logits), device=frozen.tokens.device)
    weight = torch.tensor(list(target.logits.values())).to(frozen.logits)
    U, bias, scale = frozen.weights.W_U[:, tokens], frozen.weights.b_U[tokens], frozen.s_final[t]
    bare = frozen.resid_pre[-1, t] / scale @ U + bias
    capped = frozen.logits[t, tokens]
    if frozen.weights.logit_cap is not None:
        weight = weight * torch.where(bare == 0, torch.ones_like(bare), capped / bare)
    return Readout(U @ weight / scale, (bias @ weight).item(), (bare @ weight).item())


def read_target(target: Target, logits: Float[Tensor, "*n d_vocab"]) -> Float[Tensor, "*n"]:
    """Read a target that consists of logits off logits at its token."""
    tokens = torch.tensor(list(target.logits), device=logits.device)
    return logits[..., tokens] @ torch.tensor(list(target.logits.values())).to(logits)
