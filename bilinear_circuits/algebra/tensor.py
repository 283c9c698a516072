"""InteractionTensor: a bilinear layer as one symmetric third-order tensor, never materialised."""

from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from jaxtyping import Float
from torch import Tensor

from bilinear_circuits.algebra.matrix import InteractionMatrix
from bilinear_circuits.utilities.display import Brief, Shown

_BIASES = {"b_gate": "d_mlp", "b_in": "d_mlp", "b_out": "d_out"}


@dataclass(frozen=True, eq=False, repr=False)
class QuadraticForm(Brief):
    """p(x) = x^T Q x + linear . x + constant: one output direction of a layer, biases included.

    Attributes:
        matrix: The quadratic part Q.
        linear: The linear part, zero without biases.
        constant: The constant part, zero without biases.
    """

    matrix: InteractionMatrix
    linear: Float[Tensor, "*batch d_in"]
    constant: Float[Tensor, "*batch"]

    def __call__(self, x: Float[Tensor, "*n d_in"]) -> Float[Tensor, "..."]:
        """Evaluate the polynomial; rows of x first, then the batch of directions."""
        return self.matrix(x) + torch.tensordot(x, self.linear, dims=([-1], [-1])) + self.constant


@dataclass(frozen=True, eq=False, repr=False)
class InteractionTensor(Shown):
    """The layer x -> ((x W_gate + b_gate) * (x W_in + b_in)) W_out + b_out, with `*` elementwise.

    Its quadratic part is the tensor B[o, i, j] = sum_m W_out[m, o] sym(W_gate[i, m] W_in[j, m]), of shape
    (d_out, d_in, d_in) and symmetric in its last two indices (Pearce et al. 2024, arXiv 2410.08417, section 3;
    Sharkey 2023, arXiv 2305.03452). Only the three matrices are held: 3 d_model d_mlp numbers instead of d_model^3.
    dtype and device are those of the weights.

    Attributes:
        W_gate: First read matrix (Llama: `gate_proj.weight.T`).
        W_in: Second read matrix (Llama: `up_proj.weight.T`).
        W_out: Write matrix (Llama: `down_proj.weight.T`).
        b_gate: Bias of the first projection, if any.
        b_in: Bias of the second projection, before the product, if any.
        b_out: Bias of the output, if any.

    Examples:
        >>> tensor = InteractionTensor(torch.randn(5, 7), torch.randn(5, 7), torch.randn(7, 3))
        >>> x, u = torch.randn(5), torch.randn(3)
        >>> torch.allclose(tensor.matrix(u)(x), tensor(x) @ u, rtol=1e-4, atol=1e-5)
        True
    """

    W_gate: Float[Tensor, "d_in d_mlp"]
    W_in: Float[Tensor, "d_in d_mlp"]
    W_out: Float[Tensor, "d_mlp d_out"]
    b_gate: Float[Tensor, " d_mlp"] | None = None
    b_in: Float[Tensor, " d_mlp"] | None = None
    b_out: Float[Tensor, " d_out"] | None = None

    def __post_init__(self) -> None:
        if self.W_gate.ndim != 2:
            raise ValueError(f"W_gate must be (d_in, d_mlp), got shape {tuple(self.W_gate.shape)}.")
        d_in, d_mlp = self.W_gate.shape
        if self.W_in.shape != self.W_gate.shape:
            hint = _transpose_hint(self.W_in.shape[::-1] == self.W_gate.shape)
            raise ValueError(f"W_in must match W_gate, ({d_in=}, {d_mlp=}), got {tuple(self.W_in.shape)}.{hint}")
        if self.W_out.ndim != 2 or self.W_out.shape[0] != d_mlp:
            hint = _transpose_hint(self.W_out.shape[-1] in (d_mlp, d_in))
            raise ValueError(f"W_out must be (d_mlp, d_out) with {d_mlp=}, got {tuple(self.W_out.shape)}.{hint}")
        d_out = self.W_out.shape[1]
        for name, size in _BIASES.items():
            bias, length = getattr(self, name), d_mlp if size == "d_mlp" else d_out
            if bias is not None and bias.shape != (length,):
                raise ValueError(f"{name} must have {size}={length} entries, got {tuple(bias.shape)}.")
        _check_same_kind({name: getattr(self, name) for name in ("W_gate", "W_in", "W_out", *_BIASES)})

    @property
    def d_in(self) -> int:
        """Size of the space the layer reads."""
        return self.W_gate.shape[0]

    @property
    def d_mlp(self) -> int:
        """Number of neurons."""
        return self.W_gate.shape[1]

    @property
    def d_out(self) -> int:
        """Size of the space the layer writes."""
        return self.W_out.shape[1]

    @property
    def has_bias(self) -> bool:
        """True with any bias, so that the layer has linear or constant parts."""
        return any(getattr(self, name) is not None for name in _BIASES)

    def __call__(
        self, x: Float[Tensor, "*n d_in"], y: Float[Tensor, "*n d_in"] | None = None
    ) -> Float[Tensor, "*n d_out"]:
        """Apply the layer, or its symmetric bilinear form: `tensor(x, x)` equals `tensor(x)`.

        With biases the form is that of the augmented inputs (x, 1) and (y, 1).

        Raises:
            ValueError: If a row does not have d_in entries.
        """
        gate_x, in_x = self.projections(x)
        if y is None:
            products = gate_x * in_x
        else:
            gate_y, in_y = self.projections(y, "y")
            products = (gate_x * in_y + gate_y * in_x) / 2
        out = products @ self.W_out
        return out if self.b_out is None else out + self.b_out

    def gated(self, x: Float[Tensor, "*n d_in"], act: Callable[[Tensor], Tensor]) -> Float[Tensor, "*n d_out"]:
        """Apply the layer with a function on its gate: (act(x W_gate + b_gate) * (x W_in + b_in)) W_out + b_out.

        Raises:
            ValueError: If a row does not have d_in entries.
        """
        gate, other = self.projections(x)
        out = (act(gate) * other) @ self.W_out
        return out if self.b_out is None else out + self.b_out

    def matrix(self, u: Float[Tensor, "*batch d_out"]) -> InteractionMatrix:
        """Contract the output index of the quadratic part with a direction, or with a batch of them.

        Q = sum_m (W_out[m] . u) sym(W_gate[:, m] W_in[:, m]^T), kept factored: one (d_mlp, d_out) product.

        Args:
            u: Output direction of any norm; Q is linear in it.

        Returns:
            Symmetric matrix on the read space, in the dtype and on the device of the weights.

        Raises:
            ValueError: If `u` does not have d_out entries.

        Examples:
            >>> tensor = InteractionTensor(torch.randn(5, 7), torch.randn(5, 7), torch.randn(7, 3))
            >>> tensor.matrix(torch.eye(3)).to_dense().shape == tensor.to_dense().shape
            True
        """
        return InteractionMatrix(self.W_gate, self.W_in, self._neuron_weights(u))

    def quadratic_form(self, u: Float[Tensor, "*batch d_out"]) -> QuadraticForm:
        """The whole polynomial of an output direction: u . tensor(x) = x^T Q x + linear . x + constant.

        linear = W_gate (c * b_in) + W_in (c * b_gate) and constant = c . (b_gate * b_in) + u . b_out, with c = W_out u.

        Raises:
            ValueError: If `u` does not have d_out entries.
        """
        c = self._neuron_weights(u)
        zeros = self.W_gate.new_zeros(self.d_mlp)
        b_gate = zeros if self.b_gate is None else self.b_gate
        b_in = zeros if self.b_in is None else self.b_in
        constant = c @ (b_gate * b_in)
        if self.b_out is not None:
            constant = constant + u @ self.b_out
        linear = (c * b_in) @ self.W_gate.T + (c * b_gate) @ self.W_in.T
        return QuadraticForm(InteractionMatrix(self.W_gate, self.W_in, c), linear, constant)

    def augmented(self) -> "InteractionTensor":
        """The bias-free tensor on inputs (x, 1): the last coordinate carries the biases.

        b_out becomes one further neuron that reads the constant twice.
        """
        rows = [(self.W_gate, self.b_gate), (self.W_in, self.b_in)]
        W_gate, W_in = (torch.cat([W, (W.new_zeros(self.d_mlp) if b is None else b).unsqueeze(0)]) for W, b in rows)
        if self.b_out is None:
            return InteractionTensor(W_gate, W_in, self.W_out)
        reads_one = torch.zeros_like(W_gate[:, :1])
        reads_one[-1] = 1
        W_out = torch.cat([self.W_out, self.b_out.unsqueeze(0)])
        return InteractionTensor(torch.cat([W_gate, reads_one], 1), torch.cat([W_in, reads_one], 1), W_out)

    def read_from(
        self, basis: Float[Tensor, "d_new d_in"], offset: Float[Tensor, " d_in"] | None = None
    ) -> "InteractionTensor":
        """Read the layer as a function of z, where x = z @ basis + offset.

        With the decoder of a dictionary, `read_from(W_dec, b_dec)`, the tensor is read in features. An offset turns
        into biases b_gate + offset W_gate and b_in + offset W_in.

        Raises:
            ValueError: If `basis` or `offset` does not fit d_in.
        """
        if basis.ndim != 2 or basis.shape[1] != self.d_in:
            raise ValueError(f"basis must be (d_new, d_in={self.d_in}), one row per input, got {tuple(basis.shape)}.")
        if offset is None:
            return replace(self, W_gate=basis @ self.W_gate, W_in=basis @ self.W_in)
        b_gate, b_in = self.projections(offset, "offset")
        return replace(self, W_gate=basis @ self.W_gate, W_in=basis @ self.W_in, b_gate=b_gate, b_in=b_in)

    def write_to(
        self, basis: Float[Tensor, "d_out d_new"], offset: Float[Tensor, " d_new"] | None = None
    ) -> "InteractionTensor":
        """Write the layer's outputs in another basis: y @ basis + offset.

        With the encoder of a dictionary, `write_to(W_enc, b_enc)`, its outputs are feature pre-activations.

        Raises:
            ValueError: If `basis` or `offset` does not fit.
        """
        if basis.ndim != 2 or basis.shape[0] != self.d_out:
            raise ValueError(
                f"basis must be (d_out={self.d_out}, d_new), one column per output, got {tuple(basis.shape)}."
            )
        b_out = offset if self.b_out is None else self.b_out @ basis + (0 if offset is None else offset)
        return replace(self, W_out=self.W_out @ basis, b_out=b_out)

    def to(self, target: torch.dtype | torch.device | str) -> "InteractionTensor":
        """Copy the tensor in another dtype or to another device."""
        biases = {name: None if (b := getattr(self, name)) is None else b.to(target) for name in _BIASES}
        return InteractionTensor(self.W_gate.to(target), self.W_in.to(target), self.W_out.to(target), **biases)

    def to_dense(self) -> Float[Tensor, "d_out d_in d_in"]:
        """Form the quadratic part: d_out d_in^2 numbers and O(d_out d_in^2 d_mlp) time."""
        return self.matrix(torch.eye(self.d_out, dtype=self.W_out.dtype, device=self.W_out.device)).to_dense()

    def projections(
        self, x: Float[Tensor, "*n d_in"], name: str = "x"
    ) -> tuple[Float[Tensor, "*n d_mlp"], Float[Tensor, "*n d_mlp"]]:
        """Both factors of every neuron's product, x W_gate + b_gate and x W_in + b_in.

        Raises:
            ValueError: If a row does not have d_in entries; `name` is what the error calls x.
        """
        if x.shape[-1:] != (self.d_in,):
            raise ValueError(f"{name} must end in d_in={self.d_in} entries, got shape {tuple(x.shape)}.")
        gate, linear = x @ self.W_gate, x @ self.W_in
        return (
            gate if self.b_gate is None else gate + self.b_gate,
            linear if self.b_in is None else linear + self.b_in,
        )

    def _neuron_weights(self, u: Tensor) -> Tensor:
        if u.shape[-1:] != (self.d_out,):
            raise ValueError(f"u must end in d_out={self.d_out} entries, got shape {tuple(u.shape)}.")
        return u @ self.W_out.T


def _transpose_hint(transposed: bool) -> str:
    return " nn.Linear stores the transpose: pass weight.T." if transposed else ""


def _check_same_kind(tensors: dict[str, Tensor | None]) -> None:
    first = tensors["W_gate"]
    assert first is not None
    for name, value in tensors.items():
        if value is not None and (value.dtype != first.dtype or value.device != first.device):
            raise ValueError(
                f"{name} must have the dtype and device of W_gate, {first.dtype} on {first.device},"
                f" got {value.dtype} on {value.device}. Convert with .to() first."
            )
