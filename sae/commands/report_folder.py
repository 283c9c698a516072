"""The folder of one dictionary of a feature report: pages made in chunks, kept when a run is killed."""

import json
import os
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bilinear_circuits.commands import common

if TYPE_CHECKING:
    from sae.report.index import Row

CHUNK = 64
_MARKER, _PAGES, _PARTS, _NEURONPEDIA = "run.json", "features", "parts", "neuronpedia"


class ReportFolder:
    """What is finished of a dictionary's report, and the settings it was started with.

    Attributes:
        path: The folder.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._marker = path / _MARKER

    @property
    def settings(self) -> dict[str, Any]:
        """Settings of the report that was started here; empty if none was."""
        return json.loads(self._marker.read_text(encoding="utf-8")) if self._marker.is_file() else {}

    def check(self, settings: Mapping[str, Any]) -> None:
        """Refuse a folder that holds anything but the start of this report.

        Raises:
            ValueError: If the folder is another's.
        """
        if self._marker.is_file():
            if changed := common.changed_settings(self._marker, settings):
                raise ValueError(
                    f"out must hold a report with these settings to go on with, got {self.path}, where"
                    f" {', '.join(changed)} differ. Remove it to start anew, or name another --out."
                )
        elif self.path.is_dir() and any(self.path.iterdir()):
            raise ValueError(
                f"out must be a new folder, or hold a report to go on with, got {self.path} without {_MARKER}."
                " Name another --out."
            )

    def start(self, settings: Mapping[str, Any]) -> None:
        """Mark the folder as that of this report, and take away what a kill left half written."""
        if not self._marker.is_file():
            with common.written_whole(self.path) as folder:
                (folder / _MARKER).write_text(common.to_json(settings), encoding="utf-8")
        for name in (_PAGES, _PARTS, _NEURONPEDIA):
            for half in self.path.glob(f".{name}-*"):
                shutil.rmtree(half)

    def finished(self, index: int, features: Sequence[int]) -> bool:
        """Whether the pages of a chunk are all there."""
        pages = self.path / _PAGES
        return self._part(index).is_file() and all((pages / f"{feature}.html").is_file() for feature in features)

    def write(
        self, index: int, pages: Mapping[int, str], rows: Sequence["Row"], batch: Mapping[str, Any] | None
    ) -> None:
        """Keep the pages of a chunk; its part, which marks it as finished, comes last."""
        with common.written_whole(self.path / _PAGES) as folder:
            for feature, text in pages.items():
                (folder / f"{feature}.html").write_text(text, encoding="utf-8")
        if batch is not None:
            with common.written_whole(self.path / _NEURONPEDIA) as folder:
                text = json.dumps(batch, ensure_ascii=False, allow_nan=False)
                (folder / f"batch-{index}.json").write_text(text, encoding="utf-8")
        with common.written_whole(self.path / _PARTS) as folder:
            text = json.dumps([asdict(row) for row in rows], ensure_ascii=False, allow_nan=False)
            (folder / self._part(index).name).write_text(text, encoding="utf-8")

    def rows(self, n_chunks: int) -> list["Row"]:
        """Rows of all chunks."""
        from sae.report.index import Row

        parts = (json.loads(self._part(index).read_text(encoding="utf-8")) for index in range(n_chunks))
        return [Row(**row) for part in parts for row in part]

    def put(self, name: str, text: str) -> None:
        """Write one file, whole."""
        temporary = self.path / f".{name}.part"
        temporary.write_text(text, encoding="utf-8")
        os.replace(temporary, self.path / name)

    def _part(self, index: int) -> Path:
        return self.path / _PARTS / f"{index:05d}.json"


def chunks_of(features: Sequence[int]) -> list[Sequence[int]]:
    """The features of each chunk."""
    return [features[start : start + CHUNK] for start in range(0, len(features), CHUNK)]
