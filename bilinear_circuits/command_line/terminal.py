"""What verbs say on the terminal: results, notes, bars; and no control sequence that came out of a file.

Tokens, stories, names of files and messages of errors may hold escape sequences, with which a terminal retitles its
window, moves its cursor or writes to the clipboard. All of them go through one place, which shows them as text.
"""

import os
import re
import sys
import warnings
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

from bilinear_circuits.data.text_files import CorpusWarning

T = TypeVar("T")

_CONTROL = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f]")
# What progress bars write first: back to the start of the line, or up to the line of an outer bar.
_BAR = re.compile("\r|(?:\x1b\\[A)+")


def shown(text: str) -> str:
    r"""Write control characters as the digits that stand for them, all but line ends and tabs.

    Examples:
        >>> shown("\x1b]0;title\x07 and \x9b2J\n")
        '\\x1b]0;title\\x07 and \\x9b2J\n'
    """
    return _CONTROL.sub(lambda found: f"\\x{ord(found[0]):02x}", text)


class UnwrittenError(ValueError):
    """What a verb prints cannot be written."""


class ShownStream:
    """A text stream that control characters reach as text, and characters it cannot encode as their numbers."""

    def __init__(self, stream: Any, bars: bool = False, failure: type[Exception] | None = None) -> None:
        """Wrap a stream.

        Args:
            stream: Where to write.
            bars: Let progress bars go back to the start of a line; no text of ours starts so.
            failure: What to raise where the stream cannot be written, other than a pipe whose reader went away.
        """
        self._stream = stream
        self._bars = bars
        self._failure = failure

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)

    def write(self, text: str) -> int:
        """Write; the number of characters of the text."""
        bar = _BAR.match(text) if self._bars else None
        moves = bar[0] if bar else ""
        encoding = getattr(self._stream, "encoding", None) or "utf-8"
        safe = shown(text[len(moves) :]).encode(encoding, "backslashreplace").decode(encoding)
        with self._named():
            self._stream.write(moves + safe)
        return len(text)

    def flush(self) -> None:
        """Write what is held back."""
        with self._named():
            self._stream.flush()

    @contextmanager
    def _named(self) -> Iterator[None]:
        try:
            yield
        except BrokenPipeError:
            raise
        except OSError as error:
            if self._failure is None:
                raise
            raise self._failure(
                f"stdout must be a place that can be written, got an error: {error.strerror}."
            ) from None

    def writelines(self, lines: Iterable[str]) -> None:
        """Write one after the other."""
        for line in lines:
            self.write(line)


@contextmanager
def safe_terminal() -> Iterator[None]:
    """Show control characters on stdout and stderr as text for as long as the context lasts."""
    before = sys.stdout, sys.stderr
    with open(os.devnull, "w", encoding="utf-8") as nowhere, warnings.catch_warnings():
        # Python has no stream where a shell closed it.
        sys.stdout = ShownStream(sys.stdout or nowhere, failure=UnwrittenError)
        sys.stderr = ShownStream(sys.stderr or nowhere, bars=True)
        warnings.simplefilter("always", CorpusWarning)
        usual = warnings.showwarning
        warnings.showwarning = lambda message, category, *where: (
            note(str(message)) if issubclass(category, CorpusWarning) else usual(message, category, *where)
        )
        try:
            yield
        finally:
            sys.stdout, sys.stderr = before


def note(text: str) -> None:
    """Say on stderr what is going on."""
    print(text, file=sys.stderr, flush=True)
