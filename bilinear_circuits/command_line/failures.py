"""Why a run failed, in one line: a mistake in what was asked, a machine that is too small, or a bug of ours."""

import contextlib
import errno
import shutil
import traceback
from collections.abc import Iterator
from pathlib import Path

from bilinear_circuits.utilities.folders import reason_of

MISTAKE, BUG = 2, 1  # exit codes
TRACEBACK = "BILINEAR_CIRCUITS_TRACEBACK"
_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
_SAYS_FULL = ("no space left on device", "disk quota exceeded", "file too large", "os error 28", "os error 27")
_SAYS_MEMORY = ("can't allocate memory", "out of memory", "storage size calculation overflowed", "not enough memory")
_LEAST_FREE = 2**20  # bytes; writers in C++ do not say why they failed
_OURS = ("bilinear_circuits", "sae")


def explain(error: Exception, out: Path | None) -> tuple[str, int]:
    """Say why a run failed.

    Args:
        error: What ended it.
        out: The folder it wrote to, if it did.

    Returns:
        One line for the user, and the exit code.
    """
    chain = list(_chain(error))
    if any(_is_full(cause) for cause in chain) or (not isinstance(error, ValueError) and _free(out) < _LEAST_FREE):
        where = f" of {out}" if out is not None else ""
        return f"the disk{where} is full: make room and give the same command again ({reason_of(error)})", MISTAKE
    if any(isinstance(cause, MemoryError) or _says(cause, _SAYS_MEMORY) for cause in chain):
        return f"not enough memory: {reason_of(error)}. Ask for less at once, or use a larger machine.", MISTAKE
    if isinstance(error, ValueError | OSError):
        return str(error), MISTAKE
    return (
        f"{reason_of(error)} ({_place(error)}). This is a bug of bilinear-circuits, not of what"
        f" you asked: please report it with your command and what it prints with {TRACEBACK}=1.",
        BUG,
    )


def _chain(error: BaseException | None) -> Iterator[BaseException]:
    """An error and those that led to it."""
    seen: set[int] = set()
    while error is not None and id(error) not in seen:
        seen.add(id(error))
        yield error
        error = error.__cause__ or error.__context__


def _is_full(error: BaseException) -> bool:
    return (isinstance(error, OSError) and error.errno in _FULL) or _says(error, _SAYS_FULL)


def _says(error: BaseException, parts: tuple[str, ...]) -> bool:
    # What a ValueError of ours says may hold any text of the user's.
    return not isinstance(error, ValueError) and any(part in str(error).lower() for part in parts)


def _free(out: Path | None) -> int:
    """Bytes free where results go."""
    for place in () if out is None else (out, *out.parents):
        with contextlib.suppress(OSError, ValueError):  # not there, or no name of a folder at all
            return shutil.disk_usage(place).free
    return _LEAST_FREE


def _place(error: Exception) -> str:
    """The last line of this package that the error came through."""
    for frame in reversed(traceback.extract_tb(error.__traceback__)):
        parts = Path(frame.filename).parts
        if package := next((name for name in _OURS if name in parts), None):
            return f"{'/'.join(parts[parts.index(package) :])}:{frame.lineno}"
    return "outside of the package"
