"""The part of a model after one MLP, run again with another output of it."""

import copy
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from bilinear_circuits.models.host import host_of
from bilinear_circuits.models.running import hooked, model_blocks, run_logits

_TAIL_TOLERANCE = 1e-4


class Downstream:
    """Everything after the MLP of one layer, on fixed tokens, to be rerun with another MLP output.

    Blocks before the layer run once. Where the model can be entered after the layer (Hugging Face Llama, bridges over
    one, HookedTransformer), only the later blocks are rerun; that short cut is compared with the whole model when the
    object is made, and where it differs or does not exist the whole model is rerun with a hook on the MLP.

    Attributes:
        x: MLP input.
        y: MLP output of the model as it is.
    """

    @torch.no_grad()
    def __init__(self, model: nn.Module, tokens: Int[Tensor, "story pos"], layer: int) -> None:
        blocks = model_blocks(model)
        seen: dict[str, Tensor] = {}

        def keep_mlp(module: nn.Module, args: tuple[Tensor, ...], output: Tensor) -> None:
            seen["x"], seen["y"] = args[0].detach(), output.detach()

        def keep_block(module: nn.Module, args: tuple[Any, ...], output: Any) -> None:
            seen["residual"] = (output if isinstance(output, Tensor) else output[0]).detach()

        with hooked([(blocks[layer].mlp, keep_mlp), (blocks[layer], keep_block)]):
            whole = run_logits(model, tokens)
        self._model, self._tokens, self._layer = model, tokens, layer
        self._residual, self.x, self.y = seen["residual"], seen["x"], seen["y"]
        self._tail = host_of(model).after(layer)
        if self._tail is not None:
            difference = (self._tail(self._residual, ...) - whole).abs().max() / whole.abs().max()
            if not difference < _TAIL_TOLERANCE:
                self._tail = None

    @property
    def reruns_whole_model(self) -> bool:
        """True if the short cut is not used."""
        return self._tail is None

    @property
    def residual(self) -> Float[Tensor, "story pos d_model"]:
        """Residual stream after the block of this layer, in the model as it is."""
        return self._residual

    def select(self, rows: Int[Tensor, " row"]) -> "Downstream":
        """Keep some of the stories."""
        part = copy.copy(self)
        part._tokens, part._residual = self._tokens[rows], self._residual[rows]
        part.x, part.y = self.x[rows], self.y[rows]
        return part

    @torch.no_grad()
    def logits(self, y: Float[Tensor, "story pos d_model"], at: Any = ...) -> Float[Tensor, "*n d_vocab"]:
        """Logits of the model when the MLP of this layer writes `y` instead.

        Args:
            y: MLP output.
            at: Index of the (story, pos) wanted; all by default. Fewer cost less.
        """
        if self._tail is not None:
            return self._tail(self._residual + (y - self.y), at)
        with hooked([(model_blocks(self._model)[self._layer].mlp, lambda module, args, output: y)]):
            return run_logits(self._model, self._tokens)[at]
