"""A model whose MLPs have other gates, with bilinear layers in their place: a stock Llama with hidden_act="linear"."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from bilinear_circuits.algebra.tensor import InteractionTensor
from bilinear_circuits.models.bilinear_mlp import BilinearMLP
from bilinear_circuits.surgery.edits import plain_llama

_KINDS = ("llama", "mistral", "qwen2")
"""Models that differ from a Llama in their MLPs' gate, in biases of attention and in a window alone."""
_OTHER = ("architectures", "model_type", "layer_types", "sliding_window", "use_sliding_window", "max_window_layers")
_MATRICES = {"gate_proj": ("W_gate", "b_gate"), "up_proj": ("W_in", "b_in"), "down_proj": ("W_out", "b_out")}


@torch.no_grad()
def bilinear_llama(model: nn.Module, layers: Mapping[int, BilinearMLP]) -> Any:
    """Write bilinear layers in the place of all MLPs of a model: a stock Llama; the model given stays as it is.

    The MLPs, or attention, have biases where one of them has; those of others are zero. Weights are in the precision of
    the model.

    Args:
        model: A Llama, Mistral or Qwen2 of Hugging Face, or a TransformerBridge over one.
        layers: A bilinear layer for every block, such as `GatedMLP.bilinear` makes.

    Raises:
        ValueError: If a block has no layer, or the model is none that a Llama can be, such as one with a window that
            is shorter than its context.
        TypeError: If the model is of another kind.
    """
    plain = plain_llama(model)
    check_llama(plain.config)
    if set(layers) != set(range(plain.config.num_hidden_layers)):
        raise ValueError(
            f"layers must hold one for every block, 0 to {plain.config.num_hidden_layers - 1}, got {sorted(layers)}: a"
            " stock Llama has one hidden_act."
        )
    tensors = {layer: mlp.tensor for layer, mlp in layers.items()}
    state = plain.state_dict()
    with torch.device("meta"):
        written = _empty(plain.config, state, tensors)
    dtype, device = next(plain.parameters()).dtype, next(plain.parameters()).device
    filled = {
        name: _weight(name, one, state, tensors).to(dtype).to(device).contiguous()
        for name, one in written.state_dict().items()
    }
    written.load_state_dict(filled, assign=True)
    written.tie_weights()
    # Buffers that are not saved, such as the frequencies of rotary embeddings, are those of the model.
    written.model.rotary_emb = type(written.model.rotary_emb)(written.config).to(device)
    written.generation_config = plain.generation_config
    return written.eval()


def check_llama(config: Any) -> None:
    """Refuse a configuration of a model that no Llama is equal to.

    Raises:
        ValueError: If it is one.
    """
    if config.model_type not in _KINDS:
        raise ValueError(
            f"model must be a {', '.join(_KINDS)} to be written as a stock Llama, got {config.model_type!r}. Its layers"
            " can be fitted without a model being written."
        )
    window = getattr(config, "sliding_window", None) if getattr(config, "use_sliding_window", True) else None
    if window is not None and window < config.max_position_embeddings:
        raise ValueError(
            f"model must attend to its whole context to be written as a stock Llama, got a window of {window} of"
            f" {config.max_position_embeddings} tokens. Set max_position_embeddings of its config.json to {window}."
        )


def _empty(config: Any, state: Mapping[str, Tensor], tensors: Mapping[int, InteractionTensor]) -> Any:
    """A Llama of the same shape, without weights."""
    from transformers import LlamaConfig, LlamaForCausalLM

    known = {name: value for name, value in config.to_dict().items() if name not in _OTHER}
    changed = {
        "hidden_act": "linear",
        "mlp_bias": any(tensor.has_bias for tensor in tensors.values()),
        "attention_bias": any(name.endswith("self_attn.q_proj.bias") for name in state),
        "intermediate_size": max(tensor.d_mlp for tensor in tensors.values()),
    }
    return LlamaForCausalLM(LlamaConfig(**known | changed))


def _weight(name: str, empty: Tensor, state: Mapping[str, Tensor], tensors: Mapping[int, InteractionTensor]) -> Tensor:
    """One parameter: of a bilinear layer, of the model, or zero for a bias that neither has."""
    parts = name.split(".")
    if parts[3:4] == ["mlp"]:
        matrix, bias = _MATRICES[parts[4]]
        value = getattr(tensors[int(parts[2])], matrix if parts[5] == "weight" else bias)
        return torch.zeros(empty.shape) if value is None else value.T if value.ndim == 2 else value
    return state[name] if name in state else torch.zeros(empty.shape)
