"""What one prompt does in a model, kept: patterns, norm scales and gate factors, which make the rest a polynomial."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from bilinear_circuits.dictionaries.dictionary import Dictionary
from bilinear_circuits.models.host import host_of
from bilinear_circuits.paths.forward import (
    Rope,
    attention_pattern,
    final_logits,
    gate_factor,
    gates_and_inputs,
    head_values,
    norm_scale,
    rope_of,
    write_heads,
)
from bilinear_circuits.paths.weights import LlamaWeights, plain_model, read_weights
from bilinear_circuits.utilities.display import Brief

_TOLERANCE = {torch.float64: 1e-5, torch.float32: 1e-5, torch.float16: 2e-2, torch.bfloat16: 5e-2}


@dataclass(frozen=True, eq=False, repr=False)
class Frozen(Brief):
    """One prompt's pass through a model, in one precision.

    With patterns, norm scales and gate factors held fixed, every layer is a linear map (attention) and a sum of
    products of two linear maps (MLPs).

    Attributes:
        weights: The model.
        tokens: The prompt.
        rope: Cosine and sine of the rotary embedding.
        embedded: What the embedding writes.
        patterns: What each query gives each key.
        s1: Scale of the norm before attention, for each token.
        s2: Scale of the norm before the MLP.
        s_final: Scale of the final norm.
        t1: Scale of the norm behind attention; ones without one.
        t2: Scale of the norm behind the MLP; ones without one.
        values: Values of every head, their bias included.
        gates: Gates before the activation.
        inputs: What they are multiplied with; ones for MLPs without a gate.
        sigma: Gate factors act(g) / g.
        mlp_out: What each MLP writes, before a norm behind it.
        resid_pre: Residual stream before each block, and after the last.
        resid_mid: Residual stream between attention and MLP.
        logits: Logits of the run, soft cap included.
        dictionaries: Dictionaries of MLP outputs by layer, in the same precision.
        active: Which of their features are active at each token.
    """

    weights: LlamaWeights
    tokens: Int[Tensor, " pos"]
    rope: Rope
    embedded: Float[Tensor, "pos d_model"]
    patterns: Float[Tensor, "layer head query_pos key_pos"]
    s1: Float[Tensor, "layer pos 1"]
    s2: Float[Tensor, "layer pos 1"]
    s_final: Float[Tensor, "pos 1"]
    t1: Float[Tensor, "layer pos 1"]
    t2: Float[Tensor, "layer pos 1"]
    values: Float[Tensor, "layer head pos d_head"]
    gates: Float[Tensor, "layer pos d_mlp"]
    inputs: Float[Tensor, "layer pos d_mlp"]
    sigma: Float[Tensor, "layer pos d_mlp"]
    mlp_out: Float[Tensor, "layer pos d_model"]
    resid_pre: Float[Tensor, "layer_and_end pos d_model"]
    resid_mid: Float[Tensor, "layer pos d_model"]
    logits: Float[Tensor, "pos d_vocab"]
    dictionaries: Mapping[int, Dictionary]
    active: Mapping[int, Bool[Tensor, "pos d_sae"]]

    @property
    def n_layers(self) -> int:
        """Number of blocks."""
        return self.weights.n_layers

    @property
    def n_heads(self) -> int:
        """Query heads of a block."""
        return self.patterns.shape[1]

    @property
    def n_pos(self) -> int:
        """Tokens of the prompt."""
        return len(self.tokens)


@torch.no_grad()
def freeze(
    model: Any,
    tokens: Int[Tensor, " pos"],
    dtype: torch.dtype | None = None,
    dictionaries: Mapping[int, Dictionary] | None = None,
) -> Frozen:
    """Run a prompt by plain tensor operations, keep all of it, and prove it equal to the model.

    Cost: a copy of the weights in `dtype`, one pass of the model and one of ours.

    Args:
        model: A host, or a model that `host_of` knows.
        tokens: Token ids of the prompt, no more than the model's context.
        dtype: float32 or float64; by default the model's own, float32 for a model in half precision.
        dictionaries: Dictionaries of MLP outputs, by layer.

    Raises:
        ValueError: If the architecture is none of those known, the tokens do not fit, a dictionary is of another place,
            or the logits are not the model's: within 1e-5 of the largest, in float32 and float64; within 2e-2 for a
            model in float16 and 5e-2 in bfloat16, which is computed as its float32 upcast. Transformers
            computes norms and softmax in float32 inside a float64 model, too.
        TypeError: If tokens are no tensor, or dictionaries no mapping from layers to dictionaries.
    """
    _check_dictionaries(dictionaries)
    weights = read_weights(model, dtype)
    plain = plain_model(model)
    _check_tokens(tokens, weights, host_of(model).n_ctx)
    tokens = tokens.to(weights.W_E.device)
    state = _run(weights, tokens, rope_of(plain, tokens, weights.W_E.dtype))
    precision = next(plain.parameters()).dtype
    expected = host_of(model).logits(tokens.unsqueeze(0))[0].to(weights.W_E.dtype)
    error = ((state["logits"] - expected).abs().max() / expected.abs().max()).item()
    if not error <= _TOLERANCE[precision]:
        raise ValueError(
            f"model must compute what its modules' names say, but logits rebuilt from the weights of this"
            f" {type(plain).__name__} differ by {error:.2g} of the largest one. It may scale or add something that is"
            " no Llama's (residual multipliers, other masks), or be in training: call model.eval()."
        )
    kept, active = _active(dictionaries or {}, state["mlp_out"], weights)
    return Frozen(**state, dictionaries=kept, active=active)


def _run(weights: LlamaWeights, tokens: Tensor, rope: Rope) -> dict[str, Any]:
    """Fields of a run, as they come."""
    x = weights.W_E[tokens]
    names = ["patterns", "s1", "s2", "t1", "t2", "values"]
    names += ["gates", "inputs", "sigma", "mlp_out", "resid_pre", "resid_mid"]
    kept: dict[str, list[Tensor]] = {name: [] for name in names}
    kept["resid_pre"].append(x)
    for layer in weights.layers:
        s1 = norm_scale(x, weights.eps)
        pattern, values = attention_pattern(x / s1, layer, weights, rope), head_values(x / s1, layer)
        written = write_heads(pattern @ values, layer)
        t1 = out_scale(written, layer.attention_out_norm, weights.eps)
        mid = x + written_by(written, t1, layer.attention_out_norm)
        s2 = norm_scale(mid, weights.eps)
        gates, inputs = gates_and_inputs(mid / s2, layer)
        inputs = torch.ones_like(gates) if inputs is None else inputs
        sigma = gate_factor(gates, layer.act)
        y = (sigma * gates * inputs) @ layer.W_out + layer.b_out
        t2 = out_scale(y, layer.mlp_out_norm, weights.eps)
        x = mid + written_by(y, t2, layer.mlp_out_norm)
        found = (pattern, s1, s2, t1, t2, values, gates, inputs, sigma, y, x, mid)
        for name, one in zip(names, found, strict=True):
            kept[name].append(one)
    s_final = norm_scale(x, weights.eps)
    state: dict[str, Any] = {name: torch.stack(some) for name, some in kept.items()}
    given = {"weights": weights, "tokens": tokens, "rope": rope, "embedded": weights.W_E[tokens]}
    return state | given | {"s_final": s_final, "logits": final_logits(x, s_final, weights)}


def out_scale(
    written: Float[Tensor, "*n d_model"], norm: Float[Tensor, " d_model"] | None, eps: float
) -> Float[Tensor, "*n 1"]:
    """Scale of a norm behind attention or an MLP; ones where there is none."""
    return torch.ones_like(written[..., :1]) if norm is None else norm_scale(written, eps)


def written_by(written: Tensor, scale: Tensor, norm: Tensor | None) -> Tensor:
    """Scale what a part wrote as it reaches the residual stream, past a norm behind the part."""
    return written if norm is None else written / scale * norm


def _active(
    dictionaries: Mapping[int, Dictionary], mlp_out: Tensor, weights: LlamaWeights
) -> tuple[dict[int, Dictionary], dict[int, Tensor]]:
    """Dictionaries in the precision of the run, and which of their features are active."""
    kept, active = {}, {}
    for layer, one in dictionaries.items():
        if not 0 <= layer < weights.n_layers or one.W_enc.shape[0] != weights.d_model:
            raise ValueError(
                f"dictionaries must be of layers 0 to {weights.n_layers - 1} and d_model={weights.d_model}, got layer"
                f" {layer} and {one.W_enc.shape[0]}."
            )
        places = {f"blocks.{layer}.mlp.hook_out", f"blocks.{layer}.hook_mlp_out"}
        if one.hook_name is not None and one.hook_name not in places:
            raise ValueError(f"dictionary of layer {layer} must be of its mlp.hook_out, got {one.hook_name}.")
        kept[layer] = one.to(mlp_out.dtype).to(mlp_out.device)
        active[layer] = kept[layer].encode(mlp_out[layer]) != 0
    return kept, active


def _check_dictionaries(dictionaries: Any) -> None:
    """Refuse what is no mapping from layers to dictionaries."""
    must = "dictionaries must be a mapping from layers to a Dictionary each, such as {4: sae_out}"
    if dictionaries is not None and not isinstance(dictionaries, Mapping):
        raise TypeError(f"{must}, got a {type(dictionaries).__name__}.")
    for layer, one in (dictionaries or {}).items():
        if type(layer) is not int or not isinstance(one, Dictionary):
            raise TypeError(
                f"{must}, got {layer!r}: a {type(one).__name__}. Dictionary.from_sae(sae) makes one of a SAELens SAE."
            )


def _check_tokens(tokens: Any, weights: LlamaWeights, context: int) -> None:
    """Refuse what is no prompt of the model."""
    must, step = "tokens must be the ids of one prompt, a tensor [pos]", "bilinear_circuits.prompt_tokens makes one."
    if not isinstance(tokens, Tensor):
        raise TypeError(f"{must}, got a {type(tokens).__name__}. {step}")
    if tokens.ndim != 1 or len(tokens) == 0 or tokens.dtype not in (torch.int64, torch.int32):
        row = " Pass tokens[0]." if tokens.ndim == 2 and len(tokens) == 1 else ""
        raise ValueError(f"{must}, got {tokens.dtype} {tuple(tokens.shape)}.{row or f' {step}'}")
    if len(tokens) > context:
        raise ValueError(
            f"tokens must be at most {context}, the model's context, got {len(tokens)}. Shorten the prompt."
        )
    d_vocab = len(weights.W_E)
    if not 0 <= int(tokens.min()) <= int(tokens.max()) < d_vocab:
        raise ValueError(f"tokens must be between 0 and {d_vocab - 1}, got {int(tokens.min())} to {int(tokens.max())}.")
