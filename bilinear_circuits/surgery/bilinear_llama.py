"""A model whose MLPs have other gates, with bilinear layers in their place: a stock Llama with hidden_act="linear"."""

import json
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from bilinear_circuits.algebra.tensor import InteractionTensor
from bilinear_circuits.models.bilinear_mlp import BilinearMLP
from bilinear_circuits.models.streaming import StreamedModel
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


@torch.no_grad()
def write_streamed(model: StreamedModel, tensors: Callable[[int], InteractionTensor], folder: Path) -> None:
    """Write the stock Llama of a model that is read block by block: one safetensors file for each block, and the rest.

    Args:
        model: The model.
        tensors: Gives the bilinear layer of a block; all of them have biases.
        folder: Where; made already.

    Raises:
        ValueError: If the model is none that a Llama can be.
    """
    from safetensors.torch import save_file

    check_llama(model.config)
    first = model.tensors("model.layers.0.")
    dtype, has_bias = next(iter(first.values())).dtype, "self_attn.q_proj.bias" in first
    config = _llama_config(model.config, True, has_bias, tensors(0).d_mlp)
    n_files, size = model.n_layers + 1, 0
    index: dict[str, str] = {}
    for part in range(n_files):
        if part < model.n_layers:
            state = _block_state(model.tensors(f"model.layers.{part}."), tensors(part), has_bias, dtype)
            state = {f"model.layers.{part}.{name}": one for name, one in state.items()}
        else:
            state = {
                f"{prefix}{name}": one
                for prefix in ("model.embed_tokens.", "model.norm.", "lm_head.")
                for name, one in model.tensors(prefix).items()
            }
        file = f"model-{part + 1:05}-of-{n_files:05}.safetensors"
        save_file({name: one.contiguous() for name, one in state.items()}, folder / file, {"format": "pt"})
        index |= dict.fromkeys(state, file)
        size += sum(one.numel() * one.element_size() for one in state.values())
    document = {"metadata": {"total_size": size}, "weight_map": index}
    (folder / "model.safetensors.index.json").write_text(json.dumps(document, indent=1), encoding="utf-8")
    config.architectures, config.dtype = ["LlamaForCausalLM"], dtype
    config.save_pretrained(folder)
    if (generation := model.folder / "generation_config.json").is_file():
        shutil.copy(generation, folder)


def _block_state(
    state: Mapping[str, Tensor], tensor: InteractionTensor, has_bias: bool, dtype: torch.dtype
) -> dict[str, Tensor]:
    """Parameters of one block with a bilinear layer in it."""
    found = {name: one for name, one in state.items() if not name.startswith("mlp.")}
    if has_bias and "self_attn.o_proj.bias" not in found:
        found["self_attn.o_proj.bias"] = torch.zeros(found["self_attn.o_proj.weight"].shape[0], dtype=dtype)
    for projection, (matrix, bias) in _MATRICES.items():
        weight, constant = getattr(tensor, matrix).T, getattr(tensor, bias)
        found[f"mlp.{projection}.weight"] = weight.to(dtype).cpu()
        constant = torch.zeros(len(weight)) if constant is None else constant
        found[f"mlp.{projection}.bias"] = constant.to(dtype).cpu()
    return found


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
    from transformers import LlamaForCausalLM

    mlp_bias = any(tensor.has_bias for tensor in tensors.values())
    attention_bias = any(name.endswith("self_attn.q_proj.bias") for name in state)
    return LlamaForCausalLM(_llama_config(config, mlp_bias, attention_bias, tensors[0].d_mlp))


def _llama_config(config: Any, mlp_bias: bool, attention_bias: bool, d_mlp: int) -> Any:
    """Configuration of a bilinear Llama that is another model but for its MLPs."""
    from transformers import LlamaConfig

    known = {name: value for name, value in config.to_dict().items() if name not in _OTHER}
    changed = {"hidden_act": "linear", "mlp_bias": mlp_bias, "attention_bias": attention_bias}
    return LlamaConfig(**known | changed | {"intermediate_size": d_mlp})


def _weight(name: str, empty: Tensor, state: Mapping[str, Tensor], tensors: Mapping[int, InteractionTensor]) -> Tensor:
    """One parameter: of a bilinear layer, of the model, or zero for a bias that neither has."""
    parts = name.split(".")
    if parts[3:4] == ["mlp"]:
        matrix, bias = _MATRICES[parts[4]]
        value = getattr(tensors[int(parts[2])], matrix if parts[5] == "weight" else bias)
        return torch.zeros(empty.shape) if value is None else value.T if value.ndim == 2 else value
    return state[name] if name in state else torch.zeros(empty.shape)
