"""A results folder that remembers the settings its run was started with, so that a killed run can go on."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from bilinear_circuits.command_line import common, records
from bilinear_circuits.command_line.claims import clear_half_written
from bilinear_circuits.utilities.folders import read_json

MARKER = "run.json"


class RunFolder:
    """The folder of one run, marked with its settings.

    Attributes:
        folder: The folder.
    """

    def __init__(self, folder: str | Path, what: str, record: str | None = None) -> None:
        """Name the folder and what is in it.

        Args:
            folder: The folder; made when the run starts.
            what: The run in messages, such as "a search".
            record: The file that a finished run writes last, if its results stay in the folder as they are.
        """
        self.folder = Path(folder)
        self._what, self._record = what, record
        self._marker = self.folder / MARKER

    @property
    def settings(self) -> dict[str, Any]:
        """Settings of the run that was started here; empty if none was."""
        return read_json(self._marker, MARKER) if self._marker.is_file() else {}

    def is_over(self, settings: Mapping[str, Any]) -> bool:
        """Find a run that has its results in place, but was killed while it cleared away what led to them."""
        recorded = self._record is not None and (self.folder / self._record).is_file()
        return recorded and self._marker.is_file() and not records.changed_settings(self._marker, settings)

    def check(self, settings: Mapping[str, Any]) -> None:
        """Refuse a folder that holds anything but the start of this run.

        Raises:
            ValueError: If the folder is another's, or holds results.
        """
        if self._record is not None and (self.folder / self._record).is_file():
            raise ValueError(
                f"out must be a new or empty folder, or hold {self._what} to go on with, got {self.folder}, which holds"
                " a finished one. Remove it or name another --out."
            )
        if self._marker.is_file():
            if changed := records.changed_settings(self._marker, settings):
                raise ValueError(
                    f"out must hold {self._what} with these settings to go on with, got {self.folder}, where"
                    f" {', '.join(changed)} differ. Remove it to start anew, or name another --out."
                )
        elif self.folder.is_dir() and any(self.folder.iterdir()):
            raise ValueError(
                f"out must be a new or empty folder, or hold {self._what} to go on with, got {self.folder}."
                " Name another --out."
            )

    def mark(self, settings: Mapping[str, Any], parts: Sequence[str]) -> None:
        """Mark the folder as that of this run, and take away what a kill left half written.

        Args:
            settings: What decides the result.
            parts: Folders within it that `common.written_whole` writes.
        """
        if not self._marker.is_file():
            with common.written_whole(self.folder) as folder:
                (folder / MARKER).write_text(common.to_json(settings), encoding="utf-8")
        for folder in (self.folder, *(self.folder / name for name in parts)):
            clear_half_written(folder.resolve())

    def unmark(self) -> None:
        """Take the marker away: the run is over."""
        self._marker.unlink(missing_ok=True)
