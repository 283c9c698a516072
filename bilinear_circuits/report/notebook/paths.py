"""What graphs of prompts and heads give, in notebooks and frames: each class has its columns itself."""

from itertools import islice
from typing import Any

from markupsafe import Markup

from bilinear_circuits.paths.account import PathAccount
from bilinear_circuits.paths.degrees import Degrees, IntegratedGradients
from bilinear_circuits.paths.edge_sets import KeptEdges
from bilinear_circuits.paths.edges import Flows
from bilinear_circuits.paths.effects import Effects
from bilinear_circuits.paths.forms import TopEntries
from bilinear_circuits.paths.heads import HeadTable
from bilinear_circuits.paths.pairs import NodePairs
from bilinear_circuits.paths.prune import KeptPairs
from bilinear_circuits.paths.qk import TopScores
from bilinear_circuits.paths.why import AttentionLedger
from bilinear_circuits.report.figures import Spec
from bilinear_circuits.report.figures.paths import account_figures, distance_map
from bilinear_circuits.report.notebook.columns import Columns
from bilinear_circuits.report.notebook.dispatch import columns_of, drawn, shown
from bilinear_circuits.report.notebook.fragments import N_ROWS, rest_of, table, value

Listed = (
    Flows
    | KeptEdges
    | NodePairs
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
    if one is None:
        return "–"
    if isinstance(one, float):
        return value(one)
    return str(one)


def _summary(result: Any) -> list[str]:
    """Numbers of the whole that are no column."""
    names = ("total", "constant", "rest", "baseline", "mass", "score", "log_odds", "pattern", "correlation", "slope")
    found = {name: getattr(result, name, None) for name in names}
    return [f"{name}: {one:.4g}" for name, one in found.items() if isinstance(one, float)]


@shown.register
def _(account: PathAccount) -> Markup:
    """The largest nodes, and how well removals are predicted."""
    effects = account.effects
    notes = [
        f"total: {account.total:.4g}; largest error of a cut: {account.worst_cut:.1g}",
        f"removals of heads and MLPs, predicted and real: r = {effects.correlation:.2f}, slope {effects.slope:.2f}",
        *rest_of(account.n_nodes, N_ROWS, "nodes"),
    ]
    best = account.nodes.top(N_ROWS)
    rows = [(str(node), value(flow)) for node, flow in zip(best.nodes, best.value.tolist(), strict=True)]
    return table(f"Flow of {account.target}", ("node", "flow"), rows, notes)


@drawn.register
def _(account: PathAccount) -> dict[str, Spec]:
    return account_figures(account)


@columns_of.register
def _(account: PathAccount) -> Columns:
    """One row for each node that is kept, the largest first."""
    nodes = account.nodes.nodes
    columns: Columns = {"node": [str(node) for node in nodes]}
    for name in ("kind", "layer", "head", "source", "position", "feature"):
        columns[name] = [getattr(node, name) for node in nodes]
    return {**columns, "flow": account.nodes.value.tolist()}


@shown.register
def _(heads: HeadTable) -> Markup:
    """Copying, the distance preferred and the strongest compositions of each head."""
    columns = columns_of(heads)
    names = ("head", "copying", "distance", "K_composition", "K_with")
    rows = zip(*(columns[name][:N_ROWS] for name in names), strict=True)
    notes = [f"composition by chance: {heads.chance:.3f}", *rest_of(len(heads.heads), N_ROWS, "heads")]
    return table("Heads from weights alone", names, (tuple(map(_cell, row)) for row in rows), notes)


@drawn.register
def _(heads: HeadTable) -> dict[str, Spec]:
    return {"distance": distance_map(heads)}


@columns_of.register
def _(heads: HeadTable) -> Columns:
    """One row for each head."""
    columns: Columns = {
        "head": [one.name for one in heads.heads],
        "layer": [one.layer for one in heads.heads],
        "copying": [one.copying for one in heads.heads],
        "distance": [one.distance for one in heads.heads],
        "preference": [one.preference.max().item() for one in heads.heads],
    }
    for by in "QKV":
        found = [
            next((composition for composition in head.compositions if composition.by == by), None)
            for head in heads.heads
        ]
        columns[f"{by}_composition"] = [None if one is None else one.value for one in found]
        columns[f"{by}_with"] = [None if one is None else f"{one.layer}.{one.head}" for one in found]
    columns["mlp"] = [one.read.layer for one in heads.heads]
    columns["read_by_gate"] = [one.read.gate for one in heads.heads]
    columns["read_by_input"] = [one.read.input for one in heads.heads]
    return columns
