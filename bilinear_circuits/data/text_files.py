"""Texts in files: lines, marks or blank lines between them, CSV, JSON lines, parquet; gzip, encodings and their marks.

1. `file_kind` tells by the name what a file holds: "text", "json", "csv" or "parquet".
2. `separated_texts` reads text, `column_texts` a column of records. Files are read only as far as they are asked for.
"""

import codecs
import csv
import gzip
import json
import re
import zlib
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from io import TextIOWrapper
from itertools import chain, islice
from pathlib import Path
from typing import Any, Literal

from bilinear_circuits.utilities.warning import warn_caller

Kind = Literal["text", "json", "csv", "parquet"]
STORY_END = "<|endoftext|>"
LINE, BLANK_LINE = "line", "blank-line"

_KINDS: Mapping[str, Kind] = {
    ".json": "json", ".jsonl": "json", ".ndjson": "json", ".csv": "csv", ".tsv": "csv", ".parquet": "parquet",
}  # fmt: skip
_GZIP = b"\x1f\x8b"
_PACKED = {b"PK\x03\x04": "zip", b"BZh": "bzip2", b"\xfd7zXZ\x00": "xz", b"\x28\xb5\x2f\xfd": "zstd"}
# The marks of UTF-32 first: those of UTF-16 begin like them.
_MARKS = {
    codecs.BOM_UTF32_LE: "utf-32", codecs.BOM_UTF32_BE: "utf-32", codecs.BOM_UTF16_LE: "utf-16",
    codecs.BOM_UTF16_BE: "utf-16", codecs.BOM_UTF8: "utf-8-sig",
}  # fmt: skip
_CHUNK = 2**20  # characters
_LONGEST = 2**24  # characters without an end of a story, after which there is none
_BATCH = 1000  # records
_LINES_OF_A_STORY = 40  # more than those of one that ends with a mark
_PATTERNS = {LINE: "\n", BLANK_LINE: r"\n[^\S\n]*\n"}


def file_kind(path: str | Path) -> Kind:
    """Tell by its name what a file holds; .gz at the end does not count."""
    suffixes = [suffix.lower() for suffix in Path(path).suffixes]
    last = suffixes[-2:-1] if suffixes[-1:] == [".gz"] else suffixes[-1:]
    return _KINDS.get("".join(last), "text")


@contextmanager
def opened_text(path: str | Path) -> Iterator[TextIOWrapper]:
    """Open a file of text: UTF-8, or UTF-16 or UTF-32 by its byte-order mark, also compressed with gzip.

    Raises:
        ValueError: If it is compressed otherwise, binary, damaged, or of another encoding.
    """
    try:
        with _bytes_of(Path(path)) as content:
            start = content.peek(4096)[:4096]
            for magic, name in _PACKED.items():
                if start.startswith(magic):
                    raise ValueError(f"corpus must be text or compressed with gzip, got {path}, packed with {name}.")
            encoding = next((name for mark, name in _MARKS.items() if start.startswith(mark)), "utf-8")
            if b"\0" in start and encoding in ("utf-8", "utf-8-sig"):
                raise ValueError(
                    f"corpus must be text, got {path}, which holds zero bytes: a binary file, or UTF-16 without its"
                    " byte-order mark. Save it as UTF-8."
                )
            with TextIOWrapper(content, encoding=encoding, newline=None) as text:
                yield text
    except UnicodeDecodeError as error:
        byte = error.object[error.start]
        raise ValueError(
            f"corpus must be UTF-8, or have a byte-order mark, got {path} with the byte 0x{byte:02x}, which is not"
            f" {error.encoding}. Convert it: iconv -f WINDOWS-1252 -t UTF-8."
        ) from error
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise ValueError(f"corpus must be a whole gzip file, got {path}, which is damaged: {error}") from error


def _bytes_of(path: Path) -> Any:
    """The bytes of a file, unpacked if they begin as gzip does, whatever its name."""
    with path.open("rb") as content:
        packed = content.read(2) == _GZIP
    return gzip.open(path, "rb") if packed else path.open("rb")


def separated_texts(path: str | Path, separator: str | None = None) -> Iterator[str]:
    """Read the texts of a file between marks, lines or blank lines.

    Args:
        path: The file.
        separator: "line", "blank-line", or what stands between texts; `<|endoftext|>` by default.

    Raises:
        ValueError: If what should separate texts is nowhere in a file of several lines, or `<|endoftext|>` is in one
            that is separated otherwise.
    """
    mark = STORY_END if separator is None else separator
    pattern = re.compile(_PATTERNS.get(mark, re.escape(mark)))
    rest, before, n_marks, n_lines = "", "", 0, 0
    with opened_text(path) as text:
        while chunk := text.read(_CHUNK):
            # Looked for before the split, which may go through the middle of it.
            if STORY_END not in mark and STORY_END in before + chunk:
                raise ValueError(
                    f"separator must be left out for a corpus with {STORY_END}, got {separator!r} for {path}."
                )
            before = chunk[1 - len(STORY_END) :]
            *pieces, rest = pattern.split(rest + chunk)
            n_marks += len(pieces)
            n_lines += sum(map(_n_lines, pieces))
            yield from pieces
            if not n_marks and len(rest) > _LONGEST:
                break
    # One mark at the end of many lines ends a file, and says nothing of the stories in it.
    ends = separator is None and n_marks == 1 and not rest.strip() and n_lines > _LINES_OF_A_STORY
    n_lines += _n_lines(rest)
    if ends or (not n_marks and (n_lines > 1 or len(rest) > _LONGEST)):
        has = f"only one {mark}, at its end" if ends else f"no {'blank line' if mark == BLANK_LINE else mark}"
        raise ValueError(
            f"separator must say how the stories of {path} are separated: it has {n_lines:,} lines of text and {has}."
            f" Give {LINE} (one story a line), {BLANK_LINE} (blank lines between stories) or the mark between them; a"
            f" single story ends with {STORY_END}, and if it is long is read with that as the separator."
        )
    yield rest


