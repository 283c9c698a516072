"""Memory that is used again: asking for new memory takes as long as filling it."""

import math

import torch
from torch import Tensor


class Memory:
    """Tensors by name, each in the memory of the one before it of that name."""

    def __init__(self) -> None:
        self._held: dict[str, Tensor] = {}

    def __call__(self, name: str, shape: tuple[int, ...], dtype: torch.dtype, device: torch.device) -> Tensor:
        """A tensor with anything in it."""
        held, size = self._held.get(name), math.prod(shape)
        if held is None or len(held) < size or held.dtype != dtype:
            self._held[name] = held = torch.empty(size, dtype=dtype, device=device)
        return held[:size].view(shape)
