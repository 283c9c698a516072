"""Correlations and slopes, in float64."""

import math

import torch
from jaxtyping import Bool, Float
from scipy.stats import rankdata
from torch import Tensor


def correlation(x: Float[Tensor, "*n"], y: Float[Tensor, "*n"]) -> float:
    """Pearson correlation of two arrays; NaN where either is constant or holds fewer than two values."""
    x, y = x.double().flatten(), y.double().flatten()
    if len(x) < 2:
        return math.nan
    x, y = x - x.mean(), y - y.mean()
    size = (x.norm() * y.norm()).item()
    return (x @ y).item() / size if size > 0 else math.nan


def rank_correlation(x: Float[Tensor, " n"], y: Float[Tensor, " n"]) -> float:
    """Spearman's rank correlation: the Pearson correlation of ranks, equal values sharing the mean of theirs."""
    return correlation(*(torch.from_numpy(rankdata(one.double().cpu().numpy())) for one in (x, y)))


def slope(predicted: Float[Tensor, "*n"], measured: Float[Tensor, "*n"]) -> float:
    """Measured per unit predicted: the least-squares line through the origin; NaN where nothing is predicted."""
    size = predicted.double().square().sum().item()
    return (predicted.double() * measured.double()).sum().item() / size if size > 0 else math.nan


def pearson(predicted: Float[Tensor, "n k"], actual: Float[Tensor, " n"]) -> Float[Tensor, " k"]:
    """Pearson correlation of each column with a vector. NaN where either is constant."""
    everywhere = torch.ones(1, len(actual), dtype=torch.bool, device=actual.device)
    return masked_pearson(predicted.unsqueeze(0), actual.unsqueeze(0), everywhere)[0]


def masked_pearson(
    predicted: Float[Tensor, "batch n k"], actual: Float[Tensor, "batch n"], present: Bool[Tensor, "batch n"]
) -> Float[Tensor, "batch k"]:
    """Pearson correlation of each column with a vector over the entries present. NaN where either is constant."""
    weight = present.unsqueeze(2).double()
    centred = []
    for values in (predicted.double(), actual.unsqueeze(2).double()):
        mean = (values * weight).sum(1, keepdim=True) / weight.sum(1, keepdim=True)
        centred.append((values - mean) * weight)
    left, right = centred
    return (left * right).sum(1) / (left.norm(dim=1) * right.norm(dim=1))
