"""InteractionMatrix: the symmetric matrix of one output direction, kept in factored form."""

from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from bilinear_circuits.algebra.halves import half_rule
from bilinear_circuits.algebra.spectra import Spectrum
from bilinear_circuits.utilities.display import Drawn

Index = int | slice | Tensor


@dataclass(frozen=True, eq=False, repr=False)
class InteractionMatrix(Drawn):
    """Q = sum_m weights[m] sym(left[:, m] right[:, m]^T), never formed unless asked.

    A batch of matrices shares its two factors and differs in the weights alone: one number per
    neuron and matrix. `to_dense()` is the costly exit.

    Attributes:
        left: First factor, for a layer W_gate in some input basis.
        right: Second factor, W_in in the same basis.
        weights: Weight of each neuron, with any batch dimensions in front.

    Examples:
        >>> left, right, x = torch.randn(5, 7), torch.randn(5, 7), torch.randn(5)
        >>> Q = InteractionMatrix(left, right, torch.randn(7))
        >>> torch.allclose(Q(x), x @ Q.to_dense() @ x, rtol=1e-4, atol=1e-5)
        True
    """

    left: Float[Tensor, "d d_mlp"]
    right: Float[Tensor, "d d_mlp"]
    weights: Float[Tensor, "*batch d_mlp"]

    def __post_init__(self) -> None:
        if self.left.ndim != 2 or self.left.shape != self.right.shape:
            raise ValueError(
                f"right must match left, (d, d_mlp)={tuple(self.left.shape)}, got {tuple(self.right.shape)}."
            )
        if self.weights.ndim < 1 or self.weights.shape[-1] != self.left.shape[1]:
            raise ValueError(
                f"weights must end in d_mlp={self.left.shape[1]} entries, got {tuple(self.weights.shape)}."
            )

    @property
    def dim(self) -> int:
        """Side d of the matrix."""
        return self.left.shape[0]

    @property
    def shape(self) -> torch.Size:
        """Shape of the dense matrix, batch first."""
        return torch.Size((*self.weights.shape[:-1], self.dim, self.dim))

    def __getitem__(self, index: Index | tuple[Index, ...]) -> "InteractionMatrix | Float[Tensor, '...']":
        """Index as the dense matrix would be, batch first, without forming it.

        What picks from the batch alone gives an InteractionMatrix. `Q[a, b]` is the interaction of a and b, in
        O(d_mlp); `Q[a]` a row, in O(d d_mlp); slices and index tensors pick several.

        Raises:
            IndexError: If there are more indices than dimensions, or one is out of range.
        """
        index = index if isinstance(index, tuple) else (index,)
        n_batch = self.weights.ndim - 1
        if len(index) > n_batch + 2:
            raise IndexError(f"index must be of at most {n_batch + 2} parts, rows and columns last, got {len(index)}.")
        batch = InteractionMatrix(self.left, self.right, self.weights[index[:n_batch]]) if n_batch else self
        return batch._entries(*index[n_batch:]) if len(index) > n_batch else batch

    def _entries(self, row: Index, column: Index = slice(None)) -> Float[Tensor, "..."]:
        """Entries by row and column, the batch in front."""
        every = torch.arange(self.dim, device=self.left.device)
        rows, columns = every[row], every[column]
        if isinstance(row, slice) or isinstance(column, slice):
            block = self.block(rows.reshape(-1), columns.reshape(-1))
            return block.reshape((*block.shape[:-2], *rows.shape, *columns.shape))
        rows, columns = torch.broadcast_tensors(rows, columns)
        products = self.left[rows] * self.right[columns] + self.right[rows] * self.left[columns]
        values = self.weights @ products.reshape(-1, products.shape[-1]).T / 2
        return values.reshape((*self.weights.shape[:-1], *rows.shape))

    def __call__(self, x: Float[Tensor, "*n d"], y: Float[Tensor, "*n d"] | None = None) -> Float[Tensor, "..."]:
        """Evaluate x^T Q y (y = x by default), in O(d d_mlp) per row.

        Returns:
            Shape of the rows of x, then the batch shape of the matrix.
        """
        if y is None:
            return _contract((x @ self.left) * (x @ self.right), self.weights)
        cross = (x @ self.left) * (y @ self.right) + (y @ self.left) * (x @ self.right)
        return _contract(cross, self.weights) / 2

    def __matmul__(self, other: Float[Tensor, " d"] | Float[Tensor, "d k"]) -> Float[Tensor, "..."]:
        """Multiply a vector or the columns of a matrix, in O(d d_mlp) per column and matrix.

        Raises:
            ValueError: If `other` does not have d rows.
        """
        if other.ndim not in (1, 2) or other.shape[0] != self.dim:
            raise ValueError(
                f"other must be ({self.dim},) or ({self.dim}, k), got {tuple(other.shape)}."
                " Rows of inputs go through Q(x); Q @ x multiplies columns."
            )
        rows = other.unsqueeze(0) if other.ndim == 1 else other.T
        left, right = self.left, self.right
        product = half_rule(self.weights.unsqueeze(-2), rows @ left, rows @ right, left, right).mT
        return product.squeeze(-1) if other.ndim == 1 else product

    def diagonal(self) -> Float[Tensor, "*batch d"]:
        """Self-interactions Q_ii."""
        return self.weights @ (self.left * self.right).T

    def trace(self) -> Float[Tensor, "*batch"]:
        """Sum of the eigenvalues: sum_m weights[m] left[:, m] . right[:, m]."""
        return self.weights @ (self.left * self.right).sum(0)

    def inner(self, other: "InteractionMatrix") -> Float[Tensor, "*batch"]:
        """Frobenius inner product <Q, Q'> without forming either: O(d d_mlp d_mlp').

        <Q, Q'> = 1/2 sum_mn w_m w'_n [(l_m . l'_n)(r_m . r'_n) + (l_m . r'_n)(r_m . l'_n)].
        Batches broadcast against each other. Half precision is computed, and returned, in float32.

        Raises:
            ValueError: If the two matrices have different sides.
        """
        if other.dim != self.dim:
            raise ValueError(f"other must be {self.dim} x {self.dim}, got {other.dim} x {other.dim}.")
        one, two = self._promoted(), other._promoted()
        gram = (one.left.T @ two.left) * (one.right.T @ two.right)
        gram += (one.left.T @ two.right) * (one.right.T @ two.left)
        return ((one.weights @ gram) * two.weights).sum(-1) / 2

    def frobenius_norm(self) -> Float[Tensor, "*batch"]:
        """||Q||_F without forming Q, from the inner product with itself."""
        return self.inner(self).clamp_min(0).sqrt()

    def change_basis(self, basis: Float[Tensor, "d_new d"]) -> "InteractionMatrix":
        """Read the form in new coordinates x = z @ basis: basis Q basis^T, still factored.

        Args:
            basis: One row per new coordinate, for instance the decoder rows of a dictionary.

        Raises:
            ValueError: If the rows of `basis` do not have d entries.
        """
        if basis.ndim != 2 or basis.shape[1] != self.dim:
            raise ValueError(f"basis must be (d_new, {self.dim}), one row per coordinate, got {tuple(basis.shape)}.")
        return InteractionMatrix(basis @ self.left, basis @ self.right, self.weights)

    def block(self, rows: Int[Tensor, " r"], columns: Int[Tensor, " c"]) -> Float[Tensor, "*batch r c"]:
        """Dense sub-matrix Q[rows, columns], in O(r c d_mlp)."""
        weights = self.weights.unsqueeze(-2)
        product = (self.left[rows] * weights) @ self.right[columns].T
        return (product + (self.right[rows] * weights) @ self.left[columns].T) / 2

    def to_dense(self) -> Float[Tensor, "*batch d d"]:
        """Form the matrix: O(d^2 d_mlp) time and d^2 numbers per matrix."""
        product = (self.left * self.weights.unsqueeze(-2)) @ self.right.T
        return (product + product.mT) / 2

    def eigh(self, k: int | None = None) -> Spectrum:
        """Leading k eigenpairs by magnitude, all of them by default.

        The matrix has rank at most 2 d_mlp. Where d exceeds that, the decomposition is done on the span of the
        factors: [left right] = O R, and Q = O (R C R^T) O^T shares its nonzero eigenvalues with the small matrix.
        Cost O(min(d, 2 d_mlp)^3) per matrix, plus forming it. Half precision is decomposed, and returned, in float32.

        Raises:
            ValueError: If `k` is negative or exceeds d.
        """
        if k is not None and not 0 <= k <= self.dim:
            raise ValueError(f"k must be between 0 and d={self.dim}, got {k}.")
        if (promoted := self._promoted()) is not self:
            return promoted.eigh(k)
        rank_bound = 2 * self.left.shape[1]
        if self.dim <= rank_bound or (k or self.dim) > rank_bound:
            return Spectrum.of_dense(self.to_dense(), k)
        span, small = torch.linalg.qr(torch.cat([self.left, self.right], dim=1))
        left, right = small.split(self.left.shape[1], dim=1)
        spectrum = InteractionMatrix(left, right, self.weights).eigh(k)
        return Spectrum(spectrum.eigenvalues, span @ spectrum.eigenvectors, spectrum.frobenius_norm)

    def _promoted(self) -> "InteractionMatrix":
        """Promote half precision, in which squares of weights overflow or vanish, to float32."""
        dtype = torch.promote_types(self.weights.dtype, torch.float32)
        if dtype == self.weights.dtype:
            return self
        return InteractionMatrix(self.left.to(dtype), self.right.to(dtype), self.weights.to(dtype))


def _contract(products: Float[Tensor, "*n d_mlp"], weights: Float[Tensor, "*batch d_mlp"]) -> Float[Tensor, "..."]:
    """Sum over neurons; rows first, then the batch of matrices."""
    return torch.tensordot(products, weights, dims=([-1], [-1]))
