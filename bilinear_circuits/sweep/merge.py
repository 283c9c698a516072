"""A sweep in parts, and what the parts found put together: to the last bit what one sweep over everything finds."""

from collections.abc import Iterator, Sequence
from dataclasses import replace
from functools import cached_property

import torch
from jaxtyping import Float, Int
from torch import Tensor

from bilinear_circuits.sweep.products import Block, Products
from bilinear_circuits.sweep.results import Certificate, TopInteractions, sorted_by

_COLUMNS = ("output", "first", "second", "weights", "scores")


class Part(Products):
    """Some of the outputs of a sweep. What a sweep makes once for all its outputs is made by the whole, and shared."""

    def __init__(self, whole: Products, places: Int[Tensor, " n"]) -> None:
        """Take a part of a sweep.

        Args:
            whole: The sweep over all outputs.
            places: Places in `whole.outputs`, in rising order.
        """
        self._whole, self._places = whole, places
        self.n_inputs, self.n_outputs, self.precision = whole.n_inputs, whole.n_outputs, whole.precision
        self.outputs = whole.outputs[places]

    @property
    def dtype(self) -> torch.dtype:
        """Precision of exact scores."""
        return self._whole.dtype

    @property
    def n_rows(self) -> int:
        """Rows of a block."""
        return self._whole.n_rows

    @cached_property
    def factors(self) -> tuple[Float[Tensor, "d_sae_in d_mlp"], Float[Tensor, "d_sae_in d_mlp"]]:
        """D W_gate and D W_in, which exact values are read from."""
        return self._whole.factors

    @property
    def groups(self) -> tuple[Int[Tensor, " n"], ...]:
        """Places in the outputs of the part of those whose forms are made together."""
        return torch.arange(len(self.outputs), device=self.outputs.device).split(len(self._whole.groups[0]))

    def blocks(self, group: Int[Tensor, " n"]) -> Iterator[Block]:
        """Blocks of the outputs of a group, in their order."""
        start = 0
        for block in self._whole.blocks(self._places[group]):
            stop = start + len(block.outputs)
            yield replace(block, weights=self._weights[group[start:stop]])
            start = stop

    def neuron_weights(self, outputs: Int[Tensor, " n"]) -> Float[Tensor, "n d_mlp"]:
        """Compute the weight of each neuron in each output."""
        return self._whole.neuron_weights(outputs)

    def exact_error(self, weights: Float[Tensor, "n d_mlp"]) -> Float[Tensor, " n"]:
        """Bound on the rounding of `exact`."""
        return self._whole.exact_error(weights)

    @cached_property
    def _weights(self) -> Float[Tensor, "output d_mlp"]:
        """Neuron weights as the whole makes them: a product of fewer rows may round otherwise."""
        whole, rows = self._whole, []
        for group in whole.groups:
            mine = torch.isin(group, self._places)
            if mine.any():
                rows.append(self.neuron_weights(whole.outputs[group])[mine])
        return torch.cat(rows)


class Reached:
    """What k interactions are known to reach from the parts searched so far, so that others need not look below it.

    Attributes:
        floor: The k-th largest score by magnitude; 0 while fewer are known.
    """

    def __init__(self, k: int) -> None:
        self._k = k
        self._sizes: Tensor | None = None
        self.floor = 0.0

    def add(self, part: TopInteractions) -> None:
        """Take in what a search for the k largest found in a part."""
        sizes = part.scores.abs()
        sizes = sizes if self._sizes is None else torch.cat([self._sizes, sizes.to(self._sizes)])
        # A copy: the values of topk keep all that was sorted.
        self._sizes = sizes.topk(min(self._k, len(sizes))).values.clone()
        if len(self._sizes) == self._k:
            self.floor = self._sizes[-1].item()


def merge(parts: Sequence[TopInteractions], k: int, per_output: bool = False) -> TopInteractions:
    """The largest interactions of all parts of a sweep from the largest of each.

    Args:
        parts: What a search for the k largest found in each part, in the order of the parts; those that do not reach
            what k of the others do may be missing.
        k: How many were searched for.
        per_output: Whether k of each output.

    Raises:
        ValueError: If there are no parts, or their products were of different precisions.
    """
    precisions = list(dict.fromkeys(part.certificate.precision for part in parts))
    if len(precisions) != 1:
        raise ValueError(f"parts must be one or more, of products in one precision, got {precisions or 'none'}.")
    columns = {name: torch.cat([getattr(part, name) for part in parts]) for name in _COLUMNS}
    certificates = [part.certificate for part in parts]
    if per_output:
        threshold = min(one.threshold for one in certificates)
    else:
        largest = sorted_by(columns["second"], columns["first"], columns["output"], -columns["scores"].abs())[:k]
        columns = {name: column[largest] for name, column in columns.items()}
        threshold = columns["scores"].abs().min().item() if len(largest) == k else 0.0
    certificate = Certificate(
        threshold=threshold,
        error_bound=max(one.error_bound for one in certificates),
        relative_error=max(one.relative_error for one in certificates),
        candidates=sum(one.candidates for one in certificates),
        interactions=sum(one.interactions for one in certificates),
        precision=precisions[0],
    )
    return TopInteractions(**columns, certificate=certificate)
