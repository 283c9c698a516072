"""A corpus: where stories are, on disk or on the Hub, and how they are found there."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

from bilinear_circuits.data.text_files import BLANK_LINE, LINE, column_texts, file_kind, separated_texts, texts_of
from bilinear_circuits.utilities.folders import reason_of

_COLUMN = "text"
_BATCH = 1000  # records of the Hub read at once
_FILE_SUFFIXES = (".txt", ".json", ".jsonl", ".ndjson", ".parquet", ".csv", ".tsv", ".gz")
# Line ends as YAML and as a shell hand them over.
_ALIASES = {"\n": LINE, "\\n": LINE, "\n\n": BLANK_LINE, "\\n\\n": BLANK_LINE}


@dataclass(frozen=True)
class Corpus:
    r"""Stories of a file or of the training split of a Hub dataset.

    A name ending in .csv, .tsv, .json, .jsonl, .ndjson or .parquet holds records; any other is text. Text may be
    UTF-8, or have the byte-order mark of its encoding; it and records but parquet may be compressed with gzip.

    Attributes:
        path: Path of a file, or a Hub id such as "roneneldan/TinyStories", read with `datasets`.
        separator: How the stories of a text are separated: "line" (one story a line), "blank-line" (blank lines between
            stories), or the text between them; `<|endoftext|>` by default.
        column: Which column of records holds the stories; "text" by default.

    Examples:
        >>> Corpus("stories.txt", separator="\n")
        Corpus(path='stories.txt', separator='line', column=None)
    """

    path: str
    separator: str | None = None
    column: str | None = None

    def __post_init__(self) -> None:
        for name in ("separator", "column"):
            value = getattr(self, name)
            if value is not None and (not isinstance(value, str) or not value):
                raise ValueError(f"{name} must be a text of one character or more, got {value!r}. Leave it out.")
        if self.separator is not None:
            object.__setattr__(self, "separator", _ALIASES.get(self.separator, self.separator))

    @property
    def on_hub(self) -> bool:
        """True for what is no file and is written like a Hub id (owner/name)."""
        path = Path(self.path)
        return (
            not path.exists()
            and len(path.parts) == 2
            and not path.is_absolute()
            and path.suffix not in _FILE_SUFFIXES
            and not path.parts[0].startswith(".")
        )

    def check(self) -> None:
        """Refuse a corpus that cannot be read, as far as that shows without reading it.

        Raises:
            FileNotFoundError: If it is no file, and is not written like a Hub id.
            ValueError: If it is a folder, or has a setting of another kind of corpus.
        """
        path = Path(self.path)
        if not self.path.strip():
            raise ValueError(f"corpus must be a file or a Hub id (owner/name), got {self.path!r}.")
        if path.is_dir():
            raise ValueError(f"corpus must be a file, got {self.path}, which is a folder. Name a file in it.")
        if path.exists() and not path.is_file():
            raise ValueError(f"corpus must be a file, got {self.path}, a pipe or a device. Save the text in a file.")
        if not path.is_file() and not self.on_hub:
            raise FileNotFoundError(
                f"corpus must be a text file or a Hub id (owner/name), got {self.path}: no such file."
            )
        is_text = not self.on_hub and file_kind(path) == "text"
        if is_text and self.column is not None:
            raise ValueError(
                f"column must be left out for a text, got {self.column!r} for {self.path}. Records are in files named"
                " .csv, .tsv, .jsonl or .parquet."
            )
        if not is_text and self.separator is not None:
            raise ValueError(
                f"separator must be left out for records, got {self.separator!r} for {self.path}. Their stories are in"
                " a column."
            )

    def read(self, limit: int | None = None) -> list[str]:
        """Read stories, stripped of outer white space, without empty ones, and only as far as the limit.

        Raises:
            FileNotFoundError: If it is no file, and is not written like a Hub id.
            ValueError: If it holds no story, cannot be read, does not say how its stories are separated, has no such
                column or no text there, or `limit` is not positive.
        """
        if limit is not None and limit < 1:
            raise ValueError(f"limit must be at least 1, got {limit}.")
        self.check()
        column = self.column or _COLUMN
        if self.on_hub:
            texts = _hub_texts(self.path, column)
        elif file_kind(self.path) == "text":
            texts = separated_texts(self.path, self.separator)
        else:
            texts = column_texts(self.path, column)
        # Files that were put together have byte-order marks inside, too.
        stories = list(islice((story for text in texts if (story := text.replace("\ufeff", "").strip())), limit))
        if not stories:
            raise ValueError(f"corpus must hold at least one story, got none in {self.path}.")
        return stories


def read_stories(
    corpus: str | Path | Corpus, limit: int | None = None, column: str | None = None, separator: str | None = None
) -> list[str]:
    """Read the stories of a file or a Hub dataset; see `Corpus`.

    Args:
        corpus: Path of a file, or a Hub id; or a `Corpus`, which says all by itself.
        limit: Read at most this many.
        column: Which column of records holds the stories; "text" by default.
        separator: How the stories of a text are separated: "line", "blank-line", or the text between them.

    Raises:
        FileNotFoundError: If the corpus is no file, and is not written like a Hub id (owner/name).
        ValueError: If it cannot be read in this way, holds no story, or `limit` is not positive.
    """
    return (corpus if isinstance(corpus, Corpus) else Corpus(str(corpus), separator, column)).read(limit)


def _hub_texts(name: str, column: str) -> Iterator[str]:
    from datasets import load_dataset

    try:
        records = load_dataset(name, split="train")
    except Exception as error:  # every library below has errors of its own
        raise ValueError(
            f"corpus must be a file, or a Hub dataset that can be fetched and has a training split, got {name}:"
            f" {reason_of(error)}"
        ) from error
    yield from texts_of((_rows(batch) for batch in records.iter(batch_size=_BATCH)), column, name)


def _rows(columns: Mapping[str, list[Any]]) -> list[dict[str, Any]]:
    """The records of a batch that is given column by column."""
    return [dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True)]
