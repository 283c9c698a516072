"""How the interactions of a layer are distributed: moments, histograms and mass, from one sweep."""

from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from bilinear_circuits.sweep.products import Block, Panel, Products
from bilinear_circuits.utilities.display import Result

_SHIFT = 21  # bits of a float32 that a bin forgets: exponent and two bits of the fraction are left
_SIGN = 1 << (31 - _SHIFT)  # bins of either sign
_OCTAVES = 24
KINDS = ("self", "cross")


@dataclass(frozen=True, eq=False, repr=False)
class InteractionStatistics(Result):
    """The distribution of the coefficients of all interactions, T_aa and 2 T_ab, each pair of inputs once.

    Everything is of coarse coefficients: in bfloat16 each is rounded by at most 0.4 %, and its error is bounded by
    that of the sweep.

    Attributes:
        outputs: Output feature of each row.
        n_self: Self-interactions of an output feature, one for each input feature.
        n_cross: Cross-interactions of an output feature.
        power_sums: Sums of the first to fourth powers of the coefficients of each output, self and cross.
        edges: Edges of bins of magnitude: 0, then four bins for each factor of two up to the largest.
        positive: Number of positive coefficients (or zeros, in the first bin), self and cross, of all outputs.
        negative: Number of negative ones.
        magnitudes: Number of coefficients of each output by magnitude, self and cross together.
    """

    outputs: Int[Tensor, " output"]
    n_self: int
    n_cross: int
    power_sums: Float[Tensor, "output kind 4"]
    edges: Float[Tensor, " edge"]
    positive: Int[Tensor, "kind bin"]
    negative: Int[Tensor, "kind bin"]
    magnitudes: Int[Tensor, "output bin"]

    @property
    def n(self) -> int:
        """Interactions of an output feature."""
        return self.n_self + self.n_cross

    @property
    def mean(self) -> Float[Tensor, " output"]:
        """Mean coefficient of each output feature."""
        return self.power_sums.sum(1)[:, 0] / self.n

    @property
    def variance(self) -> Float[Tensor, " output"]:
        """Variance of the coefficients of each output feature."""
        return _variance_and_fourth(self.power_sums.sum(1) / self.n)[0]

    @property
    def kurtosis(self) -> Float[Tensor, " output"]:
        """Fourth central moment over squared variance, for each output feature: 3 for a normal distribution."""
        return _kurtosis(self.power_sums.sum(1) / self.n)

    def overall_kurtosis(self, kind: str | None = None) -> float:
        """Kurtosis of the coefficients of all outputs together, or only of the "self" or "cross" ones.

        Raises:
            ValueError: If the kind is unknown.
        """
        if kind is not None and kind not in KINDS:
            raise ValueError(f"kind must be one of {', '.join(KINDS)}, got {kind!r}.")
        chosen = slice(None) if kind is None else slice(KINDS.index(kind), KINDS.index(kind) + 1)
        n = {None: self.n, "self": self.n_self, "cross": self.n_cross}[kind]
        return _kurtosis(self.power_sums[:, chosen].sum((0, 1)) / (n * len(self.outputs))).item()

    def mass_in_top(self, n: int) -> Float[Tensor, " output"]:
        """Share of sum |coefficient| in the n largest of each output feature.

        From the bins, each at its middle: right to a few per cent of itself.

        Raises:
            ValueError: If n is not between 1 and the number of interactions.
        """
        if not 1 <= n <= self.n:
            raise ValueError(f"n must be between 1 and {self.n}, the interactions of an output feature, got {n}.")
        return _mass(self.magnitudes, self.edges, n)

    def overall_mass_in_top(self, n: int) -> float:
        """Share of sum |coefficient| of the whole tensor in its n largest.

        Raises:
            ValueError: If n is not between 1 and the number of interactions.
        """
        n_all = self.n * len(self.outputs)
        if not 1 <= n <= n_all:
            raise ValueError(f"n must be between 1 and {n_all}, the interactions of the layer, got {n}.")
        return _mass(self.magnitudes.sum(0, keepdim=True), self.edges, n).item()


