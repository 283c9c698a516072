"""Flow through a prompt's graph by the half rule.

A target is a linear function of the last residual stream. Backwards through attention, linear once its pattern is
fixed, flow is the gradient. An MLP neuron is a product of two linear functions of its input, sigma (x . g)(x . u): each
product of two parts is split half and half, so the cotangent of the input is

    c_in = c + 1/2 [(w * u) W_gate^T + (w * g) W_in^T] / s2,   w = sigma * (W_out c).

An MLP without a gate is linear once its gate factor is fixed. Every node's flow is what it wrote times the cotangent
there. Flows into a node add up to the flow out of it, and the flows across any cut of the model to the target.
Source of the half rule: RelP, arXiv 2508.21258.
"""

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from bilinear_circuits.algebra.halves import half_rule
from bilinear_circuits.paths.frozen import Frozen
from bilinear_circuits.paths.target import Target, readout
from bilinear_circuits.utilities.display import Brief


@dataclass(frozen=True, eq=False, repr=False)
class Flow(Brief):
    """Cotangents of a target, and the flow of every component. An account of the value, no prediction of an effect.

    Attributes:
        total: Value of the target.
        constant: What of it is a bias of the logits or of the encoder.
        c_pre: Cotangent of the residual stream before each block, and after the last.
        c_mid: Between attention and MLP.
        c_mlp: Of what each MLP writes, before a norm behind it.
        c_heads: Of what each head has mixed, for every query.
        embeddings: Flow of each token's embedding.
        heads: Flow of each head's message from key to query.
        mlps: Flow of each MLP at each token.
        biases: Flow of the output bias of attention.
        mlp_constants: Of the flow of an MLP, what its own biases hold.
        value_constants: Of the flow of a head's message, what the bias of the values holds.
        cuts: Sum over the cut before each block, between its attention and its MLP, and so on to the target, biases
            behind the cut included.
    """

    total: float
    constant: float
    c_pre: Float[Tensor, "layer_and_end pos d_model"]
    c_mid: Float[Tensor, "layer pos d_model"]
    c_mlp: Float[Tensor, "layer pos d_model"]
    c_heads: Float[Tensor, "layer head query_pos d_head"]
    embeddings: Float[Tensor, " pos"]
    heads: Float[Tensor, "layer head query_pos key_pos"]
    mlps: Float[Tensor, "layer pos"]
    biases: Float[Tensor, "layer pos"]
    mlp_constants: Float[Tensor, "layer pos"]
    value_constants: Float[Tensor, "layer head query_pos key_pos"]
    cuts: Float[Tensor, " cut"]


def flow(frozen: Frozen, target: Target) -> Flow:
    """Trace a target back to the embeddings. Cost: that of one backward pass, for one prompt and one number."""
    asked = readout(frozen, target)
    last = frozen.n_layers if target.feature is None else target.feature.layer + 1
    c = torch.zeros_like(frozen.embedded)
    if target.feature is None:
        c[target.position] = asked.direction
    kept: dict[str, list[Tensor]] = {"c_pre": [c] * (frozen.n_layers - last + 1)}
    names = ("c_mid", "c_mlp", "c_heads", "heads", "mlps", "biases", "mlp_constants", "value_constants")
    kept |= {name: [] for name in names}
    for layer in reversed(range(frozen.n_layers)):
        own = torch.zeros_like(c)
        if target.feature is not None and layer == target.feature.layer:
            own[target.position] = asked.direction
        c_mlp = own + back_through_norm(c, frozen.t2[layer], frozen.weights.layers[layer].mlp_out_norm)
        c_mid, mlps, inside = _mlp(frozen, layer, c, c_mlp)
        c, *attention = _attention(frozen, layer, c_mid)
        c_heads, heads, biases, values = attention
        found = (c_mid, c_mlp, c_heads, heads, mlps, biases, inside, values)
        for name, one in zip(names, found, strict=True):
            kept[name].append(one)
        if layer < last:
            kept["c_pre"].append(c)
    fields = {name: torch.stack(some[::-1]) for name, some in kept.items()}
    cuts = _cuts(frozen, fields, asked.constant, last, target)
    embeddings = (frozen.embedded * fields["c_pre"][0]).sum(-1)
    return Flow(total=asked.value, constant=asked.constant, embeddings=embeddings, cuts=cuts, **fields)


