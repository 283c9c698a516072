"""One run at a time on a folder of results, and what a killed one left half written beside it."""

import contextlib
import os
import re
import shutil
from collections.abc import Iterator
from pathlib import Path

try:
    import fcntl
except ImportError:  # Windows has none: two runs on one folder are not noticed there
    fcntl = None  # type: ignore[assignment]

HALF_WRITTEN = ".part"  # ends the names of temporary folders
OLD = "old"  # within one, what was in the place of the new folder


@contextlib.contextmanager
def claimed(out: str | Path | None, wait: bool = False) -> Iterator[None]:
    """Hold a folder of results for this run, and clear what a killed one left half written.

    The folder is made where there is none, and taken away again if the run puts nothing in it.

    Args:
        out: The folder; None claims nothing. Where several processes share a run, the first one claims.
        wait: Wait for another run to end instead of refusing, for folders that many runs add to.

    Raises:
        ValueError: If another run is going on there.
        OSError: If it cannot be made.
    """
    if out is None or os.environ.get("RANK", "0") != "0":
        yield
        return
    folder = Path(out).resolve()
    _restore(folder)
    made = _made(folder)
    try:
        with _locked(folder, str(out), wait):
            _clear(folder)
            yield
    finally:
        for one in made:
            with contextlib.suppress(OSError):
                one.rmdir()


def _made(folder: Path) -> list[Path]:
    """The folders that had to be made, innermost first."""
    missing = [one for one in (folder, *folder.parents) if not one.exists()]
    folder.mkdir(parents=True, exist_ok=True)
    return missing


@contextlib.contextmanager
def _locked(folder: Path, shown: str, wait: bool) -> Iterator[None]:
    """Lock a folder itself, which leaves no file behind and ends with the process, however that ends."""
    if fcntl is None:
        yield
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX if wait else fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise ValueError(
                f"out must not be written by two runs at once, got {shown}, where another one is going on. Wait for it"
                " to end, or name another --out."
            ) from error
        except OSError:
            pass  # some network disks lock nothing
        yield
    finally:
        os.close(descriptor)


def _half_written(folder: Path) -> list[Path]:
    name = re.compile(rf"\.{re.escape(folder.name)}-\w{{8}}{re.escape(HALF_WRITTEN)}")  # as tempfile makes them
    return [one for one in folder.parent.glob(f".*{HALF_WRITTEN}") if name.fullmatch(one.name)]


def _restore(folder: Path) -> None:
    """Put back what was moved away to make room for a new folder that a kill kept from its place."""
    for half in _half_written(folder):
        if (half / OLD).is_dir() and not folder.exists():
            with contextlib.suppress(OSError):  # another run was faster
                os.replace(half / OLD, folder)


def _clear(folder: Path) -> None:
    for half in (*_half_written(folder), *folder.glob(f".*-*{HALF_WRITTEN}")):
        shutil.rmtree(half, ignore_errors=True)