class Statistics:
    """Collects the distribution of the interactions of a sweep."""

    def __init__(self, products: Products) -> None:
        """Prepare for the outputs of `products`."""
        self._products = products
        self._histograms: list[Tensor] = []
        self._sums: list[Tensor] = []
        self._block: list[tuple[Tensor, Tensor]] = []

    def scan(self, panel: Panel) -> None:
        """Take in a panel of the present block: several passes over it."""
        # Scores to coefficients. Adding 0 turns the -0 that may lie below the diagonal into 0.
        values = panel.values.float().mul_(2).add_(0.0)
        own = values[:, :, : len(values)].diagonal(dim1=0, dim2=2).T.unsqueeze(2)
        own = own[: self._products.n_inputs - panel.start]
        parts = [(_histogram(part), _power_sums(part)) for part in (own, values)]
        (own_counts, own_sums), (counts, sums) = parts
        self._block.append((torch.stack([own_counts, counts], 1), torch.stack([own_sums, sums], 1)))

    def finish(self, block: Block) -> None:
        """Take in the end of a block."""
        counts, sums = (sum(column) for column in zip(*self._block, strict=True))
        self._block.clear()
        n = self._products.n_inputs
        # Zeros below the diagonal and in the padding are no interactions.
        counts[:, 1, 0] -= counts[:, 1].sum(1) - n * (n + 1) // 2
        for one in (counts, sums):
            one[:, 1] -= one[:, 0]
        self._histograms.append(counts)
        self._sums.append(sums)

    def result(self) -> InteractionStatistics:
        """The distribution of what was swept."""
        counts = torch.cat(self._histograms).unflatten(2, (2, _SIGN))
        edges, counts = _trimmed(counts)
        n = self._products.n_inputs
        return InteractionStatistics(
            outputs=self._products.outputs,
            n_self=n,
            n_cross=n * (n - 1) // 2,
            power_sums=torch.cat(self._sums),
            edges=edges,
            positive=counts[:, :, 0].sum(0),
            negative=counts[:, :, 1].sum(0),
            magnitudes=counts.sum((1, 2)),
        )


def _histogram(values: Float[Tensor, "row output column"]) -> Int[Tensor, "output bin"]:
    """Counts by the leading bits: positive magnitudes in rising order, then negative ones."""
    n_outputs = values.shape[1]
    bins = (values.contiguous().view(torch.int32) >> _SHIFT) & (2 * _SIGN - 1)
    bins += 2 * _SIGN * torch.arange(n_outputs, dtype=torch.int32, device=values.device)[:, None]
    return bins.flatten().bincount(minlength=n_outputs * 2 * _SIGN).view(n_outputs, -1)


def _power_sums(values: Float[Tensor, "row output column"]) -> Float[Tensor, "output 4"]:
    # Fourth powers leave the range of float32 from about 1e-11 down and 1e9 up. Powers of two change no digit.
    largest = torch.maximum(values.amax((0, 2)), -values.amin((0, 2)))
    scale = largest.where(largest > 0, 1).log2().round().exp2()
    values = values / scale.unsqueeze(1)
    square = values.square()
    powers = (values, square, square * values, square.square())
    return torch.stack([power.sum((0, 2)).double() * scale.double() ** n for n, power in enumerate(powers, 1)], 1)


def _trimmed(counts: Int[Tensor, "output kind sign bin"]) -> tuple[Tensor, Tensor]:
    """Edges and counts of the bins that matter; the first has what is below 2^-24 of the largest of every output."""
    n_bins = counts.shape[-1]
    stops = torch.where(counts.sum((1, 2)) > 0, torch.arange(1, n_bins + 1, device=counts.device), 0).amax(1)
    stop = int(stops.max())
    # Bin 0 is zero itself, which an output of zeros alone fills.
    start = max(1, int(stops[stops > 1].min()) - 4 * _OCTAVES) if stop > 1 else 1
    first = counts[..., :start].sum(-1, keepdim=True)
    bits = torch.arange(start, stop + 1, dtype=torch.int32, device=counts.device) << _SHIFT
    edges = bits.view(torch.float32)
    return torch.cat([edges.new_zeros(1), edges]), torch.cat([first, counts[..., start:stop]], -1)


def _mass(counts: Int[Tensor, "output bin"], edges: Float[Tensor, " edge"], n: int) -> Float[Tensor, " output"]:
    falling = counts.flip(1).double()
    middle = ((edges[1:] + edges[:-1]) / 2).flip(0).double()
    taken = (n - (falling.cumsum(1) - falling)).clamp_min(0).minimum(falling)
    return (taken @ middle) / (falling @ middle).clamp_min(torch.finfo(torch.double).tiny)


def _variance_and_fourth(moments: Float[Tensor, "*n 4"]) -> tuple[Tensor, Tensor]:
    """Second and fourth central moments from the raw ones."""
    first, second, third, fourth = moments.unbind(-1)
    variance = second - first.square()
    return variance, fourth - 4 * first * third + 6 * first.square() * second - 3 * first.pow(4)


def _kurtosis(moments: Float[Tensor, "*n 4"]) -> Float[Tensor, "*n"]:
    variance, fourth = _variance_and_fourth(moments)
    return fourth / variance.square()
