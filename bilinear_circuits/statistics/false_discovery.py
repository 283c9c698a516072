"""Error control: p-values from null scores, and the false-discovery rate over all of them."""

import torch
from jaxtyping import Bool, Float
from scipy.stats import false_discovery_control
from torch import Tensor


def empirical_p_values(scores: Float[Tensor, " n"], null: Float[Tensor, " m"]) -> Float[Tensor, " n"]:
    """Compute (1 + null scores at least as large) / (1 + null scores) of each score (Phipson and Smyth 2010)."""
    ordered = null.double().sort().values
    smaller = torch.searchsorted(ordered, scores.double().contiguous(), side="left")
    return (1 + len(ordered) - smaller).double() / (1 + len(ordered))


def q_values(p: Float[Tensor, " n"]) -> Float[Tensor, " n"]:
    """Find the smallest false-discovery rate at which each test is rejected (Benjamini and Hochberg 1995).

    The rate is controlled for independent tests, and for tests that depend positively on each other.
    """
    if not len(p):
        return p.double()
    return torch.from_numpy(false_discovery_control(p.double().cpu().numpy())).to(p.device)


def benjamini_hochberg(p: Float[Tensor, " n"], rate: float) -> Bool[Tensor, " n"]:
    """Say which tests are rejected at a false-discovery rate.

    Raises:
        ValueError: If the rate is not between 0 and 1.
    """
    if not 0 < rate < 1:
        raise ValueError(f"fdr must be between 0 and 1, got {rate}.")
    return q_values(p) <= rate
