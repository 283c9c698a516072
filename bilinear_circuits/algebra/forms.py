"""Dense quadratic forms of many output directions, with a bound on their rounding error."""

from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from bilinear_circuits.algebra.memory import Memory
from bilinear_circuits.algebra.tensor import InteractionTensor
from bilinear_circuits.utilities.display import Brief

_TABLE_BYTES = 1 << 30
_SLAB_ROWS = 32
_PRODUCT_COLUMNS = 512
_SUM_LENGTH = 128


@dataclass(frozen=True, eq=False, repr=False)
class DenseForms(Brief):
    """Some forms and how far they may be off.

    Attributes:
        Q: Symmetric matrices, float64 for a tensor in float64 and float32 for any other.
        error: Bound on the Frobenius norm of Q minus the true form.
    """

    Q: Float[Tensor, "n d d"]
    error: Float[Tensor, " n"]


class QuadraticForms:
    """Q_f = sum_m c_f[m] sym(g_m i_m^T) for many directions f, a group at a time.

    A form takes 2 d^2 d_mlp operations from the neurons. For many directions the matrices B_o of the d_out output
    dimensions are formed once, and a form is their mixture, Q_f = sum_o w_f[o] B_o: d_out d^2 operations, as one
    product for the group. B_o are summed in float64 and rounded once; their upper half is kept, 2 d_out d^2 bytes in
    float32. Where that exceeds 1 GiB, or the directions are few, forms come from the neurons in float64.

    Attributes:
        from_table: Whether the mixture is used.
    """

    def __init__(
        self, tensor: InteractionTensor, directions: Float[Tensor, "d_out f"], sums: torch.dtype = torch.float64
    ) -> None:
        """Prepare the forms of the columns of `directions`; the mixture's matrices are made here.

        Args:
            tensor: The layer.
            directions: Output directions.
            sums: Precision of the sums over neurons in the mixture's matrices, at least that of the layer. In float32
                they take less time, and the bound on the error is too large to find candidates by.
        """
        self._tensor, self._directions = tensor, directions
        self._dtype = torch.promote_types(tensor.W_gate.dtype, torch.float32)
        self._unit = torch.finfo(self._dtype).eps / 2
        n_bytes = self._dtype.itemsize * tensor.d_out * tensor.d_in * (tensor.d_in + 1) // 2
        self.from_table = n_bytes <= _TABLE_BYTES and 2 * directions.shape[1] >= tensor.d_out
        if self.from_table:
            sums = torch.promote_types(sums, self._dtype)
            self._slabs, self._norms = _table(tensor, self._dtype, sums)
            self._sums = _sums_error(tensor, sums)

    def __call__(self, index: Int[Tensor, " n"], memory: Memory | None = None) -> DenseForms:
        """Forms of some directions: n d^2 numbers, in the memory of those before where some is given."""
        return self._mix(index, memory or Memory()) if self.from_table else self._sum_neurons(index)

    def _mix(self, index: Tensor, memory: Memory) -> DenseForms:
        n, d, d_out = len(index), self._tensor.d_in, self._tensor.d_out
        Q = memory("Q", (n, d, d), self._dtype, self._directions.device)
        mixture = self._directions[:, index].T.to(self._dtype)
        for start, slab in self._slabs:
            sums = memory("sums", (n, slab[0].numel()), self._dtype, self._directions.device)
            part = _short_sums(mixture, slab.flatten(1), sums).unflatten(1, slab.shape[1:])
            Q[:, start : start + slab.shape[1], start:] = part
            Q[:, start:, start : start + slab.shape[1]] = part.mT
        # The bound on a sum, in any order, of entries that are rounded themselves.
        n_roundings = min(d_out, _SUM_LENGTH) + d_out // _SUM_LENGTH + 3
        error = mixture.abs() @ (n_roundings * self._unit * self._norms + self._sums.to(self._dtype))
        return DenseForms(Q, error)

    def _sum_neurons(self, index: Tensor) -> DenseForms:
        gate, linear = self._tensor.W_gate.double(), self._tensor.W_in.double()
        weights = self._directions[:, index].T.double() @ self._tensor.W_out.double().T
        Q = torch.stack([(gate * row) @ linear.T for row in weights])
        Q = (Q + Q.mT) / 2
        # The rounding to the dtype, and that of the sums before it.
        sums = (len(gate.T) + 4) * 2.0**-53 * (weights.abs() @ (gate.norm(dim=0) * linear.norm(dim=0)))
        return DenseForms(Q.to(self._dtype), (2 * self._unit * Q.flatten(1).norm(dim=1) + sums).to(self._dtype))


def _short_sums(left: Tensor, right: Tensor, out: Tensor) -> Tensor:
    """A product as a sum of products over few terms each: the bound on rounding grows with the longest sum."""
    total = torch.mm(left[:, :_SUM_LENGTH], right[:_SUM_LENGTH], out=out)
    for start in range(_SUM_LENGTH, len(right), _SUM_LENGTH):
        terms = slice(start, start + _SUM_LENGTH)
        total.addmm_(left[:, terms], right[terms])
    return total


def _sums_error(tensor: InteractionTensor, sums: torch.dtype) -> Float[Tensor, " d_out"]:
    """Bound on the rounding of the sums over neurons in each B_o, in the Frobenius norm."""
    sizes = tensor.W_gate.double().norm(dim=0) * tensor.W_in.double().norm(dim=0)
    return (tensor.d_mlp + 4) * torch.finfo(sums).eps / 2 * (sizes @ tensor.W_out.double().abs())


def _table(tensor: InteractionTensor, dtype: torch.dtype, sums: torch.dtype) -> tuple[list[tuple[int, Tensor]], Tensor]:
    """Rows of all B_o from the diagonal on, as (first row, (d_out, rows, columns)), and the norms of the B_o."""
    gate, linear, out = (W.to(sums).contiguous() for W in (tensor.W_gate.T, tensor.W_in.T, tensor.W_out.T))
    d_mlp, d = gate.shape
    room = out.new_empty(d_mlp * max(d, _PRODUCT_COLUMNS))
    slabs, squares = [], out.new_zeros(len(out))
    for start in range(0, d, _SLAB_ROWS):
        n_rows, width = min(_SLAB_ROWS, d - start), d - start
        slab = out.new_empty(len(out), n_rows, width, dtype=dtype)
        # Few rows at a time: what is multiplied stays in the cache, and in memory that is already there.
        for rows in torch.arange(n_rows).split(max(1, _PRODUCT_COLUMNS // width)):
            shape = (d_mlp, len(rows), width)
            products = room[: d_mlp * len(rows) * width].view(shape)
            torch.mul(gate[:, start + rows, None], linear[:, None, start:], out=products)
            products.addcmul_(linear[:, start + rows, None], gate[:, None, start:])
            entries = (out @ products.flatten(1)).div_(2).unflatten(1, shape[1:])
            squares += 2 * entries.square().sum((1, 2)) - entries[:, :, :n_rows].square().sum((1, 2))
            slab[:, rows] = entries.to(dtype)
        slabs.append((start, slab))
    return slabs, squares.sqrt().to(dtype)
