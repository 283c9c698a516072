"""Bilinear forms between two sets of named directions, kept as factors."""

from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from bilinear_circuits.dictionaries.dictionary import Dictionary
from bilinear_circuits.utilities.display import Brief, Shown, Tabled
from bilinear_circuits.utilities.kinds import check_finite, check_kind, check_whole

_BLOCK = 1 << 22

Directions = Float[Tensor, "_ d_model"] | Dictionary
"""Rows of a tensor, or a dictionary: its decoder rows where it is written, its encoder where it reads."""


@dataclass(frozen=True, eq=False, repr=False)
class TopEntries(Shown, Tabled):
    """The largest entries of a form, by falling magnitude.

    Attributes:
        row: Row of each.
        column: Its column.
        value: Its value.
    """

    row: Int[Tensor, " k"]
    column: Int[Tensor, " k"]
    value: Float[Tensor, " k"]

    def table(self) -> dict[str, list[Any]]:
        """One row for each entry."""
        return {"row": self.row.tolist(), "column": self.column.tolist(), "value": self.value.tolist()}


@dataclass(frozen=True, eq=False, repr=False)
class BilinearForm(Brief):
    """A matrix left @ right.T that is not formed.

    Attributes:
        left: Factor of the rows.
        right: Factor of the columns.
    """

    left: Float[Tensor, "row rank"]
    right: Float[Tensor, "column rank"]

    @property
    def shape(self) -> tuple[int, int]:
        """Rows and columns."""
        return len(self.left), len(self.right)

    def __getitem__(self, at: tuple[int, int]) -> Float[Tensor, ""]:
        return self.left[at[0]] @ self.right[at[1]]

    def row(self, at: int) -> Float[Tensor, " column"]:
        """One row."""
        return self.right @ self.left[at]

    def matrix(self) -> Float[Tensor, "row column"]:
        """Form the matrix. Cost: rows x columns numbers."""
        return self.left @ self.right.T

    def norm(self) -> float:
        """Frobenius norm, from the factors."""
        return ((self.left.T @ self.left) * (self.right.T @ self.right)).sum().clamp_min(0).sqrt().item()

    def top(self, k: int) -> TopEntries:
        """Find the k entries of largest magnitude. Cost: all entries, in blocks of at most 4 million."""
        check_whole("k", k)
        nothing = torch.zeros(0, dtype=torch.long, device=self.left.device)
        row, column, value = nothing, nothing, self.left.new_zeros(0)
        step = max(1, _BLOCK // max(1, len(self.right)))
        for first in range(0, len(self.left), step):
            block = (self.left[first : first + step] @ self.right.T).flatten()
            best = block.abs().topk(min(k, len(block))).indices
            row = torch.cat([row, best // len(self.right) + first])
            column, value = torch.cat([column, best % len(self.right)]), torch.cat([value, block[best]])
            kept = value.abs().argsort(descending=True, stable=True)[:k]
            row, column, value = row[kept], column[kept], value[kept]
        return TopEntries(row, column, value)


def written_rows(directions: Directions, like: Float[Tensor, "d_model _"]) -> Float[Tensor, "n d_model"]:
    """Directions as they are written, in the precision of the weights that read them.

    Raises:
        TypeError: If they are neither a dictionary nor a tensor.
        ValueError: If they are not rows of the width of the residual stream.
    """
    return _rows(directions.W_dec if isinstance(directions, Dictionary) else directions, like)


def read_rows(directions: Directions, like: Float[Tensor, "d_model _"]) -> Float[Tensor, "n d_model"]:
    """Directions as they are read, in the precision of the weights whose output they read. See `written_rows`."""
    return _rows(directions.W_enc.T if isinstance(directions, Dictionary) else directions, like)


def _rows(rows: Any, like: Tensor) -> Tensor:
    check_kind("directions", rows, Tensor, "Pass a Dictionary, or rows of a tensor such as weights.W_E.")
    if rows.ndim != 2 or rows.shape[1] != len(like):
        raise ValueError(f"directions must be rows of d_model={len(like)} numbers, got shape {tuple(rows.shape)}.")
    check_finite("directions", rows)
    return rows.to(like)
