"""Tables of results as columns, for CSV and parquet files beside the JSON."""

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from bilinear_circuits.interactions.low_rank import LowRankCorrelation

MOST_ROWS = 1_000_000  # what a spreadsheet opens; tables are for looking at
Columns = dict[str, list[Any]]


def write(folder: Path, name: str, columns: Columns) -> list[str]:
    """Write NAME.csv and NAME.parquet; their names, or none where there are too many rows to look at."""
    from bilinear_circuits.report.payload import plain
    from bilinear_circuits.report.tables import write_table

    if len(next(iter(columns.values()))) > MOST_ROWS:
        return []
    return [file.name for file in write_table(folder / name, plain(columns))]


def low_rank(results: "Mapping[int, LowRankCorrelation]") -> Columns:
    """The columns of several layers below each other, with the layer in front."""
    from bilinear_circuits.report.notebook import columns_of

    columns: Columns = {"layer": []}
    for layer, result in results.items():
        columns["layer"] += [layer] * len(result.features)
        for name, values in columns_of(result).items():
            columns.setdefault(name, []).extend(values)
    return columns