def back_through_norm(c: Tensor, scale: Tensor, norm: Tensor | None) -> Tensor:
    """Cotangent of what is written, from that of the residual stream, past a norm behind the part that wrote it."""
    return c if norm is None else c * norm / scale


def _mlp(frozen: Frozen, layer: int, c: Tensor, c_mlp: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Cotangent in front of an MLP, its flow, and what of it its biases hold."""
    reads, inside = through_mlp(frozen, layer, slice(None), c_mlp)
    return c + reads, (frozen.mlp_out[layer] * c_mlp).sum(-1), inside


def through_mlp(
    frozen: Frozen, layer: int, position: int | slice, c_mlp: Float[Tensor, "*n d_model"]
) -> tuple[Float[Tensor, "*n d_model"], Float[Tensor, "*n"]]:
    """Take a cotangent of an MLP's output back to the residual stream in front of it, by the half rule.

    Args:
        frozen: The run.
        layer: Layer of the MLP.
        position: One token, or several.
        c_mlp: Cotangent of what the MLP writes there.

    Returns:
        The cotangent of the stream, and what of the flow the MLP's own biases hold.
    """
    one, sigma = frozen.weights.layers[layer], frozen.sigma[layer, position]
    gates, inputs = frozen.gates[layer, position], frozen.inputs[layer, position]
    w = sigma * (c_mlp @ one.W_out.T)
    if one.W_in is None:
        c_in, inside = w @ one.W_gate.T, w @ one.b_gate
    else:
        c_in = half_rule(w, gates, inputs, one.W_gate, one.W_in)
        inside = ((w * inputs) @ one.b_gate + (w * gates) @ one.b_in) / 2
    return c_in / frozen.s2[layer, position], inside + c_mlp @ one.b_out


def _attention(frozen: Frozen, layer: int, c: Tensor) -> tuple[Tensor, ...]:
    """Cotangent in front of attention and of mixed values; flows of messages, of the bias, and of value biases."""
    one, patterns = frozen.weights.layers[layer], frozen.patterns[layer]
    c_out = back_through_norm(c, frozen.t1[layer], one.attention_out_norm)
    c_heads = c_out @ one.W_O.mT
    heads = patterns * (c_heads @ frozen.values[layer].mT)
    bias = one.b_V.repeat_interleave(one.group, 0)
    values = patterns * (c_heads @ bias.unsqueeze(-1))
    c_values = (patterns.mT @ c_heads).unflatten(0, (-1, one.group)).sum(1)
    c_in = (c_values @ one.W_V.mT).sum(0)
    return c + c_in / frozen.s1[layer], c_heads, heads, c_out @ one.b_O, values


def cut_flows(frozen: Frozen, c_pre: Tensor, c_mid: Tensor, target: Target) -> Float[Tensor, "cut pos"]:
    """Find the flow in the residual stream of every token, across every cut in front of a target.

    Args:
        frozen: The run.
        c_pre: Cotangents of the stream before each block, and after the last.
        c_mid: Between attention and MLP.
        target: The target: a logit is read behind the last block, a feature in front of its MLP.
    """
    streams = torch.stack([frozen.resid_pre[:-1] * c_pre[:-1], frozen.resid_mid * c_mid], 1).flatten(0, 1).sum(-1)
    if target.feature is not None:
        return streams[: 2 * target.feature.layer + 2]
    return torch.cat([streams, (frozen.resid_pre[-1] * c_pre[-1]).sum(-1).unsqueeze(0)])


def _cuts(frozen: Frozen, fields: dict[str, Tensor], constant: float, last: int, target: Target) -> Tensor:
    """The sum over every cut, from that before the first block to that in front of the target."""
    sums = cut_flows(frozen, fields["c_pre"], fields["c_mid"], target).sum(-1)
    inside = torch.zeros_like(sums)
    for layer in range(last):
        inside[: 2 * layer + 1] += fields["biases"][layer].sum() + fields["value_constants"][layer].sum()
        inside[: 2 * layer + 2] += fields["mlp_constants"][layer].sum()
    return sums + inside + constant
