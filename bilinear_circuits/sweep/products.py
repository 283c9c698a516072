"""Blocks of the interaction tensor in a coarse precision, with a bound on their error that holds for every entry."""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor

from bilinear_circuits.sweep.forms import QuadraticForms
from bilinear_circuits.tensor import InteractionTensor

Precision = Literal["bfloat16", "float32"]
_UNIT = {"bfloat16": 2.0**-8, "float32": 2.0**-24}  # unit roundoff
_UNDERFLOW = 2.0**-120  # what flushing of subnormal numbers to zero can take away, with room to spare
_SQUARES_UNDERFLOW = 2.0**-62  # the same for the squares in a norm, for each root of the number of squares
_FORM_GROUP = 256
_PANEL_ROWS = 64
_LANES = 32


@dataclass(frozen=True, eq=False)
class Panel:
    """Rows of T_f for the outputs of a block, from the diagonal on.

    The memory of the values is used again by the next block.

    Attributes:
        start: First row, which is the first column too.
        values: Coarse T_f[a, b] for a <= b, half of it for a = b, zero for a > b; row a first, then the output.
    """

    start: int
    values: Float[Tensor, "row output column"]


@dataclass(frozen=True, eq=False)
class Block:
    """Some outputs. Its memory is used again by the next block.

    A coarse value v of a panel and the true score s, T_ab or T_aa / 2, are related by v = (s + e) (1 + t) with
    |e| <= slack[a, output] and |t| <= unit.

    Attributes:
        outputs: Columns of the write basis.
        weights: Neuron weights of the outputs.
        slack: Bound on the error of a score, by row of a panel and output.
        unit: Relative rounding of the values themselves.
    """

    outputs: Int[Tensor, " output"]
    weights: Float[Tensor, "output d_mlp"]
    slack: Float[Tensor, "row output"]
    unit: float
    _left: Tensor
    _right: Tensor
    _height: int
    _memory: Tensor

    def panels(self) -> Iterator[Panel]:
        """Form the panels, one at a time: 2 d_in operations per entry."""
        n_rows, n_outputs, d_in = self._left.shape
        used = 0
        for start in range(0, n_rows, self._height):
            rows = self._left[start : start + self._height].reshape(-1, d_in)
            n_values = len(rows) * (n_rows - start)
            values = self._memory[used : used + n_values].view(len(rows), -1)
            used += n_values
            with exact_sums():
                torch.mm(rows, self._right[:, start:], out=values)
            values = values.unflatten(0, (-1, n_outputs))
            corner = values[:, :, : self._height]
            corner.mul_(_upper(corner))
            yield Panel(start, values)