def _n_lines(text: str) -> int:
    """Lines with something on them."""
    return sum(not line.isspace() and line != "" for line in text.split("\n"))


def column_texts(path: str | Path, column: str) -> Iterator[str]:
    """Read the texts of a column of a CSV, JSON lines or parquet file; a record without one is left out, and said so.

    Raises:
        ValueError: If the file cannot be read as what its name says, or has no such column, or no text there.
    """
    kind = file_kind(path)
    if kind == "parquet":
        batches: Iterable[Iterable[Any]] = _parquet(path, column)
    else:
        records = {"json": _json_records, "csv": _csv_records}[kind](path)
        batches = iter(lambda: list(islice(records, _BATCH)), [])
    yield from texts_of(batches, column, str(path))


class CorpusWarning(UserWarning):
    """Something in a corpus was left out."""


def texts_of(batches: Iterable[Iterable[Mapping[str, Any]]], column: str, name: str) -> Iterator[str]:
    """Take a column out of batches of records; a record without a text is left out, and said so at the end.

    Raises:
        ValueError: If no record of a batch has it, or it holds something else than texts.
    """
    n_records = n_empty = 0
    try:
        for batch in batches:
            texts = _batch_texts(batch, column, name)
            n_records, n_empty = n_records + len(texts), n_empty + sum(not text.strip() for text in texts)
            yield from texts
    finally:
        if n_empty:
            warn_caller(
                f"{n_empty:,} of the {n_records:,} records read of {name} have no text in {column!r}: left out",
                CorpusWarning,
            )


def _batch_texts(records: Iterable[Mapping[str, Any]], column: str, name: str) -> list[str]:
    """A column of a batch of records."""
    records = list(records)
    columns = {key for record in records for key in record}
    if columns and column not in columns:
        raise ValueError(
            f"column must be one of {sorted(columns)}, the columns of {name}, got {column!r}. Name the one that holds"
            " the stories."
        )
    texts = [record.get(column) for record in records]
    for text in texts:
        if not isinstance(text, str | None):
            raise ValueError(f"column must hold texts, got {type(text).__name__} in {column!r} of {name}.")
    return [text or "" for text in texts]


def _csv_records(path: str | Path) -> Iterator[dict[str, Any]]:
    """Rows by the names in the first one; commas, semicolons or tabs, whichever it has most of."""
    csv.field_size_limit(_LONGEST)
    with opened_text(path) as text:
        head = text.readline()
        rows = csv.reader(chain([head], text), delimiter=max(",;\t", key=head.count), strict=True)
        try:
            names = next(rows, [])
            for row in filter(None, rows):
                if len(row) != len(names):
                    raise ValueError(
                        f"rows of {path} must have as many values as its first one, {len(names)}, got {len(row)} in"
                        f" line {rows.line_num}. Put quotes around texts with separators or line ends."
                    )
                yield dict(zip(names, row, strict=False))
        except csv.Error as error:
            raise ValueError(f"corpus must be a CSV file, got {path}, line {rows.line_num}: {error}.") from error


def _json_records(path: str | Path) -> Iterator[dict[str, Any]]:
    """Objects, one a line, or in one list."""
    with opened_text(path) as text:
        for number, line in enumerate(text, 1):
            if line.isspace():
                continue
            is_list = line.lstrip().startswith("[")
            where = f"{path}, line {number}"
            try:
                content = json.loads(line + text.read() if is_list else line)
            except (ValueError, RecursionError) as error:
                raise ValueError(
                    f"corpus must hold a JSON object in each line, or one list of them, got {where}: {error}"
                ) from error
            for record in content if is_list else [content]:
                if not isinstance(record, dict):
                    raise ValueError(
                        f"corpus must hold JSON objects with a column of texts, got {record!r:.40} in {where}."
                    )
                yield record


def _parquet(path: str | Path, column: str) -> Iterator[list[dict[str, Any]]]:
    """Batches of a column, or of the names of all where there is no such column."""
    import pyarrow
    from pyarrow import parquet

    try:
        with parquet.ParquetFile(path) as file:
            names = file.schema_arrow.names
            if column not in names:
                yield [dict.fromkeys(names)]
            for batch in file.iter_batches(_BATCH, columns=[column]):
                yield batch.to_pylist()
    except (pyarrow.ArrowException, OSError) as error:
        raise ValueError(f"corpus must be a parquet file, got {path}, which is none or damaged: {error}") from error
