"""Tables of results as columns, for CSV and parquet files beside the JSON."""

from collections.abc import Mapping
from dataclasses import asdict, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from bilinear_circuits.circuits import CircuitSearch
    from bilinear_circuits.lowrank import LowRankCorrelation
    from bilinear_circuits.sweep import TopInteractions

MOST_ROWS = 1_000_000  # what a spreadsheet opens; tables are for looking at
Columns = dict[str, list[Any]]


def write(folder: Path, name: str, columns: Columns) -> list[str]:
    """Write NAME.csv and NAME.parquet; their names, or none where there are too many rows to look at."""
    from bilinear_circuits.report.payload import plain
    from bilinear_circuits.report.tables import write_table

    if len(next(iter(columns.values()))) > MOST_ROWS:
        return []
    return [file.name for file in write_table(folder / name, plain(columns))]


def interactions(top: "TopInteractions") -> Columns:
    """One row for each interaction, in the order of the search."""
    names = {"output": top.output, "first": top.first, "second": top.second, "weight": top.weights, "score": top.scores}
    return {name: column.tolist() for name, column in names.items()}


def low_rank(results: "Mapping[int, LowRankCorrelation]") -> Columns:
    """One row for each output feature: its correlation at every rank, nothing where it was left out."""
    columns: Columns = {"layer": [], "feature": [], "n_active": []}
    for layer, result in results.items():
        columns["layer"] += [layer] * len(result.features)
        columns["feature"] += result.features.tolist()
        columns["n_active"] += result.n_active.tolist()
        for rank, correlation in zip(result.ranks, result.correlation.T.tolist(), strict=True):
            columns.setdefault(f"rank_{rank}", []).extend(correlation)
    return columns


def ranking(search: "CircuitSearch") -> Columns:
    """One row for each feature that was scored in full, best first; eigenvalues are left out."""
    rows = [{"name": one.name, "sign": one.sign, **asdict(one)} for one in search.ranking]
    names = [*("name", "sign"), *(field.name for field in fields(search.ranking[0]) if field.name != "eigenvalues")]
    return {name: [row[name] for row in rows] for name in names}
