"""One pass over every interaction of a layer: all output features, all pairs of input features, in bounded memory.

The tensor T[f, a, b] = D_a Q_f D_b of a layer between two dictionaries has d_sae_out d_sae_in^2 entries and is never
held. Blocks of it are formed by matrix products in a fast, coarse precision with a bound on their error, handed to
collectors, and forgotten; what a collector keeps it computes again in full precision.
"""

from collections.abc import Sequence
from typing import Protocol, runtime_checkable

from bilinear_circuits.algebra.leading import LeadingSpectra, leading_spectra
from bilinear_circuits.algebra.precision import Precision, fastest_precision
from bilinear_circuits.sweep.keys import Order
from bilinear_circuits.sweep.products import Block, Panel, Products
from bilinear_circuits.sweep.results import Certificate, TopInteractions
from bilinear_circuits.sweep.statistics import InteractionStatistics, Statistics
from bilinear_circuits.sweep.top import TopSearch
from bilinear_circuits.utilities.progress import Progress, silent

__all__ = [
    "Block",
    "Certificate",
    "Collector",
    "InteractionStatistics",
    "LeadingSpectra",
    "Order",
    "Panel",
    "Precision",
    "Products",
    "Statistics",
    "TopInteractions",
    "TopSearch",
    "fastest_precision",
    "leading_spectra",
    "sweep",
]


@runtime_checkable
class Collector(Protocol):
    """Takes in a sweep."""

    def scan(self, panel: Panel) -> None:
        """Take in a panel of the present block."""

    def finish(self, block: Block) -> None:
        """Take in the end of a block."""


def sweep(products: Products, collectors: Sequence[Collector], progress: Progress = silent) -> None:
    """Hand every panel of every block to all collectors."""
    for group in progress(products.groups, "search interactions"):
        for block in products.blocks(group):
            for panel in block.panels():
                for collector in collectors:
                    collector.scan(panel)
            for collector in collectors:
                collector.finish(block)
