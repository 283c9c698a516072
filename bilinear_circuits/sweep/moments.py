"""Interactions weighed by how much their two inputs are active together."""

from dataclasses import replace

import torch
from jaxtyping import Float, Int
from torch import Tensor

from bilinear_circuits.sweep.products import Block, Panel, Products

_ASYMMETRY = 1e-5  # of the largest: what rounding may leave


class Moments:
    """Second moments E[z_a z_b] by which interactions are multiplied, padded to whole panels.

    Attributes:
        largest: The largest magnitude among them.
    """

    def __init__(self, moments: Float[Tensor, "d_sae_in d_sae_in"], products: Products) -> None:
        """Check that they fit a sweep.

        Raises:
            ValueError: If they are no symmetric matrix of the inputs, or the products are coarse.
        """
        n = products.n_inputs
        # Said so that it is false of NaN too.
        if moments.shape != (n, n) or not (moments - moments.T).abs().max() <= _ASYMMETRY * moments.abs().max():
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
        return replace(panel, values=panel.values * self._padded[rows, None, panel.start :])

    def of_rows(self, block: Block) -> Block:
        """The block with the bounds that hold for its weighted panels."""
        return replace(block, slack=block.slack * self._of_row, unit=2 * block.unit)

    def at(self, first: Int[Tensor, " n"], second: Int[Tensor, " n"]) -> Float[Tensor, " n"]:
        """Moments of pairs."""
        return self._padded[first, second]
