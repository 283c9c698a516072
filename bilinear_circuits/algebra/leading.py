"""Leading eigenpairs of many symmetric matrices at once, by Lanczos iterations in step, with checked residuals."""

import copy
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from bilinear_circuits.algebra.matrix import InteractionMatrix
from bilinear_circuits.algebra.precision import exact_sums
from bilinear_circuits.algebra.spectra import Spectrum
from bilinear_circuits.utilities.display import Shown

_STEPS = (24, 28, 32, 40, 48, 80, 160)  # after which the eigenpairs are looked at
_MOST = 192  # vectors of a Krylov space
_CHECK_STEPS = 8
_SMALLEST = 192  # rows from which iterations pay
_BLOCK, _LARGE_BLOCK = 4, 8  # vectors that go through each matrix together: about the speed of one
_RESIDUAL = 1e-5  # of the largest eigenvalue: no pair is accepted above it
_CACHE_BYTES = 16 << 20  # matrices iterated together on a CPU: each step reads all of them
_DENSE_ROWS = 64
_EIGSH_TOLERANCE = 1e-5  # relative, of an eigenvalue: more than is shown


@dataclass(frozen=True, eq=False, repr=False)
class LeadingSpectra(Shown):
    """Leading eigenpairs by magnitude, of either sign.

    Attributes:
        spectrum: Eigenvalues and eigenvectors, one batch entry per matrix.
        residuals: |Q v - lambda v| of each eigenpair, computed with the matrix itself.
        iterated: Which matrices were done by iteration; the others by a full decomposition.
    """

    spectrum: Spectrum
    residuals: Float[Tensor, "n k"]
    iterated: Bool[Tensor, " n"]

    @classmethod
    def cat(cls, parts: "Sequence[LeadingSpectra]") -> "LeadingSpectra":
        """Those of several groups of matrices as one."""
        names = ("eigenvalues", "eigenvectors", "frobenius_norm")
        spectrum = Spectrum(*(torch.cat([getattr(part.spectrum, name) for part in parts]) for name in names))
        residuals, iterated = (torch.cat([getattr(part, name) for part in parts]) for name in ("residuals", "iterated"))
        return cls(spectrum, residuals, iterated)


