"""Activation functions of gates, by the names the field uses."""

from collections.abc import Callable, Mapping
from types import MappingProxyType

import torch
from torch import Tensor, nn

GATES: Mapping[str, Callable[[Tensor], Tensor]] = MappingProxyType(
    {
        "linear": lambda g: g,
        "SiLU": nn.functional.silu,
        "GELU": nn.functional.gelu,
        "tanh-GELU": lambda g: nn.functional.gelu(g, approximate="tanh"),
        "ReLU": nn.functional.relu,
        "squared ReLU": lambda g: nn.functional.relu(g).square(),
        "sigmoid": torch.sigmoid,
    }
)
"""Functions of W_gate's output; with "linear" a layer is bilinear."""
