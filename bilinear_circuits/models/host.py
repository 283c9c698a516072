"""Hosts: each kind of model whose MLPs are read, behind one interface. No other module asks of what kind a model is."""

import copy
from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

Tail = Callable[[Tensor, Any], Tensor]
"""Maps a residual stream, and an index of the (story, pos) wanted, to logits."""

_WEIGHTS = ("W_gate", "W_in", "W_out", "b_gate", "b_in", "b_out")


class Host(ABC):
    """A transformer with gated MLPs.

    Attributes:
        model: The model itself.
    """

    def __init__(self, model: Any) -> None:
        """Take a model; `host_of` knows of what kind it is."""
        self.model = model

    @property
    @abstractmethod
    def blocks(self) -> Any:
        """The transformer blocks, each with an `mlp`."""

    @property
    @abstractmethod
    def d_vocab(self) -> int:
        """Number of tokens the model knows."""

    @property
    @abstractmethod
    def n_ctx(self) -> int:
        """Longest row of tokens the model was made for."""

    @property
    @abstractmethod
    def d_model(self) -> int:
        """Width of the residual stream, which MLPs read and write."""

    @property
    @abstractmethod
    def embedding(self) -> Float[Tensor, "d_vocab d_model"]:
        """Embedding matrix."""

    @property
    @abstractmethod
    def unembedding(self) -> Float[Tensor, "d_model d_vocab"]:
        """Unembedding matrix, without the final norm."""

    @property
    @abstractmethod
    def final_norm(self) -> Any:
        """The module that normalises the residual stream before the unembedding, or None."""

    @abstractmethod
    def norm(self, layer: int) -> Any:
        """The module in front of an MLP, or None."""

    @property
    def device(self) -> torch.device:
        """Device of the parameters."""
        return next(self.model.parameters()).device

    @property
    def dtype(self) -> torch.dtype:
        """Precision of the parameters."""
        return next(self.model.parameters()).dtype

    def logits(self, tokens: Int[Tensor, "story pos"]) -> Float[Tensor, "story pos d_vocab"]:
        """Run the model. Padding on the right needs no mask: attention is causal."""
        out = self.model(tokens)
        return out if isinstance(out, Tensor) else out.logits

    def hook_names(self, layer: int) -> tuple[str, str]:
        """Hook names of the MLP input, after the norm and its weight, and output, in the model's own vocabulary."""
        return f"blocks.{layer}.mlp.hook_in", f"blocks.{layer}.mlp.hook_out"

    def weights(self, layer: int) -> dict[str, Tensor | None]:
        """Weights and biases of an MLP in x @ W orientation, None where it has none."""
        mlp = self.blocks[layer].mlp
        return {name: getattr(mlp, name, None) for name in _WEIGHTS}

    def plain(self) -> Any:
        """The Hugging Face Llama that computes this model, or None where there is none."""
        return None

    def later_blocks(self, layer: int) -> tuple[Any, nn.Module] | None:
        """The body of a Hugging Face Llama with the blocks after a layer alone, and its unembedding; None elsewhere."""
        plain = self.plain()
        if plain is None or not hasattr(plain, "lm_head"):
            return None
        body = copy.copy(plain.model)
        body._modules = dict(plain.model._modules)
        body.layers = plain.model.layers[layer + 1 :]
        return body, plain.lm_head

    def after(self, layer: int) -> Tail | None:
        """The model from the residual stream after a block to the logits, or None where it cannot be entered there."""
        if (parts := self.later_blocks(layer)) is None:
            return None
        body, unembed = parts
        return lambda residual, at: unembed(body(inputs_embeds=residual, use_cache=False).last_hidden_state[at])


