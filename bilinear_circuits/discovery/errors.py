"""Error control: p-values from null scores, and the false-discovery rate over all of them."""

import torch
from jaxtyping import Bool, Float
from torch import Tensor


def empirical_p_values(scores: Float[Tensor, " n"], null: Float[Tensor, " m"]) -> Float[Tensor, " n"]:
    """(1 + null scores at least as large) / (1 + null scores), for each score (Phipson and Smyth 2010)."""
    ordered = null.double().sort().values
    smaller = torch.searchsorted(ordered, scores.double().contiguous(), side="left")
    return (1 + len(ordered) - smaller).double() / (1 + len(ordered))


def q_values(p: Float[Tensor, " n"]) -> Float[Tensor, " n"]:
    """The smallest false-discovery rate at which each test is rejected (Benjamini and Hochberg 1995).

    q_(i) = min over j >= i of n p_(j) / j, with p in rising order. The rate is controlled for independent tests, and
    for tests that depend positively on each other.
    """
    order = p.argsort(stable=True)
    ratio = p[order].double() * len(p) / torch.arange(1, len(p) + 1, dtype=torch.double, device=p.device)
    smallest = ratio.flip(0).cummin(0).values.flip(0).clamp_max(1)
    return torch.empty_like(smallest).scatter_(0, order, smallest)


def benjamini_hochberg(p: Float[Tensor, " n"], rate: float) -> Bool[Tensor, " n"]:
    """Which tests are rejected at a false-discovery rate.

    Raises:
        ValueError: If the rate is not between 0 and 1.
    """
    if not 0 < rate < 1:
        raise ValueError(f"fdr must be between 0 and 1, got {rate}.")
    return q_values(p) <= rate
