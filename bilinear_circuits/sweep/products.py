"""Blocks of the interaction tensor in a coarse precision, with a bound on their error that holds for every entry."""

import math
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cached_property

import torch
from jaxtyping import Float, Int, Shaped
from torch import Tensor

from bilinear_circuits.algebra.forms import QuadraticForms
from bilinear_circuits.algebra.memory import Memory
from bilinear_circuits.algebra.precision import UNIT, Precision, exact_sums, fastest_precision
from bilinear_circuits.algebra.tensor import InteractionTensor
from bilinear_circuits.sweep.keys import Order, keys, lane_maxima
from bilinear_circuits.sweep.rounding import SQUARES_UNDERFLOW, frobenius_norms, row_norms, spectral_bound
from bilinear_circuits.utilities.display import Brief

_UNDERFLOW = 2.0**-120  # what flushing of subnormal numbers to zero can take away, with room to spare
_FORM_GROUP, _FORM_BYTES = 256, 1 << 30
_BLOCK_OUTPUTS, _BLOCK_BYTES = 32, {"cpu": 1 << 28, "cuda": 1 << 32}  # at most, of the coarse values of a block
_PANEL_ROWS = 128
_LANES = 64


@dataclass(frozen=True, eq=False, repr=False)
class Panel(Brief):
    """Rows of T_f for the outputs of a block, from the diagonal on.

    The memory of the values is used again by the next block.

    Attributes:
        start: First row, which is the first column too.
        values: Coarse T_f[a, b] for a <= b, half of it for a = b, zero for a > b; row a first, then the output.
    """

    start: int
    values: Float[Tensor, "row output column"]
    n_lanes: int
    _lanes: dict[Order, Tensor] = field(init=False, default_factory=dict)

    def lanes(self, order: Order) -> Shaped[Tensor, "row output lane"]:
        """Keys of the largest values of each row, over columns that are equal modulo `n_lanes`; formed once."""
        if order not in self._lanes:
            self._lanes[order] = lane_maxima(keys(self.values, order), self.n_lanes)
        return self._lanes[order]


