"""Spectra of interaction matrices: signed eigenvalues, largest magnitude first."""

import math
from dataclasses import dataclass

import torch
from einops import einsum
from jaxtyping import Float, Int
from torch import Tensor

from bilinear_circuits.utilities.display import Drawn


@dataclass(frozen=True, eq=False, repr=False)
class Spectrum(Drawn):
    """Leading eigenpairs of a symmetric matrix, or of a batch of them.

    The sign of an eigenvalue is kept: an interaction matrix is indefinite, and a pair of
    eigenvalues of opposite sign is a product of two different directions.

    Attributes:
        eigenvalues: Signed, by falling magnitude; they are put in this order if they are not.
        eigenvectors: Orthonormal columns, in the order of the eigenvalues. The sign of a column is arbitrary.
        frobenius_norm: Frobenius norm of the whole matrix, before any truncation; that of the eigenvalues by default.
    """

    eigenvalues: Float[Tensor, "*batch k"]
    eigenvectors: Float[Tensor, "*batch d k"]
    frobenius_norm: Float[Tensor, "*batch"] = None  # type: ignore[assignment]

    def __post_init__(self) -> None:
        values, vectors = self.eigenvalues, self.eigenvectors
        if vectors.shape[-1] != values.shape[-1]:
            raise ValueError(
                f"eigenvectors must have one column per eigenvalue, {values.shape[-1]}, got {tuple(vectors.shape)}."
                " Eigenvectors are columns."
            )
        order = values.abs().argsort(dim=-1, descending=True, stable=True)
        columns = order.unsqueeze(-2).expand(vectors.shape)
        object.__setattr__(self, "eigenvalues", values.gather(-1, order))
        object.__setattr__(self, "eigenvectors", vectors.gather(-1, columns))
        if self.frobenius_norm is None:
            object.__setattr__(self, "frobenius_norm", values.norm(dim=-1))

    @classmethod
    def of_dense(cls, dense: Float[Tensor, "*batch d d"], k: int | None = None) -> "Spectrum":
        """Spectrum of a dense symmetric matrix: one `torch.linalg.eigh`, O(d^3), reordered by magnitude.

        Half-precision input is decomposed in float32, since LAPACK has no half-precision routine, and stays there: its
        squares need not fit into half precision.
        """
        work = dense if dense.dtype in (torch.float32, torch.float64) else dense.float()
        eigenvalues, eigenvectors = torch.linalg.eigh(work)
        spectrum = cls(eigenvalues, eigenvectors, torch.linalg.matrix_norm(work))
        return spectrum if k is None else spectrum.truncate(k)

    @property
    def dim(self) -> int:
        """Side d of the decomposed matrix."""
        return self.eigenvectors.shape[-2]

    def __len__(self) -> int:
        return self.eigenvalues.shape[-1]

    def __getitem__(self, index: int | slice | Tensor) -> "Spectrum":
        """Index the batch dimensions."""
        return Spectrum(self.eigenvalues[index], self.eigenvectors[index], self.frobenius_norm[index])

    def truncate(self, k: int) -> "Spectrum":
        """Keep the k eigenpairs of largest magnitude: the best rank-k approximation in Frobenius norm (Eckart-Young).

        Raises:
            ValueError: If `k` is negative.
        """
        if k < 0:
            raise ValueError(f"k must be at least 0, got {k}.")
        return Spectrum(self.eigenvalues[..., :k], self.eigenvectors[..., :k], self.frobenius_norm)

    def __call__(self, x: Float[Tensor, "*n d"]) -> Float[Tensor, "..."]:
        """Evaluate the quadratic form sum_i lambda_i (x . v_i)^2: O(d k) per row. Unbatched spectra only."""
        dtype = torch.promote_types(x.dtype, self.eigenvectors.dtype)
        return (x.to(dtype) @ self.eigenvectors.to(dtype)).square() @ self.eigenvalues.to(dtype)

    def to_dense(self) -> Float[Tensor, "*batch d d"]:
        """Reconstruct V diag(lambda) V^T."""
        return einsum(
            self.eigenvectors, self.eigenvalues, self.eigenvectors, "... row k, ... k, ... column k -> ... row column"
        )

    def effective_rank(self) -> Float[Tensor, "*batch"]:
        """Exponential of the entropy of |lambda| / sum |lambda| over the eigenvalues held (Roy and Vetterli 2007)."""
        magnitude = self.eigenvalues.abs()
        share = magnitude / magnitude.sum(-1, keepdim=True).clamp_min(torch.finfo(magnitude.dtype).tiny)
        return torch.special.entr(share).sum(-1).exp()

    def semicircle_edge(self) -> Float[Tensor, "*batch"]:
        """Largest eigenvalue expected of a random symmetric matrix of the same size and Frobenius norm.

        A d x d symmetric matrix of independent entries with standard deviation s has norm s d and its
        spectrum fills [-2 s sqrt(d), 2 s sqrt(d)] (Wigner 1958), hence the edge 2 ||Q||_F / sqrt(d).
        """
        return 2 * self.frobenius_norm / math.sqrt(self.dim)

    def outlier_ratio(self) -> Float[Tensor, "*batch"]:
        """Smaller magnitude of the leading eigenvalues of either sign, over the semicircle edge; 0 without one of them.

        A product of two groups of features has a large one; a square, or the spectrum of a random matrix, has not.
        """
        smaller = torch.minimum(self.eigenvalues.amax(-1), -self.eigenvalues.amin(-1)).clamp_min(0)
        return smaller / self.semicircle_edge().clamp_min(torch.finfo(smaller.dtype).tiny)

    def outliers(self) -> Int[Tensor, "*batch"]:
        """Count the eigenvalues held that lie outside the semicircle of the null, on either side."""
        return (self.eigenvalues.abs() > self.semicircle_edge().unsqueeze(-1)).sum(-1)
