"""Leading eigenpairs of many symmetric matrices at once, by Lanczos iterations in step, with checked residuals."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from bilinear_circuits.spectra import Spectrum
from bilinear_circuits.sweep.precision import exact_sums

_STEPS = (40, 56, 80, 112, 160)
_CHECK_STEPS = 30
_SMALLEST = 192  # rows from which iterations pay
_CACHE_BYTES = 16 << 20  # matrices iterated together on a CPU: each step reads all of them


@dataclass(frozen=True, eq=False)
class LeadingSpectra:
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

    Lanczos iterations with full reorthogonalisation (Parlett, The Symmetric Eigenvalue Problem, chapter 13), all
    matrices in step. An eigenvalue is accepted if its error, at most r or r^2 / gap for a residual r and the distance
    `gap` to the rest of the spectrum, is below `tolerance` of the largest one. Matrices with one that is not, after
    160 steps, are decomposed in full, and so are matrices too small for iterations to pay, and those of which a short
    iteration finds something larger when the pairs are taken away, as where an eigenvalue repeats.

    Cost: about 80 products of a matrix with a vector each, instead of some 10 d^3 operations.

    Args:
        Q: Symmetric matrices, float32 or float64.
        k: Eigenpairs of each.
        tolerance: Error of an eigenvalue that is accepted, relative to the largest magnitude of its matrix.
        seed: Seed of the first vector.
        iterate: False decomposes all matrices in full; by default the sizes decide.

    Raises:
        ValueError: If k is not between 1 and d.
    """
    n, d, _ = Q.shape
    if not 1 <= k <= d:
        raise ValueError(f"k must be between 1 and d={d}, got {k}.")
    if iterate is None:
        iterate = d >= _SMALLEST and k <= _STEPS[-1] // 4
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
        lanczos = _Lanczos(Q, min(_STEPS[-1], d), seed)
        for n_steps in _STEPS:
            if min(n_steps, d) < 2 * k:
                continue
            lanczos.extend(min(n_steps, d))
            found, good = lanczos.eigenpairs(k, tolerance)
            complete = _complete(lanczos.matrices[good], found[good], seed + 1)
            done, good_pairs = todo[good][complete], found[good][complete]
            values[done], vectors[done] = good_pairs.eigenvalues, good_pairs.eigenvectors
            incomplete = torch.cat([incomplete, todo[good][~complete]])
            todo, lanczos = todo[~good], lanczos.of(~good)
            if len(todo) == 0:
                break
    todo = torch.cat([todo, incomplete])
    if len(todo):
        full = Spectrum.of_dense(Q[todo], k)
        values[todo], vectors[todo] = full.eigenvalues, full.eigenvectors
    iterated = torch.ones(n, dtype=torch.bool, device=Q.device)
    iterated[todo] = False
    return values, vectors, iterated


def _complete(Q: Tensor, found: Spectrum, seed: int) -> Tensor:
    """Whether nothing larger than the pairs found is left when they are taken away, by a short iteration of its own.

    A Krylov space holds one vector of each eigenspace: of a repeated eigenvalue it finds one.
    """
    vectors = found.eigenvectors
    rest = torch.baddbmm(Q, vectors * found.eigenvalues.unsqueeze(1), vectors.mT, alpha=-1)
    lanczos = _Lanczos(rest, min(_CHECK_STEPS, Q.shape[1]), seed)
    lanczos.extend(min(_CHECK_STEPS, Q.shape[1]))
    largest, _ = lanczos.eigenpairs(1, 1.0)
    return largest.eigenvalues[:, 0].abs() <= found.eigenvalues[:, -1].abs() * (1 + 1e-5)


