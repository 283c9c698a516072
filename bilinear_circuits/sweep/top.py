"""The exact largest interactions, found among coarse ones by their error bound and computed again in full."""

from dataclasses import dataclass, replace

import torch
from jaxtyping import Float, Int
from torch import Tensor

from bilinear_circuits.sweep.keys import ORDERS, Order, keys, magnitudes, threshold
from bilinear_circuits.sweep.moments import Moments
from bilinear_circuits.sweep.products import Block, Panel, Products
from bilinear_circuits.sweep.results import Certificate, TopInteractions, sorted_by

_CHUNK = 128  # candidates computed together: what is read for them stays in the cache
_LANES_CHUNK = 1 << 17  # lanes looked through together
_FEW = 1 / 16  # share of rows up to which the largest of each row tell the k-th largest
_MANY = 3 / 4  # the same for lanes
_N_BINS = 1 << 15


@dataclass(frozen=True, eq=False)
class _Found:
    """Interactions; `group` is what they compete in, `score` what by, `value` is the score before any moments."""

    group: Tensor
    output: Tensor
    first: Tensor
    second: Tensor
    score: Tensor
    value: Tensor

    def __getitem__(self, index: Tensor) -> "_Found":
        return _Found(*(getattr(self, name)[index] for name in self.__dataclass_fields__))

    @staticmethod
    def cat(parts: "list[_Found]") -> "_Found":
        return _Found(*(torch.cat([getattr(part, name) for part in parts]) for name in _Found.__dataclass_fields__))


