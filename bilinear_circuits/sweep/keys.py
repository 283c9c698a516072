"""Coarse values as keys: numbers in the order of what is searched for, compared without being unpacked.

The bit patterns of positive bfloat16 are in the order of the numbers, and integers are compared twice as fast.
"""

from typing import Literal

import torch
from jaxtyping import Shaped
from torch import Tensor

Order = Literal["magnitude", "positive", "negative"]
ORDERS = ("magnitude", "positive", "negative")


def keys(values: Shaped[Tensor, "*n"], order: Order) -> Shaped[Tensor, "*n"]:
    """Numbers in the order of what is searched for, 0 for the wrong sign: bit patterns of bfloat16, or magnitudes."""
    if values.dtype == torch.bfloat16:
        bits = values.view(torch.int16)
        if order == "magnitude":
            return bits & 0x7FFF
        return (bits if order == "positive" else bits ^ -0x8000).clamp_min(0)
    return {"magnitude": values.abs, "positive": values.relu, "negative": values.neg().relu}[order]()


def magnitudes(some: Shaped[Tensor, "*n"]) -> Shaped[Tensor, "*n"]:
    """Undo keys: the values they are the magnitudes of, in float32 or wider."""
    return some.view(torch.bfloat16).float() if some.dtype == torch.int16 else some


def threshold(magnitude: Shaped[Tensor, "*n"], dtype: torch.dtype) -> Shaped[Tensor, "*n"]:
    """The largest key, in the dtype of keys, not above a magnitude: the high half of the bits of a float32."""
    return (magnitude.view(torch.int32) >> 16).to(torch.int16) if dtype == torch.int16 else magnitude


def lane_maxima(values: Shaped[Tensor, "row output column"], n_lanes: int) -> Shaped[Tensor, "row output lane"]:
    """The largest of all columns that are equal modulo the number of lanes, which has to divide theirs.

    A maximum over whole vector registers is several times faster than one along a row.
    """
    return values.unflatten(2, (-1, n_lanes)).amax(2)
