"""The weights of a Llama-type model as plain tensors, the weight of every norm folded into what reads its output.

Known layouts: Llama, Mistral, Qwen 2 and 3, Gemma 1 and 2, and others with their module names: RMSNorm in front of
attention and MLP (and behind them, as in Gemma 2), rotary embeddings on whole heads, grouped keys and values, an MLP
with or without a gate. What the names do not show is caught by `FrozenRun`, which compares logits.
"""

import contextlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from bilinear_circuits.models.host import Host, host_of
from bilinear_circuits.models.running import attention_window
from bilinear_circuits.paths.refusals import OtherModelError, way_out
from bilinear_circuits.utilities.display import Brief

_NORMS = ("input_layernorm", "post_attention_layernorm")
_SANDWICH = ("pre_feedforward_layernorm", "post_feedforward_layernorm")
_UNGATED = (("up_proj", "down_proj"), ("c_fc", "c_proj"), ("fc1", "fc2"))


@dataclass(frozen=True, eq=False, repr=False)
class LayerWeights(Brief):
    """One transformer block, in x @ W orientation.

    Attributes:
        W_Q: Queries of all heads, the weight of the norm in front folded in, as in W_K and W_V.
        W_K: Keys; head h reads those of n_heads / n_key_value_heads neighbours together.
        W_V: Values.
        W_O: What each head writes.
        b_Q: Bias of the queries; zeros where there is none, as everywhere below.
        b_K: Bias of the keys.
        b_V: Bias of the values.
        b_O: Bias of the attention output.
        q_norm: Weight of the RMSNorm on each query, or None.
        k_norm: Weight of the RMSNorm on each key, or None.
        attention_out_norm: Weight of an RMSNorm on the attention output (Gemma 2), or None.
        W_gate: Gate of the MLP, or the only projection of an MLP without a gate; norm weight folded in.
        W_in: What the gate is multiplied with, or None without a gate.
        W_out: What each neuron writes.
        b_gate: Bias of the gate.
        b_in: Bias of W_in.
        b_out: Bias of the MLP output.
        mlp_out_norm: Weight of an RMSNorm on the MLP output, or None.
        window: Keys that a query sees, itself counted; None for all before it.
        act: The model's own activation function, applied to all gates of a token together.
    """

    W_Q: Float[Tensor, "n_heads d_model d_head"]
    W_K: Float[Tensor, "n_key_value_heads d_model d_head"]
    W_V: Float[Tensor, "n_key_value_heads d_model d_head"]
    W_O: Float[Tensor, "n_heads d_head d_model"]
    b_Q: Float[Tensor, "n_heads d_head"]
    b_K: Float[Tensor, "n_key_value_heads d_head"]
    b_V: Float[Tensor, "n_key_value_heads d_head"]
    b_O: Float[Tensor, " d_model"]
    q_norm: Float[Tensor, " d_head"] | None
    k_norm: Float[Tensor, " d_head"] | None
    attention_out_norm: Float[Tensor, " d_model"] | None
    W_gate: Float[Tensor, "d_model d_mlp"]
    W_in: Float[Tensor, "d_model d_mlp"] | None
    W_out: Float[Tensor, "d_mlp d_model"]
    b_gate: Float[Tensor, " d_mlp"]
    b_in: Float[Tensor, " d_mlp"]
    b_out: Float[Tensor, " d_model"]
    mlp_out_norm: Float[Tensor, " d_model"] | None
    window: int | None
    act: Callable[[Tensor], Tensor]

    @property
    def group(self) -> int:
        """Query heads that share one key-value head."""
        return len(self.W_Q) // len(self.W_K)


@dataclass(frozen=True, eq=False, repr=False)
class LlamaWeights(Brief):
    """A Llama-type model.

    Attributes:
        W_E: Embedding of tokens, its scale folded in.
        W_U: Unembedding, the weight of the final norm folded in.
        b_U: Bias of the logits.
        layers: The blocks.
        eps: Added to the mean square by every norm.
        scaling: Factor of attention scores.
        inv_freq: Radians per position of the rotary embedding, one for each pair of dimensions p, p + d_head / 2.
        rope_scaling: Factor of rotated queries and of rotated keys.
        score_cap: Soft cap of attention scores, or None.
        logit_cap: Soft cap of logits, or None.
    """

    W_E: Float[Tensor, "d_vocab d_model"]
    W_U: Float[Tensor, "d_model d_vocab"]
    b_U: Float[Tensor, " d_vocab"]
    layers: tuple[LayerWeights, ...]
    eps: float
    scaling: float
    inv_freq: Float[Tensor, " half"]
    rope_scaling: float
    score_cap: float | None
    logit_cap: float | None

    @property
    def n_layers(self) -> int:
        """Number of blocks."""
        return len(self.layers)

    @property
    def n_heads(self) -> int:
        """Query heads of a block."""
        return len(self.layers[0].W_Q)

    @property
    def d_model(self) -> int:
        """Width of the residual stream."""
        return self.W_E.shape[1]


