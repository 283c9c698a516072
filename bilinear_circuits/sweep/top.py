"""The exact largest interactions, found among coarse ones by their error bound and computed again in full."""

from dataclasses import dataclass, replace
from typing import Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor

from bilinear_circuits.sweep.products import Block, Panel, Products
from bilinear_circuits.sweep.results import Certificate, TopInteractions, sorted_by

Order = Literal["magnitude", "positive", "negative"]
ORDERS = ("magnitude", "positive", "negative")
_CHUNK = 256  # candidates computed together: what is read for them stays in the cache
_LANES = 64


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
        return _Found(*(torch.cat([getattr(one, name) for one in parts]) for name in _Found.__dataclass_fields__))


class TopSearch:
    """Collects the k largest interactions of a sweep, of all outputs together or of each.

    1. In each row of a panel the largest coarse value is found. The k-th largest of these, less its error, is a floor:
       k interactions reach it.
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
    ) -> None:
        """Prepare the search.

        Args:
            products: What is swept.
            k: How many are kept.
            per_output: Whether k are kept of each output.
            order: Largest by magnitude, or only positive or only negative ones.
            moments: Symmetric second moments E[z_a z_b] by which interactions are multiplied before they are compared.

        Raises:
            ValueError: If `k` is not positive, `order` unknown, or `moments` of another shape or with coarse products.
        """
        if k < 1:
            raise ValueError(f"k must be at least 1, got {k}.")
        if order not in ORDERS:
            raise ValueError(f"order must be one of {', '.join(ORDERS)}, got {order!r}.")
        self._products, self._k, self._per_output, self._order = products, k, per_output, order
        self._moments = None if moments is None else _Moments(moments, products)
        self._panels: list[Panel] = []
        self._peaks: list[Tensor] = []
        self._floor = 0.0
        self._best: list[_Found] = []
        self._n_candidates, self._error, self._unit = 0, 0.0, 0.0

    def scan(self, panel: Panel) -> None:
        """Take in a panel of the present block: one pass over it."""
        if self._moments is not None:
            panel = self._moments.weighted(panel)
        keys = _keys(panel.values, self._order)
        # In two steps: a maximum over rows of whole vector registers is several times faster than one along a row.
        lanes = keys.unflatten(2, (-1, _LANES)).amax(2) if keys.shape[2] % _LANES == 0 else keys
        self._panels.append(panel)
        self._peaks.append(_values(lanes.amax(2), panel.values.dtype))

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
        peaks = torch.cat(self._peaks)
        floor = self._first_floor(block, peaks)
        found, coarse, error = self._candidates(block, peaks, floor)
        self._panels.clear()
        self._peaks.clear()
        self._error = max(self._error, 2 * block.slack[: self._products.n_inputs].max().item())
        self._unit = block.unit
        exact = self._refine(block, found, coarse, error)
        if self._per_output:
            self._best.append(_largest(exact, self._k))
            return
        self._best = [_largest(_Found.cat([*self._best, exact]), self._k)]
        if len(self._best[0].score) == self._k:
            slack = self._exact_error(block)
            self._floor = max(self._floor, self._best[0].score.abs().min().item() - slack)

    def result(self) -> TopInteractions:
        """The interactions found, largest first."""
        best = _Found.cat(self._best)
        n_outputs, n = len(self._products.outputs), self._products.n_inputs
        short = len(best.score) < (self._k * n_outputs if self._per_output else self._k)
        certificate = Certificate(
            threshold=0.0 if short else 2 * best.score.abs().min().item(),
            error_bound=self._error,
            relative_error=self._unit,
            candidates=self._n_candidates,
            interactions=n_outputs * (n * (n + 1) // 2),
            precision=self._products.precision,
        )
        return TopInteractions(best.output, best.first, best.second, 2 * best.value, 2 * best.score, certificate)

    def _first_floor(self, block: Block, peaks: Tensor) -> Float[Tensor, " output"]:
        """A magnitude that k interactions of each group reach, from the largest coarse value of each row."""
        lower = (peaks / (1 + block.unit) - block.slack).clamp_min(0)
        if self._per_output:
            if self._k > len(lower):
                return lower.new_zeros(lower.shape[1])
            return lower.topk(self._k, dim=0, sorted=False).values.amin(0)
        reached = 0.0
        if self._k <= lower.numel() and self._floor == 0:
            reached = lower.flatten().topk(self._k, sorted=False).values.min().item()
        return torch.full_like(lower[0], max(self._floor, reached))

    def _candidates(self, block: Block, peaks: Tensor, floor: Tensor) -> tuple[_Found, Tensor, Tensor]:
        """Entries that may reach the floor, their coarse magnitudes, and the bounds on their errors."""
        needed = ((floor - block.slack) * (1 - block.unit)).clamp_min(0)
        parts = []
        for panel in self._panels:
            height = len(panel.values)
            rows = slice(panel.start, panel.start + height)
            row, output = (peaks[rows] >= needed[rows]).nonzero(as_tuple=True)
            values = panel.values[row, output]
            keys = _keys(values, self._order)
            at, column = (keys >= _threshold(needed[rows][row, output], values.dtype)[:, None]).nonzero(as_tuple=True)
            parts.append(
                (row[at] + panel.start, output[at], column + panel.start, _values(keys[at, column], values.dtype))
            )
        first, output, second, coarse = (torch.cat(column) for column in zip(*parts, strict=True))
        real = (first <= second) & (second < self._products.n_inputs)
        first, output, second, coarse = first[real], output[real], second[real], coarse[real]
        group = output if self._per_output else torch.zeros_like(output)
        return _Found(group, output, first, second, coarse, coarse), coarse, block.slack[first, output]

    def _refine(self, block: Block, found: _Found, coarse: Tensor, error: Tensor) -> _Found:
        """Exact scores of those candidates that the k coarsely largest do not rule out."""
        leading = _rank_in_group(found) < self._k
        exact = self._exact(block, found[leading])
        self._n_candidates += len(exact.score)
        exact = exact[_in_order(exact.score, self._order)]
        n_groups = len(block.outputs) if self._per_output else 1
        floor = _floors(exact, n_groups, self._k) - self._exact_error(block)
        floor = floor.clamp_min(self._floor)
        rest = ~leading & (coarse / (1 - block.unit) + error >= floor[found.group])
        others = self._exact(block, found[rest])
        self._n_candidates += len(others.score)
        both = _Found.cat([exact, others[_in_order(others.score, self._order)]])
        return replace(both, output=block.outputs[both.output])

    def _exact(self, block: Block, found: _Found) -> _Found:
        chunks = zip(*(column.split(_CHUNK) for column in (found.output, found.first, found.second)), strict=True)
        scores = [self._products.exact(block.weights[output], first, second) for output, first, second in chunks]
        value = torch.cat(scores) if scores else block.weights.new_empty(0)
        score = value if self._moments is None else value * self._moments.at(found.first, found.second)
        return replace(found, score=score, value=value)

    def _exact_error(self, block: Block) -> float:
        """Bound on the rounding of an exact score of the block."""
        error = self._products.exact_error(block.weights).max().item()
        return error if self._moments is None else error * self._moments.largest


class _Moments:
    """Second moments by which interactions are multiplied, padded to whole panels."""

    def __init__(self, moments: Tensor, products: Products) -> None:
        n = products.n_inputs
        if moments.shape != (n, n) or not torch.allclose(moments, moments.T):
            raise ValueError(f"moments must be a symmetric ({n}, {n}) matrix, got shape {tuple(moments.shape)}.")
        if products.precision != "float32":
            raise ValueError(
                f"moments must go with products in float32, got {products.precision}: a bound on coarse products says"
                " little about entries multiplied by numbers of very different sizes."
            )
        missing = products.n_rows - n
        self._padded = torch.nn.functional.pad(moments.to(products.dtype), (0, missing, 0, missing))
        self._of_row = self._padded.abs().amax(1, keepdim=True)
        self.largest = self._of_row.max().item()

    def weighted(self, panel: Panel) -> Panel:
        """A panel times the moments."""
        rows = slice(panel.start, panel.start + len(panel.values))
        return Panel(panel.start, panel.values * self._padded[rows, None, panel.start :])

    def of_rows(self, block: Block) -> Block:
        """The block with the bounds that hold for its weighted panels."""
        return replace(block, slack=block.slack * self._of_row, unit=2 * block.unit)

    def at(self, first: Tensor, second: Tensor) -> Tensor:
        """Moments of pairs."""
        return self._padded[first, second]


def _keys(values: Tensor, order: Order) -> Tensor:
    """Numbers in the order of what is searched for, 0 for the wrong sign: bit patterns of bfloat16, or magnitudes."""
    if values.dtype == torch.bfloat16:
        bits = values.view(torch.int16)
        if order == "magnitude":
            return bits & 0x7FFF
        return (bits if order == "positive" else bits ^ -0x8000).clamp_min(0)
    return {"magnitude": values.abs, "positive": values.relu, "negative": values.neg().relu}[order]()


def _values(keys: Tensor, dtype: torch.dtype) -> Tensor:
    """What the keys are the magnitude of, in float32."""
    return keys.view(torch.bfloat16).float() if dtype == torch.bfloat16 else keys


def _threshold(magnitude: Tensor, dtype: torch.dtype) -> Tensor:
    """The largest key not above a magnitude: the high half of the bits of a float32."""
    return (magnitude.view(torch.int32) >> 16).to(torch.int16) if dtype == torch.bfloat16 else magnitude


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
