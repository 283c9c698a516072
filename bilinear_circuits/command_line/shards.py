"""A search kept shard by shard: what was killed goes on where it stopped, in any number of processes."""

import contextlib
import os
import shutil
import signal
import sys
import threading
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict
from typing import TYPE_CHECKING, Any, NoReturn

from bilinear_circuits.command_line import common
from bilinear_circuits.command_line.run_folder import RunFolder
from bilinear_circuits.command_line.sealed import read_sealed, write_sealed
from bilinear_circuits.utilities import processes

if TYPE_CHECKING:
    from torch import Tensor

    from bilinear_circuits.sweep import TopInteractions

_MOMENTS = "moments"
_SAID = "stopped"


class ShardFolder(RunFolder):
    """The finished shards of a search in its results folder, and the settings that the search was started with.

    Attributes:
        path: Folder of the shards, there until the results are written.
    """

    def __init__(self, out: str) -> None:
        super().__init__(out, "a search")
        self._stopping = threading.Lock()
        self.path = self.folder / "shards"

    def start(self, settings: Mapping[str, Any]) -> None:
        """Mark the folder as that of this search, and make room for shards."""
        self.mark(settings, [self.path.name])
        self.path.mkdir(exist_ok=True)
        (self.path / _SAID).unlink(missing_ok=True)

    def finished(self, index: int) -> bool:
        """Find a shard that has been searched and is as it was written."""
        file = self.path / f"{index:05d}.json"
        whole = read_sealed(file, self.path) is not None
        if file.is_file() and not whole:
            common.note(f"{file} or its table is damaged: the shard is searched again")
        return whole

    def write(self, index: int, top: "TopInteractions") -> None:
        """Keep what was found in a shard, and its certificate."""
        names = ("output", "first", "second", "weights", "scores")
        # Weights and scores may be one tensor, which safetensors does not save.
        columns = {name: getattr(top, name).cpu().clone() for name in names}
        self._write(f"{index:05d}", columns, asdict(top.certificate))

    def read(self, index: int) -> "TopInteractions":
        """Read the interactions found in a shard.

        Raises:
            ValueError: If its files are damaged.
        """
        from safetensors.torch import load_file

        from bilinear_circuits.sweep import Certificate, TopInteractions

        file = self.path / f"{index:05d}.json"
        if (certificate := read_sealed(file, self.path)) is None:
            raise ValueError(f"shards must be as they were written, got {file} damaged. Give the same command again.")
        columns = load_file(file.with_suffix(".safetensors"))
        return TopInteractions(**columns, certificate=Certificate(**certificate))

    @property
    def moments(self) -> "Tensor | None":
        """Second moments of the input features, measured once for all processes and every restart."""
        from safetensors.torch import load_file

        file = self.path / f"{_MOMENTS}.json"
        return None if read_sealed(file, self.path) is None else load_file(file.with_suffix(".safetensors"))[_MOMENTS]

    @moments.setter
    def moments(self, moments: "Tensor") -> None:
        self._write(_MOMENTS, {_MOMENTS: moments.cpu()}, {})

    def _write(self, name: str, tensors: "dict[str, Tensor]", content: Mapping[str, Any]) -> None:
        from safetensors.torch import save_file

        with common.written_whole(self.path) as folder:
            save_file(tensors, folder / f"{name}.safetensors")
            write_sealed(folder / f"{name}.json", content, folder, [f"{name}.safetensors"])

    def remove(self) -> None:
        """Take the shards away, when the results are in place; the marker goes last."""
        shutil.rmtree(self.path)
        self.unmark()

    @contextlib.contextmanager
    def kept(self) -> Iterator[None]:
        """Say how a search goes on that an interrupt or a lost worker stops half way."""
        with _at_sigterm(self._stop) if processes.n_processes() > 1 else contextlib.nullcontext():
            try:
                yield
            except ConnectionError:
                self._stop()
            except KeyboardInterrupt:
                self._say("interrupted")
                sys.exit(130)

    def _stop(self) -> NoReturn:
        """Say that a worker was lost and leave at once: nothing else can be waited for."""
        with self._stopping:  # a barrier that broke and a signal come together
            self._say("worker lost, or the job was stopped")
            os._exit(1)

    def _say(self, what: str) -> None:
        """Say it once for all processes, and not into the middle of a progress bar."""
        from tqdm import tqdm

        try:
            (self.path / _SAID).touch(exist_ok=False)
        except (FileExistsError, FileNotFoundError):  # said already, or the results are in place
            return
        tqdm.write(
            f"{what}: finished shards are kept in {self.path}; give the same command again to go on", file=sys.stderr
        )
        sys.stderr.flush()


@contextlib.contextmanager
def _at_sigterm(stop: Callable[[], None]) -> Iterator[None]:
    """Call `stop` when SIGTERM comes, which torchrun sends to the other workers when one is lost.

    It is called in a thread: the main one may be waiting for the lost worker, and would take no notice.
    """
    reading, writing = os.pipe()
    os.set_blocking(writing, False)

    def watch() -> None:
        while received := os.read(reading, 1):
            if received[0] == signal.SIGTERM:
                stop()
        os.close(reading)

    threading.Thread(target=watch, daemon=True).start()
    handler = signal.signal(signal.SIGTERM, lambda *_: None)  # a signal wakes the thread only if Python handles it
    wakeup = signal.set_wakeup_fd(writing)
    try:
        yield
    finally:
        signal.set_wakeup_fd(wakeup)
        signal.signal(signal.SIGTERM, handler)
        os.close(writing)