@torch.no_grad()
def read_weights(host: Host | Any, dtype: torch.dtype | None = None) -> LlamaWeights:
    """Read a model's weights.

    Cost: one copy of the weights in `dtype`.

    Args:
        host: A host, or a model that `host_of` knows.
        dtype: float32 or float64; by default the model's own, float32 at least.

    Raises:
        ValueError: If the model is of another architecture; it says what was found. Or for another dtype.
    """
    if dtype not in (None, torch.float32, torch.float64):
        raise ValueError(f"dtype must be torch.float32 or torch.float64, got {dtype}. Leave it out for the model's.")
    try:
        return _read(host, dtype)
    except OtherModelError as error:
        raise ValueError(f"{error}{way_out(host)}") from None


def _read(host: Host | Any, dtype: torch.dtype | None) -> LlamaWeights:
    """The weights, or what there is in place of Llama's."""
    plain = plain_model(host)
    config = plain.config
    dtype = dtype or torch.promote_types(next(plain.parameters()).dtype, torch.float32)
    rotary = plain.model.rotary_emb
    if getattr(rotary, "inv_freq", None) is None:
        raise OtherModelError("one rotary embedding for all layers", f"a {type(rotary).__name__} of several")
    final, eps = _norm(plain.model.norm, "the final norm", dtype)
    blocks = [_layer(block, config, at, rotary.inv_freq, dtype) for at, block in enumerate(plain.model.layers)]
    if any(one_eps != eps for _, one_eps in blocks):
        raise OtherModelError("one epsilon in all its norms", f"{sorted({eps, *(one for _, one in blocks)})}")
    scale = getattr(plain.model.embed_tokens, "embed_scale", None)
    W_E = plain.model.embed_tokens.weight.detach().to(dtype)
    bias = getattr(plain.lm_head, "bias", None)
    W_U = plain.lm_head.weight.detach().to(dtype).T
    attention = plain.model.layers[0].self_attn
    return LlamaWeights(
        W_E=W_E if scale is None else W_E * torch.as_tensor(scale).to(W_E),
        W_U=final.unsqueeze(1) * W_U,
        b_U=W_U.new_zeros(W_U.shape[1]) if bias is None else bias.detach().to(dtype),
        layers=tuple(layer for layer, _ in blocks),
        eps=eps,
        scaling=float(getattr(attention, "scaling", blocks[0][0].W_Q.shape[2] ** -0.5)),
        inv_freq=rotary.inv_freq.detach().to(dtype),
        rope_scaling=float(getattr(rotary, "attention_scaling", 1.0)),
        score_cap=getattr(config, "attn_logit_softcapping", None),
        logit_cap=getattr(config, "final_logit_softcapping", None),
    )


def plain_model(model: Host | Any) -> Any:
    """Find the Hugging Face model of Llama's layout that a model is or wraps.

    Raises:
        ValueError: If there is none.
    """
    plain = None
    with contextlib.suppress(TypeError):
        plain = host_of(model).plain()
    if plain is None or not all(hasattr(plain, name) for name in ("model", "lm_head", "config")):
        found = type(model.model if isinstance(model, Host) else model).__name__
        raise OtherModelError("Llama's module layout in Hugging Face (or a TransformerBridge of one)", f"a {found}")
    for name in ("embed_tokens", "layers", "norm", "rotary_emb"):
        if not hasattr(plain.model, name):
            raise OtherModelError(f"Llama's module layout, with model.{name}", f"a {type(plain).__name__} without it")
    return plain


def _layer(block: Any, config: Any, at: int, inv_freq: Tensor, dtype: torch.dtype) -> tuple[LayerWeights, float]:
    """One block, and the epsilon of its norms."""
    _check_block(block, at)
    attention, sandwich = block.self_attn, hasattr(block, _SANDWICH[0])
    names = (_NORMS[0], _SANDWICH[0] if sandwich else _NORMS[1])
    (first, eps), (second, _) = (_norm(getattr(block, name), f"{name} of layer {at}", dtype) for name in names)
    behind = [_norm(getattr(block, name), name, dtype)[0] for name in (_NORMS[1], _SANDWICH[1])] if sandwich else []
    d_head = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    parts: dict[str, Any] = {"W_O": _matrix(attention.o_proj, dtype).unflatten(0, (-1, d_head))}
    parts["b_O"] = _bias(attention.o_proj, dtype)
    for name, projection in zip("QKV", (attention.q_proj, attention.k_proj, attention.v_proj), strict=True):
        folded = first.unsqueeze(1) * _matrix(projection, dtype)
        parts[f"W_{name}"] = folded.unflatten(1, (-1, d_head)).transpose(0, 1)
        parts[f"b_{name}"] = _bias(projection, dtype).unflatten(0, (-1, d_head))
    for name in ("q_norm", "k_norm"):
        module = getattr(attention, name, None)
        parts[name] = None if module is None else _norm(module, f"{name} of layer {at}", dtype, d_head)[0]
    if not getattr(attention, "use_rope", True):
        raise OtherModelError("rotary embeddings in every layer", f"none in layer {at}")
    rotated = 2 * len(inv_freq)
    if rotated != d_head:
        raise OtherModelError("rotary embeddings on whole heads", f"{rotated} of {d_head} dimensions in layer {at}")
    layer = LayerWeights(
        **parts,
        **_mlp(block.mlp, second, dtype),
        attention_out_norm=behind[0] if behind else None,
        mlp_out_norm=behind[1] if behind else None,
        window=_window(config, at),
    )
    return layer, eps


