"""Stock Llama models: their shape, their random start, and dropout that leaves no trace in what is saved."""

import contextlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from transformers import LlamaConfig, LlamaForCausalLM
from transformers.activations import ACT2FN

HIDDEN_ACTS = ("linear", "silu", "gelu", "relu", "solu")


class SoLU(nn.Module):
    """x softmax(x) over the neurons (Elhage et al. 2022), without the LayerNorm of that paper."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Apply it to the last dimension."""
        return x * x.softmax(dim=-1)


@dataclass(frozen=True)
class ModelSettings:
    """Shape of the model.

    Attributes:
        d_model: Width of the residual stream.
        n_layers: Number of blocks.
        n_heads: Attention heads per block.
        d_mlp: Neurons per MLP.
        context: Longest row, in tokens.
        hidden_act: "linear" for a bilinear MLP; "silu", "gelu", "relu" or "solu" for comparisons.
    """

    d_model: int
    n_layers: int
    n_heads: int
    d_mlp: int
    context: int = 256
    hidden_act: str = "linear"

    def __post_init__(self) -> None:
        check_positive(self, "d_model", "n_layers", "n_heads", "d_mlp", "context")
        if self.d_model % self.n_heads or self.d_model // self.n_heads % 2:
            raise ValueError(
                "d_model must be n_heads times an even number, for rotary embeddings,"
                f" got d_model={self.d_model} and n_heads={self.n_heads}."
            )
        if self.hidden_act not in HIDDEN_ACTS:
            raise ValueError(f"hidden_act must be one of {', '.join(HIDDEN_ACTS)}, got {self.hidden_act!r}.")


def build_model(settings: ModelSettings, tokenizer: Any, seed: int) -> LlamaForCausalLM:
    """A Llama with random weights from a seed, without biases and with untied embeddings.

    "solu" is no activation of transformers: it is registered there for this process, and whoever loads such a model in
    another one has to do the same.
    """
    if settings.hidden_act == "solu":
        ACT2FN["solu"] = SoLU
    config = LlamaConfig(
        hidden_act=settings.hidden_act,
        hidden_size=settings.d_model,
        intermediate_size=settings.d_mlp,
        num_hidden_layers=settings.n_layers,
        num_attention_heads=settings.n_heads,
        num_key_value_heads=settings.n_heads,
        vocab_size=len(tokenizer),
        max_position_embeddings=settings.context,
        tie_word_embeddings=False,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return LlamaForCausalLM(config)


@contextlib.contextmanager
def dropout_on_outputs(model: LlamaForCausalLM, p: float) -> Iterator[None]:
    """Dropout on the embedding and on the outputs of attention and MLP, in training mode, until the block ends."""
    modules = [model.model.embed_tokens]
    modules += [module for block in model.model.layers for module in (block.self_attn, block.mlp)]
    handles = [module.register_forward_hook(_dropout_hook(p)) for module in modules] if p > 0 else []
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _dropout_hook(p: float) -> Callable[[nn.Module, Any, Any], Any]:
    def hook(module: nn.Module, args: Any, output: Any) -> Any:
        if isinstance(output, tuple):  # attention returns its pattern too
            return (nn.functional.dropout(output[0], p, module.training), *output[1:])
        return nn.functional.dropout(output, p, module.training)

    return hook


def check_positive(settings: Any, *names: str) -> None:
    """Refuse fields that are not numbers above zero.

    Raises:
        ValueError: Naming the first such field.
    """
    for name in names:
        value = getattr(settings, name)
        if isinstance(value, bool) or not isinstance(value, int | float) or not value > 0:
            raise ValueError(f"{name} must be a number above 0, got {value!r}.")
