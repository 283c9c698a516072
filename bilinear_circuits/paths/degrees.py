"""The target as a polynomial of the embeddings, once patterns, norm scales and gate factors are fixed.

With embeddings times c, every MLP with a gate doubles the degree: after L of them the target is a polynomial of degree
2^L in c. Its values at 2^L + 1 roots of unity give all coefficients by one Fourier transform, and an integral over c of
its derivative is exact with 2^(L-1) nodes of Gauss and Legendre. Attention and MLPs without a gate keep the degree.
"""

from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from scipy.special import roots_legendre
from torch import Tensor

from bilinear_circuits.paths.flow import Flow, flow
from bilinear_circuits.paths.forward import gates_and_inputs, head_values, linear, write_heads
from bilinear_circuits.paths.frozen import Frozen, written_by
from bilinear_circuits.paths.target import Readout, Target, readout
from bilinear_circuits.utilities.display import Shown, Tabled
from bilinear_circuits.utilities.kinds import check_whole

MOST_RUNS = 4097
_AT_ONCE = 64


@dataclass(frozen=True, eq=False, repr=False)
class Degrees(Shown, Tabled):
    """How much of a target is of each degree in the embeddings.

    Attributes:
        total: Value of the target.
        value: Its part of degree 0, 1, 2 and so on; degree 0 is what biases alone make.
        rest: Its parts of higher degrees together, where only the lower ones were asked for; else 0 up to rounding.
        heads: The same of the flow of each head at each query: what the head wrote times its cotangent.
        mlps: The same of the flow of each MLP at each token.
    """

    total: float
    value: Float[Tensor, " degree"]
    rest: float
    heads: Float[Tensor, "layer head pos degree"]
    mlps: Float[Tensor, "layer pos degree"]

    @property
    def share(self) -> Float[Tensor, " degree"]:
        """Each part as a share of the target."""
        return self.value / self.total

    def table(self) -> dict[str, list[Any]]:
        """One row for each degree."""
        return {"degree": [*range(len(self.value))], "value": self.value.tolist()}


@dataclass(frozen=True, eq=False, repr=False)
class IntegratedGradients(Shown, Tabled):
    """A target divided among the tokens by the gradient along the line from no embeddings to the prompt's.

    Attributes:
        total: Value of the target.
        baseline: Its value without embeddings: what biases alone make.
        value: Share of each token; together with the baseline they add up to the total if `exact`.
        n_nodes: Nodes of the integral.
        exact: Whether these are enough for the degree of the polynomial.
    """

    total: float
    baseline: float
    value: Float[Tensor, " pos"]
    n_nodes: int
    exact: bool

    def table(self) -> dict[str, list[Any]]:
        """One row for each token."""
        return {"position": [*range(len(self.value))], "value": self.value.tolist()}


def frozen_pass(
    frozen: Frozen, embedded: Float[Tensor, "row pos d_model"] | Tensor
) -> tuple[list[Tensor], list[Tensor], Tensor]:
    """Run other embeddings, real or complex, with everything fixed that can be.

    Returns:
        What the heads of each layer mixed, what each MLP writes, and the last residual stream.
    """
    x, heads, mlps = embedded, [], []
    for layer, one in enumerate(frozen.weights.layers):
        values = head_values(x / frozen.s1[layer], one)
        pattern = frozen.patterns[layer].to(values.dtype)
        heads.append(pattern @ values)
        x = x + written_by(write_heads(heads[-1], one), frozen.t1[layer], one.attention_out_norm)
        gates, inputs = gates_and_inputs(x / frozen.s2[layer], one)
        neurons = frozen.sigma[layer] * (gates if inputs is None else gates * inputs)
        mlps.append(linear(neurons, one.W_out) + one.b_out)
        x = x + written_by(mlps[-1], frozen.t2[layer], one.mlp_out_norm)
    return heads, mlps, x


def degree_of(frozen: Frozen, target: Target) -> int:
    """Degree of a target in the embeddings: 2 to the number of MLPs with a gate before it."""
    last = frozen.n_layers if target.feature is None else target.feature.layer + 1
    return 2 ** sum(one.W_in is not None for one in frozen.weights.layers[:last])


@torch.no_grad()
def degree_spectrum(frozen: Frozen, target: Target, max_degree: int | None = None) -> Degrees:
    """Divide a target, and the flow of every head and MLP, by degrees in the embeddings.

    Cost: half of 2^L + 1 complex passes; with `max_degree` m that of (m + 1)^2 / 2 products of neurons a layer, however
    deep the model.

    Args:
        frozen: The run.
        target: What is divided.
        max_degree: Highest degree wanted, the others being one number; all by default.

    Raises:
        ValueError: If the degree is too high for all of them, or `max_degree` is not positive.
    """
    degree = degree_of(frozen, target)
    if max_degree is not None:
        check_whole("max_degree", max_degree)
    if max_degree is None and degree >= MOST_RUNS:
        raise ValueError(
            f"degree of the target must be below {MOST_RUNS} for all parts to be computed, got {degree}: it doubles"
            " with every gated MLP. Pass max_degree=8 for the exact parts up to it and the rest as one number."
        )
    asked, traced = readout(frozen, target), flow(frozen, target)
    if max_degree is None or max_degree >= degree:
        value, heads, mlps = _by_roots(frozen, target, asked, traced, degree)
    else:
        value, heads, mlps = _by_products(frozen, target, asked, traced, max_degree)
    value[0] += asked.constant
    return Degrees(asked.value, value, asked.value - value.sum().item(), heads, mlps)