def _mlp(mlp: Any, norm: Tensor, dtype: torch.dtype) -> dict[str, Any]:
    """Weights of an MLP with or without a gate."""
    act = getattr(mlp, "act_fn", None) or getattr(mlp, "act", None)
    gated = hasattr(mlp, "gate_proj")
    found = [names for names in _UNGATED if all(hasattr(mlp, name) for name in names)]
    if act is None or not found or hasattr(mlp, "experts"):
        raise OtherModelError("MLPs of two or three projections and an activation", f"a {type(mlp).__name__}")
    up, down = (getattr(mlp, name) for name in found[0])
    gate = mlp.gate_proj if gated else up
    read = norm.unsqueeze(1)
    at_zero = act(torch.zeros(1, 2, dtype=dtype))
    if at_zero.any():
        raise OtherModelError(
            "an activation that is 0 at 0, a gate factor times its input", f"{act} with {at_zero[0, 0]:.3g}"
        )
    return {
        "W_gate": read * _matrix(gate, dtype),
        "W_in": read * _matrix(up, dtype) if gated else None,
        "W_out": _matrix(down, dtype),
        "b_gate": _bias(gate, dtype),
        "b_in": _bias(up, dtype) if gated else torch.zeros_like(_bias(gate, dtype)),
        "b_out": _bias(down, dtype),
        "act": act,
    }


def _check_block(block: Any, at: int) -> None:
    """Refuse blocks of other architectures by what they lack."""
    for name in (*_NORMS, "self_attn", "mlp"):
        if not hasattr(block, name):
            kind = "parallel or of another layout" if "layernorm" in name else "of another layout"
            raise OtherModelError(f"blocks with {name}", f"layer {at} without it ({kind})")
    for name in ("q_proj", "k_proj", "v_proj", "o_proj"):
        if not hasattr(block.self_attn, name):
            raise OtherModelError(
                f"attention with {name}", f"a {type(block.self_attn).__name__} in layer {at} without it"
            )


def _norm(module: Any, name: str, dtype: torch.dtype, size: int | None = None) -> tuple[Tensor, float]:
    """The weight of an RMSNorm and its epsilon; which of w and 1 + w multiplies is read off what the module does."""
    weight, eps = getattr(module, "weight", None), getattr(module, "variance_epsilon", getattr(module, "eps", None))
    if weight is None or not isinstance(eps, float) or (size is not None and len(weight) != size):
        raise OtherModelError("RMSNorms with a weight and an epsilon", f"a {type(module).__name__} as {name}")
    x = torch.randn(1, 2, len(weight), generator=torch.Generator().manual_seed(0)).to(weight) + 0.5
    written, rows = module(x).double(), x.double()
    bare = rows / (rows.square().mean(-1, keepdim=True) + eps).sqrt()
    tolerance = 1e-4 if weight.dtype in (torch.float32, torch.float64) else 0.05
    for factor in (weight.double(), 1 + weight.double()):
        if (bare * factor - written).norm() <= tolerance * written.norm():
            return factor.to(dtype), eps
    raise OtherModelError("RMSNorms", f"a {type(module).__name__} as {name} that computes something else")


def _window(config: Any, at: int) -> int | None:
    """Keys that a query of a layer sees."""
    kinds = getattr(config, "layer_types", None)
    if kinds is not None and kinds[at] not in ("full_attention", "sliding_attention"):
        raise OtherModelError("full or sliding attention", f"{kinds[at]} in layer {at}")
    return attention_window(config, at)


def _matrix(linear: Any, dtype: torch.dtype) -> Tensor:
    return linear.weight.detach().to(dtype).T


def _bias(linear: Any, dtype: torch.dtype) -> Tensor:
    bias = getattr(linear, "bias", None)
    return (
        torch.zeros(len(linear.weight), dtype=dtype, device=linear.weight.device)
        if bias is None
        else bias.detach().to(dtype)
    )