@torch.no_grad()
@exact_sums()
def leading_spectra(
    Q: Float[Tensor, "n d d"], k: int, tolerance: float = 1e-6, seed: int = 0, iterate: bool | None = None
) -> LeadingSpectra:
    """The k eigenpairs of largest magnitude of each matrix.

    Block Lanczos iterations with full reorthogonalisation (Golub and Van Loan, Matrix Computations, section 10.3),
    all matrices in step. A pair is accepted if its residual r is below 1e-5 of the largest eigenvalue, and the error of
    its eigenvalue, at most r^2 / gap for the distance `gap` to the rest of the spectrum, below `tolerance` of it.
    Matrices with a pair that is not, in a space of 192 vectors, are decomposed in full, and so are matrices too small
    for iterations to pay. A Krylov space of blocks of b vectors holds an eigenvalue up to b times. Where more than b
    pairs are asked for, a short iteration without the pairs found looks for something larger; a matrix in which there
    is, as where an eigenvalue repeats, is decomposed in full too.

    Cost: about 24 products of a matrix with four vectors each, instead of some 10 d^3 operations.

    Args:
        Q: Symmetric matrices, float32 or float64.
        k: Eigenpairs of each.
        tolerance: Error of an eigenvalue that is accepted, relative to the largest magnitude of its matrix.
        seed: Seed of the first vectors.
        iterate: False decomposes all matrices in full; by default the sizes decide.

    Raises:
        ValueError: If k is not between 1 and d.
    """
    n, d, _ = Q.shape
    if not 1 <= k <= d:
        raise ValueError(f"k must be between 1 and d={d}, got {k}.")
    if iterate is None:
        iterate = d >= _SMALLEST and k <= 2 * _LARGE_BLOCK
    # Squares of the entries must stay in the range of the dtype. Powers of two change no digit.
    largest = torch.maximum(Q.amax((1, 2)), -Q.amin((1, 2)))
    scale = largest.where(largest > 0, 1).log2().round().exp2()
    if ordinary := bool(((scale > 2.0**-30) & (scale < 2.0**30)).all()):
        scale = torch.ones_like(scale)
    Q = Q if ordinary else Q / scale[:, None, None]
    together = max(1, _CACHE_BYTES // (d * d * Q.element_size())) if Q.device.type == "cpu" else n
    parts = [_leading(part, k, tolerance, seed, iterate) for part in Q.split(max(1, together))]
    values, vectors, iterated = (torch.cat(column) for column in zip(*parts, strict=True))
    residuals = (Q @ vectors - vectors * values.unsqueeze(1)).norm(dim=1)
    spectrum = Spectrum(values * scale[:, None], vectors, Q.flatten(1).norm(dim=1) * scale)
    return LeadingSpectra(spectrum, residuals * scale[:, None], iterated)


def _leading(Q: Tensor, k: int, tolerance: float, seed: int, iterate: bool) -> tuple[Tensor, Tensor, Tensor]:
    """Eigenvalues, eigenvectors, and which matrices were done by iteration."""
    n, d, _ = Q.shape
    values, vectors = Q.new_empty(n, k), Q.new_empty(n, d, k)
    todo = torch.arange(n, device=Q.device)
    incomplete = todo[:0]
    if iterate:
        lanczos = _Lanczos(Q, _block_size(d, k), seed)
        for n_steps in _STEPS:
            if not lanczos.extend(n_steps, 2 * k):
                continue
            found, good = lanczos.eigenpairs(k, tolerance)
            complete = good if k <= lanczos.block else good & _complete(lanczos, found, good, seed + 1)
            values[todo[complete]], vectors[todo[complete]] = found[complete].eigenvalues, found[complete].eigenvectors
            incomplete = torch.cat([incomplete, todo[good & ~complete]])
            todo = todo[~good]
            if len(todo) == 0:
                break
            lanczos = lanczos.of(~good)
    todo = torch.cat([todo, incomplete])
    if len(todo):
        full = Spectrum.of_dense(Q[todo], k)
        values[todo], vectors[todo] = full.eigenvalues, full.eigenvectors
    iterated = torch.ones(n, dtype=torch.bool, device=Q.device)
    iterated[todo] = False
    return values, vectors, iterated


def _block_size(d: int, k: int) -> int:
    """Vectors of a block: one where the whole space is soon filled."""
    if d < _SMALLEST:
        return 1
    return _BLOCK if k <= _BLOCK else _LARGE_BLOCK


def _complete(lanczos: "_Lanczos", found: Spectrum, good: Tensor, seed: int) -> Tensor:
    """Whether nothing larger than the pairs found is left when they are taken away, where they are good."""
    check = lanczos.of(good).without(found[good], seed)
    check.extend(_CHECK_STEPS if lanczos.block > 1 else _STEPS[0])
    largest, _ = check.eigenpairs(1, 1.0)
    complete = good.clone()
    complete[good] = largest.eigenvalues[:, 0].abs() <= found[good].eigenvalues[:, -1].abs() * (1 + 1e-5)
    return complete


class _Lanczos:
    """Orthonormal bases of block Krylov spaces, their vectors the rows of `basis`, and the projected matrices.

    Vectors are rows: batched products of few rows with a matrix run at the speed of memory, those of a matrix with few
    columns ten times slower.
    """

    def __init__(self, Q: Tensor, block: int, seed: int) -> None:
        d = Q.shape[1]
        self.block, self._most = block, min(_MOST, d) // block * block
        self._Q = Q
        self._scale = Q.flatten(1).norm(dim=1) / d**0.5
        self._taken: tuple[Tensor, Tensor] | None = None
        self._start(seed)

    def _start(self, seed: int) -> None:
        n, d, _ = self._Q.shape
        generator = torch.Generator().manual_seed(seed)
        self._random = torch.randn(self._most, d, generator=generator, dtype=torch.double).to(self._Q)
        self._basis = self._Q.new_zeros(n, self._most, d)
        self._projected = self._Q.new_zeros(n, self._most, self._most)
        self._coupling = self._Q.new_zeros(n, self.block, self.block)
        self._size = 0
        self._next = torch.linalg.qr(self._random[: self.block].T)[0].T.expand(n, self.block, d)

    def of(self, keep: Tensor) -> "_Lanczos":
        """Keep the iteration of some of the matrices."""
        if bool(keep.all()):
            return self
        part = copy.copy(self)
        for name in ("_Q", "_basis", "_projected", "_coupling", "_scale", "_next"):
            setattr(part, name, getattr(self, name)[keep])
        return part

    def without(self, found: Spectrum, seed: int) -> "_Lanczos":
        """A new iteration on the same matrices, some of their eigenpairs taken away."""
        part = copy.copy(self)
        part._taken = (found.eigenvalues.unsqueeze(1), found.eigenvectors)
        part._start(seed)
        return part

    def extend(self, n_steps: int, least: int = 1) -> bool:
        """Go on up to a number of steps, or as far as there is room; whether there are `least` vectors at the end."""
        for start in range(self._size, min(n_steps * self.block, self._most), self.block):
            self._size = end = start + self.block
            self._basis[:, start:end] = self._next
            product = torch.bmm(self._next, self._Q)
            if self._taken is not None:
                values, vectors = self._taken
                product -= torch.bmm(torch.bmm(self._next, vectors) * values, vectors.mT)
            row, rest = self._split(product)
            self._projected[:, start:end, :end] = row
            self._projected[:, :end, start:end] = row.mT
            _, rest = self._split(rest)  # once leaves rounding behind
            self._go_on(rest)
        return self._size >= min(least, self._most)

    def _split(self, rows: Float[Tensor, "n b d"]) -> tuple[Float[Tensor, "n b size"], Float[Tensor, "n b d"]]:
        """Coordinates of rows in the basis, and what they have outside of its span."""
        basis = self._basis[:, : self._size]
        part = torch.bmm(rows, basis.mT)
        return part, torch.baddbmm(rows, part, basis, alpha=-1)

    def _go_on(self, rest: Float[Tensor, "n b d"]) -> None:
        """The next block: an orthonormal basis of the rest."""
        following, self._coupling = torch.linalg.qr(rest.mT)
        # An invariant space is complete: any other vectors go on from here.
        length = self._coupling.diagonal(dim1=1, dim2=2).abs()
        closed = length <= 1e3 * torch.finfo(rest.dtype).eps * self._scale.unsqueeze(1)
        if self._size < self._most and bool(closed.any()):
            other = self._random[self._size : self._size + self.block].expand_as(rest)
            rows = torch.where(closed.unsqueeze(2), other, following.mT)
            for _ in range(2):
                rows = self._split(rows)[1]
            following, _ = torch.linalg.qr(rows.mT)
        self._next = following.mT

    def eigenpairs(self, k: int, tolerance: float) -> tuple[Spectrum, Tensor]:
        """The k leading Ritz pairs of each matrix, and for which matrices all of them are accepted."""
        size = self._size
        ritz = Spectrum.of_dense(self._projected[:, :size, :size])
        residual = torch.bmm(self._coupling, ritz.eigenvectors[:, -self.block :]).norm(dim=1)
        leading = ritz.eigenvalues[:, :k]
        largest = leading.abs().amax(1, keepdim=True)
        apart = (leading.unsqueeze(2) - ritz.eigenvalues.unsqueeze(1)).abs() - residual.unsqueeze(1)
        apart[:, torch.arange(k), torch.arange(k)] = torch.inf
        gap = apart.amin(2).clamp_min(torch.finfo(apart.dtype).tiny)
        error = torch.minimum(residual[:, :k], residual[:, :k].square() / gap)
        # A cluster of more eigenvalues than a block has vectors looks like one far from the rest: r alone bounds that.
        good = ((error <= tolerance * largest) & (residual[:, :k] <= max(tolerance, _RESIDUAL) * largest)).all(1)
        # The next Ritz values must be settled too, or one of them may still grow past those accepted.
        following = slice(k, min(k + 2, size))
        reach = ritz.eigenvalues[:, following].abs() + residual[:, following]
        good &= (reach <= leading[:, -1:].abs() * (1 + 1e-6)).all(1)
        vectors = torch.bmm(self._basis[:, :size].mT, ritz.eigenvectors[:, :, :k])
        return Spectrum(leading, vectors / vectors.norm(dim=1, keepdim=True)), good


def leading_spectrum(matrix: InteractionMatrix, k: int) -> Spectrum:
    """Find the leading eigenpairs of one factored matrix without forming it, by restarted Lanczos (ARPACK).

    Cost: some hundred products, O(d d_mlp) each, and O(d d_mlp^2) for the norm, on the CPU.

    Args:
        matrix: A single matrix.
        k: Eigenpairs, largest magnitude first; all of a matrix of fewer rows.
    """
    from scipy.sparse.linalg import LinearOperator, eigsh

    if matrix.dim <= max(_DENSE_ROWS, 2 * k + 1):
        return matrix.eigh(min(k, matrix.dim))
    dtype = torch.promote_types(matrix.left.dtype, torch.float32)
    parts = (part.detach().to("cpu", dtype) for part in (matrix.left, matrix.right, matrix.weights))
    work = InteractionMatrix(*parts)
    start = torch.ones(work.dim, dtype=dtype).numpy()
    product = LinearOperator(
        (work.dim, work.dim),
        matvec=lambda column: (work @ torch.from_numpy(column).reshape(-1)).numpy(),
        dtype=start.dtype,
    )
    if not bool(work.frobenius_norm() > 0):  # from which ARPACK cannot start
        return Spectrum(torch.zeros(k, dtype=dtype), torch.eye(work.dim, k, dtype=dtype))
    eigenvalues, eigenvectors = eigsh(product, k, which="LM", v0=start, tol=_EIGSH_TOLERANCE)
    norm = matrix.frobenius_norm().to("cpu", dtype)
    return Spectrum(torch.from_numpy(eigenvalues), torch.from_numpy(eigenvectors), norm)
