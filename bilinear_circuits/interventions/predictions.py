"""What the weights predict of an intervention: the direct path from an MLP's output to the logits; rank correlation."""

import math

import torch
from jaxtyping import Float
from torch import Tensor

from bilinear_circuits.circuits.query import QueryTokens
from bilinear_circuits.models.running import final_norm, final_norm_scale, hooked, model_device, run_logits
from bilinear_circuits.runs import Runs


def pole_direction(directions: Float[Tensor, "d_model d_vocab"], tokens: QueryTokens) -> Float[Tensor, " d_model"]:
    """Direction of the normalised residual stream that moves the positive pole against the negative, in float64."""
    return tokens.difference(directions.double())


@torch.no_grad()
def final_scale(runs: Runs[QueryTokens]) -> Float[Tensor, " site"]:
    """What the final norm divides the residual stream by at every site, in the model as it is."""
    norm = final_norm(runs.model)
    if norm is None:
        return torch.ones(len(runs), dtype=torch.double)
    seen: list[Tensor] = []
    batches = runs.sites.batches()
    with hooked([(norm, lambda module, args, output: seen.append(args[0].detach()))]):
        for batch in batches:
            run_logits(runs.model, batch.ids.to(model_device(runs.model)))
    residual = torch.cat([one[batch.at] for one, batch in zip(seen, batches, strict=True)])
    return final_norm_scale(runs.model, residual).cpu()


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