class TopSearch:
    """Collects the k largest interactions of a sweep, of all outputs together or of each.

    1. In each row of a panel the largest coarse values of some lanes of columns are found. The k-th largest of these,
       or of their largest in each row if k is small, less its error, is a floor: k interactions reach it.
    2. Entries whose coarse value plus error reaches the floor are candidates. The k with the largest coarse values
       are computed in full: the least of them is a better floor, which decides what else is computed.
    3. For all outputs together, the k-th largest so far is the floor of the blocks that follow.
    """

    def __init__(
        self,
        products: Products,
        k: int,
        per_output: bool = False,
        order: Order = "magnitude",
        moments: Float[Tensor, "d_sae_in d_sae_in"] | None = None,
        floor: float = 0.0,
    ) -> None:
        """Prepare the search.

        Args:
            products: What is swept.
            k: How many are kept.
            per_output: Whether k are kept of each output.
            order: Largest by magnitude, or only positive or only negative ones.
            moments: Symmetric second moments E[z_a z_b] by which interactions are multiplied before they are compared.
            floor: Scores of lesser magnitude are not asked for. Where k that reach it are known from elsewhere, as
                from another part of the sweep, it saves work.

        Raises:
            ValueError: If `k` is not positive, `order` unknown, `moments` of another shape or with coarse products, or
                `floor` is no magnitude.
        """
        if k < 1:
            raise ValueError(f"k must be at least 1, got {k}.")
        if order not in ORDERS:
            raise ValueError(f"order must be one of {', '.join(ORDERS)}, got {order!r}.")
        if not 0 <= floor < torch.inf:
            raise ValueError(f"floor must be a magnitude, 0 or more, got {floor}.")
        self._products, self._k, self._per_output, self._order = products, k, per_output, order
        self._moments = None if moments is None else Moments(moments, products)
        self._panels: list[Panel] = []
        self._lanes: list[Tensor] = []
        self._given = self._least = floor / 2  # of a score as it is compared: see `Block`
        self._best: list[_Found] = []
        self._n_candidates, self._error, self._unit = 0, 0.0, 0.0

    def scan(self, panel: Panel) -> None:
        """Take in a panel of the present block: one pass over it."""
        if self._moments is not None:
            panel = self._moments.weighted(panel)
        self._lanes.append(panel.lanes(self._order))
        self._panels.append(panel)

    def finish(self, block: Block) -> None:
        """Take in the end of a block.

        Raises:
            ValueError: If interactions of the block are not finite, or too large for the squares in their bound.
        """
        if not block.slack.isfinite().all():
            raise ValueError(
                "tensor must have finite weights and interactions below about 1e19, got others at output"
                f" {block.outputs[~block.slack.isfinite().all(0)][0].item()}. Rescale the layer, or look for NaN."
            )
        if self._moments is not None:
            block = self._moments.of_rows(block)
        lanes, exact_error = torch.cat(self._lanes), self._exact_error(block)
        peaks = magnitudes(lanes.amax(2))
        # Twice the rounding of exact scores: once for those that reach the floor, once for those that do not.
        floor = (self._reached(block, lanes, peaks) - 2 * exact_error).clamp_min(self._least - exact_error)
        found, coarse, error = self._candidates(block, lanes, peaks, floor)
        self._panels.clear()
        self._lanes.clear()
        self._error = max(self._error, 2 * block.slack[: self._products.n_inputs].max().item())
        self._unit = block.unit
        self._best.append(self._refine(block, found, coarse, error, exact_error))
        if self._per_output:
            self._best[-1] = _largest(self._best[-1], self._k)
        else:
            self._keep_largest()

    def result(self) -> TopInteractions:
        """The interactions found, largest first."""
        best = _Found.cat(self._best)
        best = best[best.score.abs() >= self._given]
        if not self._per_output:
            best = _largest(best, self._k)
        n_outputs, n = len(self._products.outputs), self._products.n_inputs
        short = len(best.score) < (self._k * n_outputs if self._per_output else self._k)
        certificate = Certificate(
            threshold=2 * (self._given if short else best.score.abs().min().item()),
            error_bound=self._error,
            relative_error=self._unit,
            candidates=self._n_candidates,
            interactions=n_outputs * (n * (n + 1) // 2),
            precision=self._products.precision,
        )
        return TopInteractions(best.output, best.first, best.second, 2 * best.value, 2 * best.score, certificate)

    def _reached(self, block: Block, lanes: Tensor, peaks: Tensor) -> Float[Tensor, " output"]:
        """A magnitude that k interactions of each group reach, from coarse values as fine as k needs; 0 if unknown."""
        n_outputs = len(block.outputs)
        n_groups = n_outputs if self._per_output else 1
        if not self._per_output and self._least > self._given:
            return block.slack.new_zeros(n_outputs)  # k are known
        n_rows = self._products.n_inputs * n_outputs // n_groups
        if self._k <= _FEW * n_rows:
            coarse = peaks.unsqueeze(2)
        elif self._k <= _MANY * n_rows * block.n_lanes:
            coarse = magnitudes(lanes)
        else:
            return self._reached_by_all(block, n_groups)
        lower = (coarse / (1 + block.unit)).sub_(block.slack.unsqueeze(2)).clamp_min_(0)
        lower = lower.transpose(0, 1).reshape(n_groups, -1)
        return lower.topk(self._k, dim=1, sorted=False).values.amin(1).expand(n_outputs)

    def _reached_by_all(self, block: Block, n_groups: int) -> Float[Tensor, " output"]:
        """Find a floor from counts of all coarse values of the block by the leading bits of their magnitudes."""
        n_outputs = len(block.outputs)
        counts = torch.zeros(n_groups * _N_BINS, dtype=torch.long, device=block.slack.device)
        group = torch.arange(n_outputs, device=block.slack.device) * _N_BINS * (n_groups > 1)
        for panel in self._panels:
            bins = _bins(keys(panel.values, self._order)) + group[:, None]
            counts += bins.flatten().bincount(minlength=len(counts))
        reaching = counts.view(n_groups, _N_BINS).flip(1).cumsum(1).flip(1)
        last = (reaching >= self._k).sum(1) - 1
        edge = magnitudes(last.clamp_min(0).to(torch.int16)) * (1 - 2.0**-20) / (1 + block.unit)
        slack = block.slack.amax(0)
        return (edge - (slack if n_groups > 1 else slack.max())).clamp_min(0).expand(n_outputs)

    def _candidates(self, block: Block, lanes: Tensor, peaks: Tensor, floor: Tensor) -> tuple[_Found, Tensor, Tensor]:
        """Entries that may reach the floor, their coarse magnitudes, and the bounds on their errors."""
        needed = ((floor - block.slack) * (1 - block.unit)).clamp_min(0)
        row, output = (peaks >= needed).nonzero(as_tuple=True)
        parts = []
        for some in torch.arange(len(row), device=row.device).split(_LANES_CHUNK // block.n_lanes):
            reach = lanes[row[some], output[some]] >= threshold(needed[row[some], output[some]], lanes.dtype)[:, None]
            at, lane = reach.nonzero(as_tuple=True)
            parts.append(self._in_lanes(block, row[some][at], output[some][at], lane, needed))
        if not parts:
            parts = [(row, output, row, needed[row, output])]
        first, output, second, coarse = (torch.cat(column) for column in zip(*parts, strict=True))
        group = output if self._per_output else torch.zeros_like(output)
        return _Found(group, output, first, second, coarse, coarse), coarse, block.slack[first, output]

    def _in_lanes(
        self, block: Block, row: Tensor, output: Tensor, lane: Tensor, needed: Tensor
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Row, output, column and coarse magnitude of the entries in some lanes that are as large as needed."""
        column = lane[:, None] + torch.arange(0, len(needed), block.n_lanes, device=lane.device)
        at, step = ((column >= row[:, None]) & (column < self._products.n_inputs)).nonzero(as_tuple=True)
        row, output, column = row[at], output[at], column[at, step]
        values = block.values(row, output, column)
        if self._moments is not None:
            values = values * self._moments.at(row, column)
        found = keys(values, self._order)
        large = found >= threshold(needed[row, output], found.dtype)
        return row[large], output[large], column[large], magnitudes(found[large])

    def _refine(self, block: Block, found: _Found, coarse: Tensor, error: Tensor, exact_error: float) -> _Found:
        """Exact scores of those candidates that the k coarsely largest do not rule out."""
        leading = _rank_in_group(found) < self._k
        exact = self._exact(block, found[leading])
        floor = _floors(exact, len(block.outputs) if self._per_output else 1, self._k)
        floor = floor.clamp_min(self._least) - exact_error
        rest = ~leading & (coarse / (1 - block.unit) + error >= floor[found.group])
        both = _Found.cat([exact, self._exact(block, found[rest])])
        return replace(both, output=block.outputs[both.output])

    def _exact(self, block: Block, found: _Found) -> _Found:
        """Candidates with their exact scores, those of the wrong sign left out."""
        chunks = zip(*(column.split(_CHUNK) for column in (found.output, found.first, found.second)), strict=True)
        scores = [
            self._products.exact(block.weights.index_select(0, output), first, second)
            for output, first, second in chunks
        ]
        self._n_candidates += len(found.score)
        value = torch.cat(scores) if scores else block.weights.new_empty(0)
        score = value if self._moments is None else value * self._moments.at(found.first, found.second)
        return replace(found, score=score, value=value)[_in_order(score, self._order)]

    def _exact_error(self, block: Block) -> float:
        """Bound on the rounding of an exact score of the block."""
        error = self._products.exact_error(block.weights).max().item()
        return error if self._moments is None else error * self._moments.largest

    def _keep_largest(self) -> None:
        """Forget what k others are above."""
        best = _Found.cat(self._best)
        if len(best.score) >= self._k:
            size = best.score.abs()
            self._least = max(self._least, size.topk(self._k, sorted=False).values.min().item())
            best = best[size >= self._least]
            if len(best.score) > 2 * self._k:  # ties
                best = _largest(best, self._k)
        self._best = [best]


def _bins(some: Tensor) -> Int[Tensor, "*n"]:
    """The leading 15 bits of the magnitudes of keys."""
    if some.dtype == torch.int16:
        return some.long()
    return (some.float().view(torch.int32).long() >> 16) & (_N_BINS - 1)


def _in_order(score: Tensor, order: Order) -> Tensor:
    if order == "magnitude":
        return torch.ones_like(score, dtype=torch.bool)
    return score > 0 if order == "positive" else score < 0


def _sorted_in_groups(found: _Found) -> Tensor:
    """Indices by group, within a group by falling magnitude; ties by output, first and second."""
    return sorted_by(found.second, found.first, found.output, -found.score.abs(), found.group)


def _rank_in_group(found: _Found) -> Int[Tensor, " n"]:
    """Position of each in its group, by falling magnitude."""
    order = sorted_by(-found.score, found.group)
    return torch.empty_like(order).scatter_(0, order, _position(found.group[order]))


def _position(group: Tensor) -> Tensor:
    """Position within its group of each entry of a sorted column."""
    counts = group.bincount()
    return torch.arange(len(group), device=group.device) - (counts.cumsum(0) - counts)[group]


def _floors(exact: _Found, n_groups: int, k: int) -> Float[Tensor, " group"]:
    """Least magnitude of each group that has k entries, 0 for the others."""
    floor = torch.full((n_groups,), torch.inf, dtype=exact.score.dtype, device=exact.score.device)
    floor.scatter_reduce_(0, exact.group, exact.score.abs(), "amin")
    return floor.where(exact.group.bincount(minlength=n_groups) >= k, 0)


def _largest(found: _Found, k: int) -> _Found:
    """The k largest of each group, in order."""
    found = found[_sorted_in_groups(found)]
    return found[_position(found.group) < k]