class Products:
    """The tensor T[f, a, b] = D_a Q_f D_b of a layer between two bases, block by block.

    Two products per block: A = D Q for all its outputs, then the upper half of A D^T, in `precision`. The bound on
    their error follows from Cauchy and Schwarz with what rounding took from D and Q, which is known, the norms of the
    rows of A, and at most one unit roundoff for each number stored. Sums of products are taken to be in float32.

    Attributes:
        n_inputs: Rows of the read basis.
        n_outputs: Columns of the write basis.
        precision: Precision of the products.
    """

    def __init__(
        self,
        tensor: InteractionTensor,
        read: Float[Tensor, "d_sae_in d_in"],
        write: Float[Tensor, "d_out d_sae_out"],
        outputs: Int[Tensor, " n"] | None = None,
        precision: Precision | None = None,
    ) -> None:
        """Prepare the sweep.

        Args:
            tensor: The layer.
            read: Row a is input direction a, the decoder of the input dictionary.
            write: Column f is output direction f, the encoder of the output dictionary.
            outputs: Columns to sweep over; all by default.
            precision: "bfloat16" or "float32"; by default the faster of the two on this device.

        Raises:
            ValueError: If the bases do not fit the layer, or the precision is unknown.
        """
        for name, got, want in (("read", read.shape[1], tensor.d_in), ("write", write.shape[0], tensor.d_out)):
            if got != want:
                raise ValueError(f"{name} must have directions of {want} entries to fit the layer, got {got}.")
        self.precision = fastest_precision(read.device) if precision is None else precision
        if self.precision not in _UNIT:
            raise ValueError(f"precision must be one of {', '.join(_UNIT)}, got {precision!r}.")
        self.n_inputs, self.n_outputs = len(read), write.shape[1]
        self.outputs = torch.arange(self.n_outputs, device=read.device) if outputs is None else outputs.to(read.device)
        self._tensor, self._read, self._write = tensor, read, write
        on_gpu = read.device.type != "cpu"
        self._height = min(512 if on_gpu else _PANEL_ROWS, -(-self.n_inputs // _LANES) * _LANES)
        self._n_outputs_block = 32 if on_gpu else 16

    @property
    def dtype(self) -> torch.dtype:
        """Precision of exact scores."""
        return self._read.dtype

    @property
    def n_rows(self) -> int:
        """Rows of a block: those of the read basis, filled up to whole panels."""
        return -(-self.n_inputs // self._height) * self._height

    @cached_property
    def factors(self) -> tuple[Float[Tensor, "d_sae_in d_mlp"], Float[Tensor, "d_sae_in d_mlp"]]:
        """D W_gate and D W_in, summed in float64: what exact values are read from."""
        read, dtype = self._read.double(), self._read.dtype
        return tuple((read @ W.double()).to(dtype) for W in (self._tensor.W_gate, self._tensor.W_in))  # type: ignore[return-value]

    @property
    def groups(self) -> tuple[Int[Tensor, " n"], ...]:
        """Places in `outputs` of those whose forms are made together."""
        return torch.arange(len(self.outputs), device=self.outputs.device).split(_FORM_GROUP)

    def blocks(self, group: Int[Tensor, " n"]) -> Iterator[Block]:
        """Blocks of the outputs of a group, in their order."""
        outputs = self.outputs[group]
        with exact_sums():
            dense = self._forms(group)
        weights = self.neuron_weights(outputs)
        for at in torch.arange(len(group), device=group.device).split(self._n_outputs_block):
            with exact_sums():
                block = self._block(outputs[at], weights[at], dense.Q[at], dense.error[at])
            yield block

    def neuron_weights(self, outputs: Int[Tensor, " n"]) -> Float[Tensor, "n d_mlp"]:
        """What each neuron counts in each output, summed in float64."""
        return (self._write[:, outputs].T.double() @ self._tensor.W_out.T.double()).to(self._write.dtype)

    @cached_property
    def _memory(self) -> Tensor:
        """Room for the panels of a block: asking for new memory each time takes as long as filling it."""
        n_panels = self.n_rows // self._height
        n_values = self._height**2 * (n_panels * (n_panels + 1) // 2) * self._n_outputs_block
        return torch.empty(n_values, dtype=getattr(torch, self.precision), device=self._read.device)

    @cached_property
    def _left_memory(self) -> Tensor:
        """Room for the first product of a block, and for its squares."""
        n_values = self.n_rows * self._n_outputs_block * self._tensor.d_in
        return torch.empty(2, n_values, dtype=getattr(torch, self.precision), device=self._read.device)

    @cached_property
    def _forms(self) -> QuadraticForms:
        return QuadraticForms(self._tensor, self._write[:, self.outputs])

    def exact(
        self, weights: Float[Tensor, "n d_mlp"], first: Int[Tensor, " n"], second: Int[Tensor, " n"]
    ) -> Float[Tensor, " n"]:
        """Scores T_ab, or T_aa / 2, from the factors, in the precision of the weights of the layer."""
        left, right = self.factors
        products = (left[first] * right[second]).addcmul_(right[first], left[second])
        score = (products * weights).sum(1) / 2
        return torch.where(first == second, score / 2, score)

    def exact_error(self, weights: Float[Tensor, "n d_mlp"]) -> Float[Tensor, " n"]:
        """Bound on the rounding of `exact`, for any pair of inputs: a tree of sums of at most 2^29 products."""
        left, right = self.factors
        largest = left.norm(dim=1).max() * right.norm(dim=1).max()
        return (16 * torch.finfo(left.dtype).eps * weights.abs().amax(1) + self._weights_error) * largest

    @cached_property
    def _weights_error(self) -> float:
        """Bound on the rounding of the sums in the neuron weights."""
        spread = (self._write.abs().T @ self._tensor.W_out.abs().T).max().item()
        return (self._tensor.d_out + 4) * 2.0**-53 * spread

    @cached_property
    def _coarse(self) -> tuple[Tensor, Tensor, Tensor]:
        """The read basis in the coarse precision, padded with rows of zeros to whole panels, and two row norms."""
        rows = self.n_rows - self.n_inputs
        read = torch.nn.functional.pad(self._read, (0, 0, 0, rows)).double()
        coarse = read.to(getattr(torch, self.precision))
        return coarse, coarse.double().norm(dim=1).float(), (read - coarse.double()).norm(dim=1).float()

    def _block(self, outputs: Tensor, weights: Tensor, Q: Tensor, form_error: Tensor) -> Block:
        coarse, norm, lost = self._coarse
        low = Q.transpose(0, 1).to(coarse.dtype, memory_format=torch.contiguous_format)
        q_norm = Q.flatten(1).norm(dim=1) + Q.shape[1] * _SQUARES_UNDERFLOW
        q_lost = form_error + _spectral_bound(Q - low.transpose(0, 1), coarse.dtype)
        room = self._left_memory[:, : len(coarse) * low[0].numel()].unflatten(1, (len(coarse), -1))
        left = torch.mm(coarse, low.flatten(1), out=room[0]).unflatten(1, low.shape[1:])
        unit, gamma = _UNIT[self.precision], 2 * (self._tensor.d_in + 2) * _UNIT["float32"]
        length = _row_norms(left, room[1].view_as(left)) / (1 - unit) + Q.shape[1] ** 0.5 * _SQUARES_UNDERFLOW
        norm, lost = norm[:, None], lost[:, None]
        reach = length + norm * (gamma * q_norm + q_lost)  # |D_a Q| of the rounded D_a
        slack = (unit * length + gamma * (norm * q_norm + length) + q_lost * norm) * norm.max()
        slack += lost * (reach + (q_norm + q_lost) * lost).amax(0) + reach * lost.max() + _UNDERFLOW
        return Block(outputs, weights, slack.float() * (1 + 2.0**-10), unit, left, coarse.T, self._height, self._memory)


@contextmanager
def exact_sums() -> Iterator[None]:
    """Products whose sums are in float32, whatever the process has allowed: the bounds on errors rest on it."""
    cuda = torch.backends.cuda.matmul
    reduced, cuda.allow_bf16_reduced_precision_reduction = cuda.allow_bf16_reduced_precision_reduction, False
    try:
        restore = _highest_precision()
        try:
            yield
        finally:
            restore()
    finally:
        cuda.allow_bf16_reduced_precision_reduction = reduced


def _highest_precision() -> Callable[[], None]:
    """Set products of float32 to full precision; returns what sets them back."""
    try:
        before = torch.get_float32_matmul_precision()
    except RuntimeError:  # torch has none to tell once it was set for a backend by itself
        backends: tuple[Any, ...] = (torch.backends.cuda.matmul, torch.backends.mkldnn.matmul)  # type: ignore[attr-defined]
        own = [backend.fp32_precision for backend in backends]
        for backend in backends:
            backend.fp32_precision = "ieee"

        def restore() -> None:
            for backend, precision in zip(backends, own, strict=True):
                backend.fp32_precision = precision

        return restore
    torch.set_float32_matmul_precision("highest")
    return lambda: torch.set_float32_matmul_precision(before)


def fastest_precision(device: torch.device, size: int = 768) -> Precision:
    """The precision in which a matrix product is faster here, by trying both: processors differ by a factor of 7."""
    if device.type == "cuda":
        return "bfloat16"  # tensor cores
    seconds = {}
    for name in ("bfloat16", "float32"):
        factor = torch.ones(size, size, dtype=getattr(torch, name), device=device)
        timings = []
        for _ in range(4):
            started = time.perf_counter()
            factor @ factor
            timings.append(time.perf_counter() - started)
        seconds[name] = min(timings[1:])
    return "bfloat16" if seconds["bfloat16"] < seconds["float32"] else "float32"


def _spectral_bound(E: Float[Tensor, "n d d"], dtype: torch.dtype) -> Float[Tensor, " n"]:
    """An upper bound on the spectral norms of symmetric matrices, |E|_2 <= tr(E^8)^(1/8), by two coarse squarings.

    For a matrix of rounding errors it is about a seventh of the Frobenius norm at d = 512, and the bound on an
    interaction is mostly made of it. Each rounding is charged for.
    """
    size = E.flatten(1).norm(dim=1) + E.shape[1] * _SQUARES_UNDERFLOW
    if dtype == torch.float32:
        return size
    unit, gamma = _UNIT["bfloat16"] * (1 + 2.0**-6), 2 * (E.shape[1] + 2) * _UNIT["float32"]
    first = (E / size[:, None, None]).to(dtype)
    second = first @ first
    fourth = second @ second
    norms = [_row_norms(one).norm(dim=1) * (1 + unit) for one in (first, second, fourth)]
    square = (norms[2] + gamma * norms[1] ** 2).sqrt() + unit * norms[1] + gamma * norms[0] ** 2
    return size * torch.minimum(square.sqrt() + unit, torch.ones_like(size)) * (1 + 2.0**-10)


def _row_norms(
    rows: Float[Tensor, "row output d"], room: Float[Tensor, "row output d"] | None = None
) -> Float[Tensor, "row output"]:
    """An upper bound on the norm of each row, by a product with ones, which is faster than a reduction."""
    if rows.dtype == torch.float32:
        return rows.norm(dim=2) * (1 + 2.0**-16)
    ones = torch.ones(rows.shape[2], 16, dtype=rows.dtype, device=rows.device)
    squares = (torch.mul(rows, rows, out=room).flatten(0, 1) @ ones)[:, 0].float()
    return squares.mul_(1 + 4 * _UNIT["bfloat16"]).sqrt_().unflatten(0, rows.shape[:2])


def _upper(corner: Tensor) -> Float[Tensor, "row 1 column"]:
    """One above the diagonal, a half on it, zero below."""
    n_rows, _, n_columns = corner.shape
    mask = torch.ones(n_rows, n_columns, dtype=corner.dtype, device=corner.device).triu_()
    mask.diagonal().mul_(0.5)
    return mask.unsqueeze(1)