@dataclass(frozen=True, eq=False, repr=False)
class Block(Brief):
    """Some outputs. Its memory is used again by the next block.

    A coarse value v of a panel and the true score s, T_ab or T_aa / 2, are related by v = (s + e) (1 + t) with
    |e| <= slack[a, output] and |t| <= unit.

    Attributes:
        outputs: Columns of the write basis.
        weights: Neuron weights of the outputs.
        slack: Bound on the error of a score, by row of a panel and output.
        unit: Relative rounding of the values themselves.
        n_lanes: Lanes of its panels.
    """

    outputs: Int[Tensor, " output"]
    weights: Float[Tensor, "output d_mlp"]
    slack: Float[Tensor, "row output"]
    unit: float
    n_lanes: int
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
            yield Panel(start, values, self.n_lanes)

    def values(
        self, row: Int[Tensor, " n"], output: Int[Tensor, " n"], column: Int[Tensor, " n"]
    ) -> Float[Tensor, " n"]:
        """Coarse values one by one, once the panels are formed. Columns must not come before the row."""
        n_rows, n_outputs, _ = self._left.shape
        start = row - row % self._height
        before = n_outputs * start * (2 * n_rows - start + self._height) // 2  # values of the panels above
        in_panel = ((row - start) * n_outputs + output) * (n_rows - start) + column - start
        return self._memory.index_select(0, before + in_panel)


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
        if self.precision not in UNIT:
            raise ValueError(f"precision must be one of {', '.join(UNIT)}, got {precision!r}.")
        self.n_inputs, self.n_outputs = len(read), write.shape[1]
        self.outputs = torch.arange(self.n_outputs, device=read.device) if outputs is None else outputs.to(read.device)
        self._tensor, self._read, self._write, self._memory = tensor, read, write, Memory()
        on_gpu = read.device.type != "cpu"
        self._height = min(512 if on_gpu else _PANEL_ROWS, -(-self.n_inputs // 32) * 32)
        self._n_lanes = math.gcd(self._height, _LANES)

    @property
    def dtype(self) -> torch.dtype:
        """Precision of exact scores: that of the bases, float32 at least."""
        return torch.promote_types(self._read.dtype, torch.float32)

    @property
    def n_rows(self) -> int:
        """Rows of a block: those of the read basis, filled up to whole panels."""
        return -(-self.n_inputs // self._height) * self._height

    @cached_property
    def factors(self) -> tuple[Float[Tensor, "d_sae_in d_mlp"], Float[Tensor, "d_sae_in d_mlp"]]:
        """D W_gate and D W_in, summed in float64: what exact values are read from."""
        read = self._read.double()
        return tuple((read @ W.double()).to(self.dtype) for W in (self._tensor.W_gate, self._tensor.W_in))  # type: ignore[return-value]

    @property
    def groups(self) -> tuple[Int[Tensor, " n"], ...]:
        """Places in `outputs` of those whose forms are made together."""
        together = max(1, min(_FORM_GROUP, _FORM_BYTES // (4 * self._tensor.d_in**2)))
        return torch.arange(len(self.outputs), device=self.outputs.device).split(together)

    def blocks(self, group: Int[Tensor, " n"]) -> Iterator[Block]:
        """Blocks of the outputs of a group, in their order."""
        outputs = self.outputs[group]
        with exact_sums():
            dense = self._forms(group, self._memory)
        weights = self.neuron_weights(outputs)
        for at in torch.arange(len(group), device=group.device).split(self._n_block_outputs):
            with exact_sums():
                block = self._block(outputs[at], weights[at], dense.Q[at], dense.error[at])
            yield block

    @property
    def _n_block_outputs(self) -> int:
        """Outputs of a block."""
        n_bytes = self.n_rows * (self.n_rows + self._height) // 2 * getattr(torch, self.precision).itemsize
        return max(1, min(_BLOCK_OUTPUTS, _BLOCK_BYTES.get(self._read.device.type, 1 << 28) // n_bytes))

    def neuron_weights(self, outputs: Int[Tensor, " n"]) -> Float[Tensor, "n d_mlp"]:
        """Compute the weight of each neuron in each output, summed in float64."""
        return (self._write[:, outputs].T.double() @ self._tensor.W_out.T.double()).to(self.dtype)

    @cached_property
    def _forms(self) -> QuadraticForms:
        return QuadraticForms(self._tensor, self._write[:, self.outputs])

    def exact(
        self, weights: Float[Tensor, "n d_mlp"], first: Int[Tensor, " n"], second: Int[Tensor, " n"]
    ) -> Float[Tensor, " n"]:
        """Scores T_ab, or T_aa / 2, from the factors, in the precision of the weights of the layer."""
        left, right = self.factors
        products = left.index_select(0, first).mul_(right.index_select(0, second))
        products.addcmul_(right.index_select(0, first), left.index_select(0, second))
        score = products.mul_(weights).sum(1) / 2
        return torch.where(first == second, score / 2, score)

    def exact_error(self, weights: Float[Tensor, "n d_mlp"]) -> Float[Tensor, " n"]:
        """Bound on the rounding of `exact`, for any pair of inputs: a tree of sums of at most 2^29 products."""
        spread, largest = self._sizes
        return (16 * torch.finfo(self.dtype).eps * weights.abs().amax(1) + spread) * largest

    @cached_property
    def _sizes(self) -> tuple[float, float]:
        """Bounds on the rounding of the sums in the neuron weights, and on the products of two rows of factors."""
        spread = (self._write.double().abs().T @ self._tensor.W_out.double().abs().T).max().item()
        left, right = (factor.norm(dim=1).max().item() for factor in self.factors)
        return (self._tensor.d_out + 4) * 2.0**-53 * spread, left * right

    @cached_property
    def _coarse(self) -> tuple[Tensor, Tensor, Tensor]:
        """The read basis in the coarse precision, padded with rows of zeros to whole panels, and two row norms."""
        rows = self.n_rows - self.n_inputs
        read = torch.nn.functional.pad(self._read, (0, 0, 0, rows)).double()
        coarse = read.to(getattr(torch, self.precision))
        return coarse, coarse.double().norm(dim=1).float(), (read - coarse.double()).norm(dim=1).float()

    def _block(self, outputs: Tensor, weights: Tensor, Q: Tensor, form_error: Tensor) -> Block:
        coarse, norm, lost = self._coarse
        n, d, _ = Q.shape
        low = self._room("form", (d, n, d)).copy_(Q.transpose(0, 1))
        # In the order of the memory of `low`, and not in one step: a difference of unlike dtypes is ten times slower.
        E = self._room("error", (d, n, d), Q.dtype).copy_(low).sub_(Q.transpose(0, 1)).transpose(0, 1)
        q_norm, q_lost = frobenius_norms(Q), form_error + spectral_bound(E, self._room("powers", (3, n, d, d)))
        left = torch.mm(coarse, low.flatten(1), out=self._room("left", (len(coarse), n * d))).unflatten(1, (n, d))
        unit, gamma = UNIT[self.precision], 2 * (self._tensor.d_in + 2) * UNIT["float32"]
        length = row_norms(left) / (1 - unit) + d**0.5 * SQUARES_UNDERFLOW
        norm, lost = norm[:, None], lost[:, None]
        reach = length + norm * (gamma * q_norm + q_lost)  # |D_a Q| of the rounded D_a
        slack = (unit * length + gamma * (norm * q_norm + length) + q_lost * norm) * norm.max()
        slack += lost * (reach + (q_norm + q_lost) * lost).amax(0) + reach * lost.max() + _UNDERFLOW
        slack = slack.float() * (1 + 2.0**-10)
        n_panels = len(coarse) // self._height
        values = self._room("values", (self._height**2 * (n_panels * (n_panels + 1) // 2) * n,))
        return Block(outputs, weights, slack, unit, self._n_lanes, left, coarse.T, self._height, values)

    def _room(self, name: str, shape: tuple[int, ...], dtype: torch.dtype | None = None) -> Tensor:
        """Memory of the block before, by default for numbers in the coarse precision."""
        return self._memory(name, shape, dtype or getattr(torch, self.precision), self._read.device)


def _upper(corner: Tensor) -> Float[Tensor, "row 1 column"]:
    """One above the diagonal, a half on it, zero below."""
    n_rows, _, n_columns = corner.shape
    mask = torch.ones(n_rows, n_columns, dtype=corner.dtype, device=corner.device).triu_()
    mask.diagonal().mul_(0.5)
    return mask.unsqueeze(1)
