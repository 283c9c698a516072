"""The steps of a forward pass, each on any batch of residual streams: norms, attention patterns, gates, MLPs."""

from collections.abc import Callable

import torch
from jaxtyping import Bool, Complex, Float, Int
from torch import Tensor

from bilinear_circuits.paths.weights import LayerWeights, LlamaWeights

Rope = tuple[Tensor, Tensor]
"""Cosine and sine of the rotary embedding, each [pos, d_head], as the model's own module gives them."""

_NEAR_ZERO = {torch.float64: 1e-12, torch.float32: 1e-7}


def norm_scale(x: Float[Tensor, "*n d"], eps: float) -> Float[Tensor, "*n 1"]:
    """Compute the divisor of an RMSNorm: sqrt(mean(x^2) + eps)."""
    return (x.square().mean(-1, keepdim=True) + eps).sqrt()


def linear(
    x: Float[Tensor, "*n d_in"] | Complex[Tensor, "*n d_in"], W: Float[Tensor, "d_in d_out"]
) -> Float[Tensor, "*n d_out"] | Complex[Tensor, "*n d_out"]:
    """Multiply x @ W, x being real or complex."""
    return torch.complex(x.real @ W, x.imag @ W) if x.is_complex() else x @ W


def gate_factor(gate: Float[Tensor, "*n d_mlp"], act: Callable[[Tensor], Tensor]) -> Float[Tensor, "*n d_mlp"]:
    """Compute sigma(g) = act(g) / g, whose limit at 0 is the slope there: 1 for a linear gate, 1/2 for SiLU and GELU.

    Gates nearer to 0 than rounding are moved to where the quotient still has all its digits, on their own side.
    """
    tiny = gate.new_tensor(_NEAR_ZERO[gate.dtype])
    moved = torch.where(gate.abs() < tiny, tiny.copysign(gate), gate)
    return act(moved) / moved


def causal_mask(n_pos: int, window: int | None, device: torch.device) -> Bool[Tensor, "query_pos key_pos"]:
    """Say which keys each query sees."""
    at = torch.arange(n_pos, device=device)
    distance = at.unsqueeze(1) - at
    return (distance >= 0) & (distance < (n_pos if window is None else window))


def rotate(x: Float[Tensor, "*n pos d_head"], rope: Rope) -> Float[Tensor, "*n pos d_head"]:
    """Apply the rotary embedding, which pairs dimension p with p + d_head / 2."""
    first, second = x.chunk(2, -1)
    return x * rope[0] + torch.cat((-second, first), -1) * rope[1]


def queries_and_keys(
    normed: Float[Tensor, "*n pos d_model"], layer: LayerWeights, weights: LlamaWeights, rope: Rope
) -> tuple[Float[Tensor, "*n n_heads pos d_head"], Float[Tensor, "*n n_heads pos d_head"]]:
    """Compute rotated queries and keys of every head, those of a group repeated."""
    found = []
    for W, bias, norm in ((layer.W_Q, layer.b_Q, layer.q_norm), (layer.W_K, layer.b_K, layer.k_norm)):
        x = normed.unsqueeze(-3) @ W + bias.unsqueeze(1)
        x = x if norm is None else x / norm_scale(x, weights.eps) * norm
        found.append(rotate(x, rope))
    queries, keys = found
    return queries, keys.repeat_interleave(layer.group, -3)


def attention_pattern(
    normed: Float[Tensor, "*n pos d_model"], layer: LayerWeights, weights: LlamaWeights, rope: Rope
) -> Float[Tensor, "*n n_heads query_pos key_pos"]:
    """Compute what every query gives each key."""
    queries, keys = queries_and_keys(normed, layer, weights, rope)
    scores = soft_cap(queries @ keys.mT * weights.scaling, weights.score_cap)
    mask = causal_mask(scores.shape[-1], layer.window, scores.device)
    return scores.masked_fill(~mask, -torch.inf).softmax(-1)


def soft_cap(x: Float[Tensor, "*n"], cap: float | None) -> Float[Tensor, "*n"]:
    """Compute cap tanh(x / cap); x itself without a cap."""
    return x if cap is None else cap * (x / cap).tanh()


def head_values(
    normed: Float[Tensor, "*n pos d_model"] | Complex[Tensor, "*n pos d_model"], layer: LayerWeights
) -> Float[Tensor, "*n n_heads pos d_head"] | Complex[Tensor, "*n n_heads pos d_head"]:
    """Compute the values of every head, those of a group repeated, their bias included."""
    W = layer.W_V.transpose(0, 1).flatten(1)
    values = linear(normed, W).unflatten(-1, layer.b_V.shape) + layer.b_V
    return values.transpose(-3, -2).repeat_interleave(layer.group, -3)


def write_heads(
    mixed: Float[Tensor, "*n n_heads pos d_head"] | Complex[Tensor, "*n n_heads pos d_head"], layer: LayerWeights
) -> Float[Tensor, "*n pos d_model"] | Complex[Tensor, "*n pos d_model"]:
    """Sum what all heads write, with the bias of the output."""
    return linear(mixed.transpose(-3, -2).flatten(-2), layer.W_O.flatten(0, 1)) + layer.b_O


def gates_and_inputs(
    normed: Float[Tensor, "*n pos d_model"] | Complex[Tensor, "*n pos d_model"], layer: LayerWeights
) -> tuple[Tensor, Tensor | None]:
    """Compute the gate of every neuron before the activation, and what it is multiplied with; None without a gate."""
    gate = linear(normed, layer.W_gate) + layer.b_gate
    return gate, None if layer.W_in is None else linear(normed, layer.W_in) + layer.b_in


def final_logits(
    residual: Float[Tensor, "*n d_model"], scale: Float[Tensor, "*m 1"], weights: LlamaWeights
) -> Float[Tensor, "*n d_vocab"]:
    """Compute logits from the last residual stream and the scale of the final norm."""
    return soft_cap(residual / scale @ weights.W_U + weights.b_U, weights.logit_cap)


def rope_of(plain: object, tokens: Int[Tensor, " pos"], dtype: torch.dtype) -> Rope:
    """Take cosine and sine from the model's own rotary module, which computes them in float32."""
    position = torch.arange(len(tokens), device=tokens.device).unsqueeze(0)
    like = torch.zeros(1, len(tokens), 1, dtype=dtype, device=tokens.device)
    cos, sin = plain.model.rotary_emb(like, position_ids=position)  # type: ignore[attr-defined]
    return cos[0].to(dtype), sin[0].to(dtype)
