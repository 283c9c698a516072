"""Edits of MLP outputs, and hooks that make them."""

from collections.abc import Callable, Sequence
from typing import Literal

import torch
from torch import Tensor, nn

Edit = Callable[[Tensor, Tensor], Tensor]
"""Maps MLP input and output to what is added to the output."""

Where = Literal["everywhere", "sites", "elsewhere"]
"""At which tokens of a row an edit acts."""


def by_layer(edits: Sequence[tuple[int, Edit]]) -> dict[int, list[Edit]]:
    """Gather the edits of each layer."""
    found: dict[int, list[Edit]] = {}
    for layer, edit in edits:
        found.setdefault(layer, []).append(edit)
    return found


def sum_of_edits(edits: Sequence[Edit], x: Tensor, y: Tensor, at: tuple[Tensor, Tensor], where: Where) -> Tensor:
    """Sum what edits add to an MLP output, at every token, at the sites alone, or everywhere but there."""
    total = torch.zeros_like(y)
    if where == "sites":
        for edit in edits:
            total[at] += edit(x[at], y[at])
        return total
    for edit in edits:
        total = total + edit(x, y)
    if where == "elsewhere":
        total[at] = 0
    return total


def add_edits(
    edits: Sequence[Edit], at: tuple[Tensor, Tensor], where: Where
) -> Callable[[nn.Module, tuple[Tensor, ...], Tensor], Tensor]:
    """Make a hook that edits the output of an MLP."""
    return lambda module, args, output: output + sum_of_edits(edits, args[0], output, at, where)


def change_at(
    at: tuple[Tensor, Tensor], input_change: Tensor | None, output_change: Tensor | None
) -> Callable[[nn.Module, tuple[Tensor, ...], Tensor], Tensor]:
    """Make a hook that runs a module on a changed input, and changes its output, at some places."""

    def hook(module: nn.Module, args: tuple[Tensor, ...], output: Tensor) -> Tensor:
        if input_change is not None:
            x = args[0].clone()
            x[at] += input_change.to(x)
            output = module.forward(x)
        output = output.clone()
        if output_change is not None:
            output[at] += output_change.to(output)
        return output

    return hook