def _read(
    frozen: Frozen, target: Target, asked: Readout, traced: Flow, run: tuple[list[Tensor], list[Tensor], Tensor]
) -> tuple[Tensor, Tensor, Tensor]:
    """The target without its constant, and the flows of heads and MLPs, in every row of a pass."""
    heads, mlps, x = run
    place = x if target.feature is None else mlps[target.feature.layer]
    value = place[:, target.position] @ asked.direction.to(place.dtype)
    c_heads, c_mlp = traced.c_heads.to(x.dtype), traced.c_mlp.to(x.dtype)
    of_heads = torch.stack([(one * c).sum(-1) for one, c in zip(heads, c_heads, strict=True)], 1)
    of_mlps = torch.stack([(one * c).sum(-1) for one, c in zip(mlps, c_mlp, strict=True)], 1)
    return value, of_heads, of_mlps


def _by_roots(
    frozen: Frozen, target: Target, asked: Readout, traced: Flow, degree: int
) -> tuple[Tensor, Tensor, Tensor]:
    """All coefficients, from values at roots of unity: those of conjugate roots are conjugate."""
    n, complex_dtype = degree + 1, torch.promote_types(frozen.embedded.dtype, torch.complex64)
    angle = 2 * torch.pi * torch.arange(n // 2 + 1, dtype=torch.double, device=frozen.embedded.device) / n
    roots = torch.polar(torch.ones_like(angle), angle).to(complex_dtype)
    found = []
    for some in roots.split(_AT_ONCE):
        rows = some.reshape(-1, 1, 1) * frozen.embedded
        found.append(_read(frozen, target, asked, traced, frozen_pass(frozen, rows)))
    value, heads, mlps = (
        torch.fft.irfft(torch.cat(some).conj_physical(), n=n, dim=0).movedim(0, -1) for some in zip(*found, strict=True)
    )
    return value.clone(), heads, mlps


def _by_products(
    frozen: Frozen, target: Target, asked: Readout, traced: Flow, most: int
) -> tuple[Tensor, Tensor, Tensor]:
    """Coefficients up to a degree: those of a product are sums of products of those of its factors."""
    x = torch.zeros_like(frozen.embedded).repeat(most + 1, 1, 1)
    x[1] = frozen.embedded
    heads, mlps = [], []
    for layer, one in enumerate(frozen.weights.layers):
        values = _without_bias_above(head_values(x / frozen.s1[layer], one), one.b_V.repeat_interleave(one.group, 0))
        heads.append(frozen.patterns[layer] @ values)
        mixed = _without_bias_above(write_heads(heads[-1], one), one.b_O)
        x = x + written_by(mixed, frozen.t1[layer], one.attention_out_norm)
        gates, inputs = gates_and_inputs(x / frozen.s2[layer], one)
        gates = _without_bias_above(gates, one.b_gate)
        neurons = gates
        if inputs is not None:
            inputs = _without_bias_above(inputs, one.b_in)
            neurons = torch.stack([(gates[: d + 1] * inputs[: d + 1].flip(0)).sum(0) for d in range(most + 1)])
        mlps.append(_without_bias_above((frozen.sigma[layer] * neurons) @ one.W_out + one.b_out, one.b_out))
        x = x + written_by(mlps[-1], frozen.t2[layer], one.mlp_out_norm)
    return tuple(some.movedim(0, -1).clone() for some in _read(frozen, target, asked, traced, (heads, mlps, x)))  # type: ignore[return-value]


def _without_bias_above(coefficients: Tensor, bias: Tensor) -> Tensor:
    """A bias belongs to degree 0 alone."""
    bias = bias.unsqueeze(1) if bias.ndim == 2 else bias
    return torch.cat([coefficients[:1], coefficients[1:] - bias])


def integrated_gradients(frozen: Frozen, target: Target, n_nodes: int | None = None) -> IntegratedGradients:
    """Integrate the gradient of the frozen target along the line from no embeddings to the prompt's.

    Cost: a forward and a backward pass for each node; 2^(L-1) nodes after L gated MLPs are exact.

    Args:
        frozen: The run.
        target: What is divided.
        n_nodes: Nodes of Gauss and Legendre; as many as are exact by default.

    Raises:
        ValueError: If the exact number is too large and none is given.
    """
    if n_nodes is not None:
        check_whole("n_nodes", n_nodes)
    needed = max(1, degree_of(frozen, target) // 2)
    if n_nodes is None and needed >= MOST_RUNS:
        raise ValueError(
            f"an exact integral must take fewer than {MOST_RUNS} nodes, got {needed}: they double with every gated MLP."
            " Pass n_nodes=64 for one that is not exact."
        )
    asked, n = readout(frozen, target), n_nodes or needed
    nodes, weights = (torch.from_numpy(one).to(frozen.embedded) for one in roots_legendre(n))
    share = torch.zeros_like(frozen.embedded)
    for at, weight in zip(((nodes + 1) / 2).split(_AT_ONCE), (weights / 2).split(_AT_ONCE), strict=True):
        rows = (at.reshape(-1, 1, 1) * frozen.embedded).requires_grad_()
        with torch.enable_grad():
            value = _place(frozen, target, rows) @ asked.direction
            (gradient,) = torch.autograd.grad((value * weight).sum(), rows)
        share += gradient.sum(0)
    with torch.no_grad():
        nothing = torch.zeros_like(frozen.embedded).unsqueeze(0)
        baseline = (_place(frozen, target, nothing) @ asked.direction).item() + asked.constant
    return IntegratedGradients(asked.value, baseline, (share * frozen.embedded).sum(-1), n, n >= needed)


def _place(frozen: Frozen, target: Target, embedded: Tensor) -> Tensor:
    """What the target reads, in every row."""
    _, mlps, x = frozen_pass(frozen, embedded)
    return (x if target.feature is None else mlps[target.feature.layer])[:, target.position]
