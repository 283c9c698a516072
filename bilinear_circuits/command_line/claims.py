"""One run at a time on a folder of results, and what a killed one left half written beside it."""

import contextlib
import os
import re
import shutil
import tempfile
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
        out: The folder; None claims nothing.
        wait: Wait for another run to end instead of refusing, for folders that many runs add to.

    Raises:
        ValueError: If another run is going on there.
        OSError: If it cannot be made.
    """
    if out is None:
        yield
        return
    folder = Path(out).resolve()
    _restore(folder)
    made = [ancestor for ancestor in (folder, *folder.parents) if not ancestor.exists()]
    try:
        with _locked(folder, str(out), wait):
            clear_half_written(folder)  # only who holds the folder writes beside it under its name
            yield
    finally:
        for one in made:
            with contextlib.suppress(OSError):
                one.rmdir()


@contextlib.contextmanager
def _locked(folder: Path, shown: str, wait: bool) -> Iterator[None]:
    """Lock a folder itself, which leaves no file behind and ends with the process, however that ends."""
    if fcntl is None:
        folder.mkdir(parents=True, exist_ok=True)
        yield
        return
    descriptor = _lock(folder, shown, wait)
    while not _is_at(descriptor, folder):  # the run before took its empty folder away
        os.close(descriptor)
        descriptor = _lock(folder, shown, wait)
    try:
        yield
    finally:
        os.close(descriptor)


def _lock(folder: Path, shown: str, wait: bool) -> int:
    """Make a folder where there is none, and lock it; its descriptor."""
    folder.mkdir(parents=True, exist_ok=True)
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX if wait else fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        os.close(descriptor)
        raise ValueError(
            f"out must not be written by two runs at once, got {shown}, where another one is going on. Wait for it"
            " to end, or name another --out."
        ) from error
    except OSError:
        pass  # some network disks lock nothing
    return descriptor


def _is_at(descriptor: int, folder: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(descriptor), folder.stat())
    except FileNotFoundError:
        return False


def half_written(folder: Path) -> "tempfile.TemporaryDirectory[str]":
    """A temporary folder beside one, on the same disk, to make ready what is moved into its place."""
    return tempfile.TemporaryDirectory(dir=folder.parent, prefix=f".{folder.name}-", suffix=HALF_WRITTEN)


def clear_half_written(folder: Path) -> None:
    """Take away the temporary folders of a folder that a kill left."""
    for half in _half_written(folder):
        shutil.rmtree(half, ignore_errors=True)


def _half_written(folder: Path) -> list[Path]:
    name = re.compile(rf"\.{re.escape(folder.name)}-\w{{8}}{re.escape(HALF_WRITTEN)}")  # as tempfile makes them
    return [path for path in folder.parent.glob(f".*{HALF_WRITTEN}") if name.fullmatch(path.name)]


def _restore(folder: Path) -> None:
    """Put back what was moved away to make room for a new folder that a kill kept from its place."""
    for half in _half_written(folder):
        if (half / OLD).is_dir() and not folder.exists():
            with contextlib.suppress(OSError):  # another run was faster
                os.replace(half / OLD, folder)
