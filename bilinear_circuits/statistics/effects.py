"""Means with bootstrap intervals."""

import math
from dataclasses import dataclass

import torch
from jaxtyping import Float, Num
from torch import Tensor

N_BOOTSTRAP = 2000


@dataclass(frozen=True)
class Effect:
    """A mean with a 95 % percentile bootstrap interval.

    Attributes:
        mean: The mean.
        low: Lower end.
        high: Upper end.
        n: Number of units resampled: stories, or control features.
    """

    mean: float
    low: float
    high: float
    n: int

    @property
    def excludes_zero(self) -> bool:
        """True if the interval lies on one side of zero."""
        return self.low > 0 or self.high < 0


def bootstrap(values: Float[Tensor, " n"], generator: torch.Generator) -> Effect:
    """Mean of independent values with its interval, which is NaN for fewer than two values."""
    if len(values) < 2:
        return Effect(values.mean().item(), math.nan, math.nan, len(values))
    draw = torch.randint(len(values), (N_BOOTSTRAP, len(values)), generator=generator)
    return effect_of(values.mean(), values[draw].mean(1), len(values))


def bootstrap_ratio(above: Float[Tensor, " n"], below: Num[Tensor, " n"], generator: torch.Generator) -> Effect:
    """Ratio of two sums over the same units with its interval, which is NaN for fewer than two units."""
    ratio = above.sum() / below.sum()
    if len(above) < 2:
        return Effect(ratio.item(), math.nan, math.nan, len(above))
    draw = torch.randint(len(above), (N_BOOTSTRAP, len(above)), generator=generator)
    return effect_of(ratio, above[draw].sum(1) / below[draw].sum(1), len(above))


def bootstrap_rows(values: Float[Tensor, "row n"], generator: torch.Generator) -> Effect:
    """Mean of a table with an interval that resamples rows and columns."""
    if values.numel() == 0:
        return Effect(math.nan, math.nan, math.nan, len(values))
    n_rows, n = values.shape
    rows = torch.randint(n_rows, (N_BOOTSTRAP, n_rows, 1), generator=generator)
    columns = torch.randint(n, (N_BOOTSTRAP, 1, n), generator=generator)
    return effect_of(values.mean(), values[rows, columns].mean((1, 2)), n_rows)


def effect_of(mean: Float[Tensor, ""], draws: Float[Tensor, " draw"], n: int) -> Effect:
    """An effect from its estimate and bootstrap draws of it."""
    low, high = draws.quantile(torch.tensor([0.025, 0.975], dtype=draws.dtype)).tolist()
    return Effect(mean.item(), low, high, n)
