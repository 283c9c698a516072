"""What the weights predict of an intervention: the direct path from an MLP's output to the logits; rank correlation."""

import math
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from bilinear_circuits.circuits.query import QueryTokens
from bilinear_circuits.interventions.sites import SiteRuns
from bilinear_circuits.running import hooked, is_plain_llama, unembedding


def pole_direction(directions: Float[Tensor, "d_model d_vocab"], tokens: QueryTokens) -> Float[Tensor, " d_model"]:
    """Direction of the normalised residual stream that moves the positive pole against the negative, in float64."""
    return tokens.difference(directions.double())


@torch.no_grad()
def final_scale(runs: SiteRuns) -> Float[Tensor, " site"]:
    """What the final norm divides the residual stream by at every site, in the model as it is.

    Read off the norm itself: with U the unembedding that has the norm's weight folded in, x U / scale is what the
    normalised stream writes to the logits, whatever the norm's epsilon, weight and centring are.
    """
    model: Any = runs.model
    plain = is_plain_llama(model)
    norm = model.model.norm if plain else getattr(model, "ln_final", None)
    if norm is None:
        return torch.ones(len(runs), dtype=torch.double)
    seen: list[tuple[Tensor, Tensor]] = []
    with hooked([(norm, lambda module, args, output: seen.append((args[0].detach(), output.detach())))]):
        at = runs.run_whole()
    x, y = (torch.cat([one[side][where] for one, where in zip(seen, at, strict=True)]).double() for side in range(2))
    written = (y - norm(torch.zeros_like(seen[0][0]))[0, 0].double()) @ (
        model.lm_head.weight.T if plain else model.W_U
    ).double()
    expected = x @ unembedding(model).double()
    return (expected.square().sum(1) / (expected * written).sum(1)).cpu()


def ranks(values: Float[Tensor, " n"]) -> Float[Tensor, " n"]:
    """Ranks from 1 up; equal values share the mean of theirs."""
    ordered, order = values.double().sort()
    first = torch.searchsorted(ordered, ordered, right=False).double()
    last = torch.searchsorted(ordered, ordered, right=True).double()
    out = torch.empty_like(ordered)
    out[order] = (first + last + 1) / 2
    return out


def correlation(x: Float[Tensor, "*n"], y: Float[Tensor, "*n"]) -> float:
    """Pearson correlation of two arrays, in float64; NaN where either is constant or holds fewer than two values."""
    x, y = x.double().flatten(), y.double().flatten()
    if len(x) < 2:
        return math.nan
    x, y = x - x.mean(), y - y.mean()
    size = (x.norm() * y.norm()).item()
    return (x @ y).item() / size if size > 0 else math.nan


def rank_correlation(x: Float[Tensor, " n"], y: Float[Tensor, " n"]) -> float:
    """Spearman's rank correlation, ties handled: the Pearson correlation of mean ranks."""
    return correlation(ranks(x), ranks(y))


def slope(predicted: Float[Tensor, "*n"], measured: Float[Tensor, "*n"]) -> float:
    """Measured per unit predicted: the least-squares line through the origin; NaN where nothing is predicted."""
    size = predicted.double().square().sum().item()
    return (predicted.double() * measured.double()).sum().item() / size if size > 0 else math.nan
