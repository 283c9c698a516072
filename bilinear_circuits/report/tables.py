"""Tables as files: CSV for spreadsheets and parquet for programs, from the same columns."""

import csv
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

_JOINT = " · "
_FORMULA = ("=", "+", "-", "@", "\t", "\r", "'")


def write_table(path: str | Path, columns: Mapping[str, Sequence[Any]]) -> tuple[Path, Path]:
    """Write a table twice, PATH.csv and PATH.parquet, each whole or not at all.

    Parquet holds every value as it is. In the CSV a list of texts is one cell, joined by " · ", None is an empty cell,
    and a text that begins with = + - @, a tab, a carriage return or an apostrophe gets an apostrophe in front: a
    spreadsheet would run "=1+2" as a formula, and tokens come from anywhere. Taking one apostrophe away gives the text.

    Args:
        path: Path without the endings.
        columns: Values by column name, all of one length: numbers, texts, lists of texts, None.

    Returns:
        The two files.

    Raises:
        ValueError: If the columns have different lengths, or there are none.
    """
    lengths = {len(values) for values in columns.values()}
    if len(lengths) != 1:
        raise ValueError(f"columns must be one or more, all of one length, got lengths {sorted(lengths)}.")
    stem = Path(path)
    files = stem.with_name(f"{stem.name}.csv"), stem.with_name(f"{stem.name}.parquet")
    temporary = [file.with_name(f".{file.name}.part") for file in files]
    _write_csv(temporary[0], columns)
    _write_parquet(temporary[1], columns)
    for half, file in zip(temporary, files, strict=True):
        os.replace(half, file)
    return files


def cell(value: Any) -> Any:
    """A value as a cell of a CSV file.

    Examples:
        >>> cell("=1+2"), cell(-0.5), cell(None), cell(["a", "-b"])
        ("'=1+2", -0.5, '', 'a · -b')
    """
    if value is None:
        return ""
    if isinstance(value, list | tuple):
        value = _JOINT.join(value)
    if not isinstance(value, str):
        return value
    return f"'{value}" if value.startswith(_FORMULA) else value


def _write_csv(file: Path, columns: Mapping[str, Sequence[Any]]) -> None:
    with file.open("w", encoding="utf-8", newline="") as opened:
        writer = csv.writer(opened)
        writer.writerow(columns)
        writer.writerows([cell(value) for value in row] for row in zip(*columns.values(), strict=True))


def _write_parquet(file: Path, columns: Mapping[str, Sequence[Any]]) -> None:
    import pyarrow
    from pyarrow import parquet

    table = pyarrow.table({name: pyarrow.array(_typed(values)) for name, values in columns.items()})
    parquet.write_table(table, file)


def _typed(values: Sequence[Any]) -> list[Any]:
    return [list(value) if isinstance(value, tuple) else value for value in values]