class _Lanczos:
    """Orthonormal bases of Krylov spaces, row j of `basis` the j-th vector, and the projected matrices.

    Vectors are rows everywhere, and the bases are kept in either layout: batched products of a row with a matrix run at
    the speed of memory, those of a matrix with a column ten times slower.
    """

    def __init__(self, Q: Tensor, max_steps: int, seed: int) -> None:
        generator = torch.Generator().manual_seed(seed)
        n, d, _ = Q.shape
        self._Q = Q
        self._random = torch.randn(max_steps, d, generator=generator, dtype=torch.double).to(Q)
        self._basis = Q.new_zeros(n, max_steps, d)
        self._columns = Q.new_zeros(n, d, max_steps)
        self._diagonal = Q.new_zeros(n, max_steps)
        self._beside = Q.new_zeros(n, max_steps)  # entry j couples vectors j - 1 and j
        self._scale = Q.flatten(1).norm(dim=1, keepdim=True) / d**0.5
        self._n_steps = 0
        self._last = Q.new_zeros(n)
        self._next = (self._random[0] / self._random[0].norm()).expand(n, 1, d)

    @property
    def matrices(self) -> Tensor:
        """The matrices."""
        return self._Q

    def of(self, keep: Tensor) -> "_Lanczos":
        """The same for some of the matrices."""
        part = object.__new__(_Lanczos)
        part._random, part._n_steps = self._random, self._n_steps
        for name in ("_Q", "_basis", "_columns", "_diagonal", "_beside", "_scale", "_last", "_next"):
            setattr(part, name, getattr(self, name)[keep])
        return part

    def extend(self, n_steps: int) -> None:
        """Go on up to a number of vectors."""
        for step in range(self._n_steps, n_steps):
            self._basis[:, step : step + 1] = self._next
            self._columns[:, :, step : step + 1] = self._next.mT
            product = torch.bmm(self._next, self._Q)
            self._diagonal[:, step] = (product * self._next).sum((1, 2))
            self._n_steps = step + 1
            rest = self._orthogonal(product)
            length = rest.norm(dim=2)
            # An invariant space is complete: its coupling to the rest is zero, and any other vector goes on from here.
            closed = length <= 1e3 * torch.finfo(rest.dtype).eps * self._scale
            length = length.where(~closed, 0)
            if self._n_steps < len(self._random):
                if closed.any():
                    other = self._orthogonal(self._random[self._n_steps].expand_as(rest))
                    rest = torch.where(closed.unsqueeze(2), other, rest)
                self._beside[:, self._n_steps] = length.squeeze(1)
            self._last = length.squeeze(1)
            self._next = rest / rest.norm(dim=2, keepdim=True).clamp_min(torch.finfo(rest.dtype).tiny)

    def _orthogonal(self, rows: Float[Tensor, "n 1 d"]) -> Float[Tensor, "n 1 d"]:
        """Rows less their part in the span of the basis; twice, since once leaves rounding behind."""
        for _ in range(2):
            part = torch.bmm(rows, self._columns[:, :, : self._n_steps])
            rows = torch.baddbmm(rows, part, self._basis[:, : self._n_steps], alpha=-1)
        return rows

    def eigenpairs(self, k: int, tolerance: float) -> tuple[Spectrum, Tensor]:
        """The k leading Ritz pairs of each matrix, and for which matrices all of them are accepted."""
        n = self._n_steps
        projected = torch.diag_embed(self._diagonal[:, :n])
        projected += torch.diag_embed(self._beside[:, 1:n], 1) + torch.diag_embed(self._beside[:, 1:n], -1)
        ritz = Spectrum.of_dense(projected)
        residual = self._last.unsqueeze(1) * ritz.eigenvectors[:, -1].abs()
        leading = ritz.eigenvalues[:, :k]
        apart = (leading.unsqueeze(2) - ritz.eigenvalues.unsqueeze(1)).abs() - residual.unsqueeze(1)
        apart[:, torch.arange(k), torch.arange(k)] = torch.inf
        gap = apart.amin(2).clamp_min(torch.finfo(apart.dtype).tiny)
        error = torch.minimum(residual[:, :k], residual[:, :k].square() / gap)
        good = (error <= tolerance * leading.abs().amax(1, keepdim=True)).all(1)
        # The next Ritz values must be settled too, or one of them may still grow past those accepted.
        following = slice(k, min(k + 2, n))
        reach = ritz.eigenvalues[:, following].abs() + residual[:, following]
        good &= (reach <= leading[:, -1:].abs() * (1 + 1e-6)).all(1)
        vectors = self._basis[:, :n].mT @ ritz.eigenvectors[:, :, :k]
        return Spectrum(leading, vectors / vectors.norm(dim=1, keepdim=True)), good
