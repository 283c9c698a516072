"""Put something else in place of what an MLP reads or writes, for as long as a context lasts.

Done with torch forward hooks on the MLP module, which all three kinds of model have: before the module for
`blocks.L.mlp.hook_in`, after it for `blocks.L.mlp.hook_out`. They are taken off again, also after an error.
"""

import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Bool
from torch import Tensor, nn

from bilinear_circuits.models.bilinear_mlp import input_aliases, output_aliases
from bilinear_circuits.models.running import model_blocks

_HOOK_NAME = re.compile(r"blocks\.(\d+)\.mlp\.(hook_in|hook_out)")


@dataclass(frozen=True)
class Side:
    """One side of one MLP.

    Attributes:
        layer: Layer of the MLP.
        side: "hook_in" is what it reads, "hook_out" what it writes.
    """

    layer: int
    side: Literal["hook_in", "hook_out"]

    @classmethod
    def of(cls, hook_name: str | None) -> "Side":
        """Read a hook name.

        Raises:
            ValueError: If it is not that of an MLP's input or output.
        """
        match = _HOOK_NAME.fullmatch(hook_name or "")
        if match is None:
            raise ValueError(
                "hook_name must be blocks.L.mlp.hook_in or blocks.L.mlp.hook_out of a layer L, got"
                f" {hook_name!r}. Other hooks are no side of an MLP."
            )
        return cls(int(match[1]), "hook_in" if match[2] == "hook_in" else "hook_out")

    @classmethod
    def of_model(cls, model: nn.Module, hook_name: str | None) -> "Side":
        """Read a hook name of a model, or another name of the same place, as `FeatureInteractions` takes them.

        Raises:
            ValueError: If it is not that of an MLP's input or output, or the model does not have the layer.
        """
        layer = re.match(r"blocks\.(\d+)\.", hook_name or "")
        index, n_layers = int(layer[1]) if layer else 0, len(model_blocks(model))
        if not index < n_layers:
            raise ValueError(f"dictionary must sit at one of the model's layers, 0 to {n_layers - 1}, got {hook_name}.")
        if hook_name in output_aliases(index):
            return cls(index, "hook_out")
        if (
            hook_name is not None
            and _HOOK_NAME.fullmatch(hook_name) is None
            and hook_name in input_aliases(model, index)
        ):
            return cls(index, "hook_in")
        return cls.of(hook_name)


@contextmanager
def spliced(
    model: nn.Module, side: Side, replacement: Callable[[Tensor], Tensor], where: Bool[Tensor, "story pos"]
) -> Iterator[None]:
    """Replace one side of an MLP at some tokens of every forward pass inside the context.

    Args:
        model: nn.Module of the three kinds of model.
        side: What to replace.
        replacement: Maps activations, (story, pos, d_model), to what is put in their place.
        where: True at the tokens to replace; elsewhere, as at [BOS], the model's own activation stays.

    Raises:
        ValueError: If the model does not have the layer.
    """
    blocks = model_blocks(model)
    if not side.layer < len(blocks):
        raise ValueError(f"layer must be between 0 and {len(blocks) - 1}, those of the model, got {side.layer}.")

    def mixed(own: Tensor) -> Tensor:
        return torch.where(where.to(own.device).unsqueeze(-1), replacement(own).to(own.dtype), own)

    def before(module: nn.Module, args: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        return (mixed(args[0]), *args[1:])

    def after(module: nn.Module, args: tuple[Tensor, ...], output: Tensor) -> Tensor:
        return mixed(output)

    mlp = blocks[side.layer].mlp
    handle = mlp.register_forward_pre_hook(before) if side.side == "hook_in" else mlp.register_forward_hook(after)
    try:
        yield
    finally:
        handle.remove()
