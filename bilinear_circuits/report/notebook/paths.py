"""What graphs of prompts and heads give, in notebooks and frames: each class has its columns itself."""

from itertools import islice
from typing import Any

from markupsafe import Markup

from bilinear_circuits.paths.degrees import Degrees, IntegratedGradients
from bilinear_circuits.paths.edge_sets import KeptEdges
from bilinear_circuits.paths.edges import Flows
from bilinear_circuits.paths.effects import Effects
from bilinear_circuits.paths.forms import TopEntries
from bilinear_circuits.paths.pairs import Pairs
from bilinear_circuits.paths.prune import KeptPairs
from bilinear_circuits.paths.qk import TopScores
from bilinear_circuits.paths.why import AttentionLedger
from bilinear_circuits.report.notebook.columns import Columns
from bilinear_circuits.report.notebook.dispatch import columns_of, shown
from bilinear_circuits.report.notebook.fragments import N_ROWS, rest_of, table, value

Listed = (
    Flows
    | KeptEdges
    | Pairs
    | KeptPairs
    | Effects
    | Degrees
    | IntegratedGradients
    | AttentionLedger
    | TopScores
    | TopEntries
)


@columns_of.register
def _(result: Listed) -> Columns:
    """The columns of the result."""
    return {name: [*column] for name, column in result.table().items()}


@shown.register
def _(result: Listed) -> Markup:
    """The first rows, and the sums or scores that belong to all."""
    columns = columns_of(result)
    n = len(next(iter(columns.values())))
    rows = islice(zip(*columns.values(), strict=True), N_ROWS)
    notes = [*_summary(result), *rest_of(n, N_ROWS, "rows")]
    return table(type(result).__name__, tuple(columns), (tuple(map(_cell, row)) for row in rows), notes)


def _cell(one: Any) -> Any:
    """A text as it is, a number in the colour of its sign, a count as it is."""
    if isinstance(one, float):
        return value(one)
    return str(one)


def _summary(result: Any) -> list[str]:
    """Numbers of the whole that are no column."""
    names = ("total", "constant", "rest", "baseline", "mass", "score", "log_odds", "pattern", "correlation", "slope")
    found = {name: getattr(result, name, None) for name in names}
    return [f"{name}: {one:.4g}" for name, one in found.items() if isinstance(one, float)]