class LlamaHost(Host):
    """A Hugging Face model with Llama's module layout."""

    @property
    def blocks(self) -> Any:
        """The decoder layers."""
        return self.model.model.layers

    @property
    def d_vocab(self) -> int:
        """As its configuration says."""
        return self.model.config.vocab_size

    @property
    def n_ctx(self) -> int:
        """As its configuration says."""
        return self.model.config.max_position_embeddings

    @property
    def d_model(self) -> int:
        """As its configuration says."""
        return self.model.config.hidden_size

    @property
    def embedding(self) -> Float[Tensor, "d_vocab d_model"]:
        """Weight of embed_tokens."""
        return self.model.model.embed_tokens.weight

    @property
    def unembedding(self) -> Float[Tensor, "d_model d_vocab"]:
        """Weight of lm_head, transposed."""
        return self.model.lm_head.weight.T

    @property
    def final_norm(self) -> Any:
        """The norm after the layers."""
        return self.model.model.norm

    def norm(self, layer: int) -> Any:
        """The norm after attention."""
        return getattr(self.blocks[layer], "post_attention_layernorm", None)

    def weights(self, layer: int) -> dict[str, Tensor | None]:
        """Weights of the three projections, transposed, and their biases; None where there is none."""
        mlp = self.blocks[layer].mlp
        if not hasattr(mlp, "gate_proj"):
            return super().weights(layer)
        projections = (mlp.gate_proj, mlp.up_proj, mlp.down_proj)
        parts = [*(projection.weight.T for projection in projections), *(projection.bias for projection in projections)]
        return dict(zip(_WEIGHTS, parts, strict=True))

    def plain(self) -> Any:
        """The model itself."""
        return self.model


class TransformerLensHost(Host):
    """A TransformerBridge, or another model with blocks and a `cfg` of TransformerLens."""

    @property
    def blocks(self) -> Any:
        """Its blocks."""
        return self.model.blocks

    @property
    def d_vocab(self) -> int:
        """As its configuration says."""
        return self.model.cfg.d_vocab

    @property
    def n_ctx(self) -> int:
        """As its configuration says."""
        return self.model.cfg.n_ctx

    @property
    def d_model(self) -> int:
        """As its configuration says."""
        return self.model.cfg.d_model

    @property
    def embedding(self) -> Float[Tensor, "d_vocab d_model"]:
        """As TransformerLens has it."""
        return self.model.W_E

    @property
    def unembedding(self) -> Float[Tensor, "d_model d_vocab"]:
        """As TransformerLens has it."""
        return self.model.W_U

    @property
    def final_norm(self) -> Any:
        """`ln_final`, where there is one."""
        return getattr(self.model, "ln_final", None)

    def norm(self, layer: int) -> Any:
        """`ln2`, where there is one."""
        return getattr(self.blocks[layer], "ln2", None)

    def plain(self) -> Any:
        """The model under a bridge, if it has Llama's module layout."""
        wrapped = getattr(self.model, "original_model", None)
        return wrapped if wrapped is not None and _has_llamas_layout(wrapped) else None


class HookedTransformerHost(TransformerLensHost):
    """A HookedTransformer: no hook on the MLP input itself, and a b_in that is added after the product."""

    def hook_names(self, layer: int) -> tuple[str, str]:
        """Name the input as a bridge does, for which dictionaries are trained."""
        return f"blocks.{layer}.mlp.hook_in", f"blocks.{layer}.hook_mlp_out"

    def weights(self, layer: int) -> dict[str, Tensor | None]:
        """Weights and biases, b_in moved through W_out into b_out."""
        found = super().weights(layer)
        b_in, b_out, W_out = found["b_in"], found["b_out"], found["W_out"]
        if b_in is None or W_out is None:
            return found
        moved = b_in @ W_out
        return found | {"b_in": None, "b_out": moved if b_out is None else moved + b_out}

    def after(self, layer: int) -> Tail | None:
        """The model, started at the next layer; a subclass may run otherwise."""
        if type(self.model).__name__ != "HookedTransformer":
            return None
        return lambda residual, at: self.model(residual, start_at_layer=layer + 1)[at]


def host_of(model: Any) -> Host:
    """Find the interface of a model.

    Raises:
        TypeError: If it is neither a TransformerBridge, a HookedTransformer nor a Hugging Face Llama.
    """
    if isinstance(model, Host):
        return model
    if hasattr(model, "blocks"):
        # By its name: TransformerLens is not imported for it, and does without it from version 4 on.
        older = any(kind.__name__ == "HookedTransformer" for kind in type(model).__mro__)
        return HookedTransformerHost(model) if older else TransformerLensHost(model)
    if _has_llamas_layout(model):
        return LlamaHost(model)
    raise TypeError(
        "model must be a TransformerBridge, a HookedTransformer or a Hugging Face Llama,"
        f" got {type(model).__name__}. bilinear_circuits.load_model(path) returns one."
    )


def _has_llamas_layout(model: Any) -> bool:
    return hasattr(getattr(model, "model", None), "layers") and not hasattr(model, "blocks")
