"""The folder of one dictionary of a feature report: pages made in chunks, kept when a run is killed."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bilinear_circuits.command_line import common
from bilinear_circuits.command_line.run_folder import RunFolder
from bilinear_circuits.command_line.sealed import read_sealed, write_sealed

if TYPE_CHECKING:
    from sae.report.index import Row

CHUNK = 64
_PAGES, _PARTS, _NEURONPEDIA = "features", "parts", "neuronpedia"
_SKIPPED = "skipped_indexes.json"


class ReportFolder(RunFolder):
    """What is finished of a dictionary's report, and the settings it was started with."""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder, "a report")

    def start(self, settings: Mapping[str, Any]) -> None:
        """Mark the folder as that of this report."""
        self.mark(settings, (_PAGES, _PARTS, _NEURONPEDIA))

    def finished(self, index: int) -> bool:
        """Find a chunk whose pages are all there, and as they were written."""
        file = self._part(index)
        whole = read_sealed(file, self.folder) is not None
        if file.is_file() and not whole:
            common.note(f"{file} or one of its pages is damaged or gone: the chunk is made again")
        return whole

    def write(
        self, index: int, pages: Mapping[int, str], rows: Sequence["Row"], batch: Mapping[str, Any] | None
    ) -> None:
        """Keep the pages of a chunk; its part, which marks it as finished, comes last."""
        with common.written_whole(self.folder / _PAGES) as folder:
            for feature, text in pages.items():
                (folder / f"{feature}.html").write_text(text, encoding="utf-8")
        if batch is not None:
            with common.written_whole(self.folder / _NEURONPEDIA) as folder:
                text = json.dumps(batch, ensure_ascii=False, allow_nan=False)
                (folder / f"batch-{index}.json").write_text(text, encoding="utf-8")
        files = [f"{_PAGES}/{feature}.html" for feature in pages]
        files += [] if batch is None else [f"{_NEURONPEDIA}/batch-{index}.json"]
        with common.written_whole(self.folder / _PARTS) as folder:
            write_sealed(folder / self._part(index).name, [asdict(row) for row in rows], self.folder, files)

    def skip(self, listed: Mapping[str, Any]) -> None:
        """Write the list of features that are in no batch."""
        with common.written_whole(self.folder / _NEURONPEDIA) as folder:
            (folder / _SKIPPED).write_text(common.to_json(listed), encoding="utf-8")

    def rows(self, n_chunks: int) -> list["Row"]:
        """Rows of all chunks.

        Raises:
            ValueError: If one is damaged.
        """
        from sae.report.index import Row

        rows = []
        for index in range(n_chunks):
            file = self._part(index)
            if (part := read_sealed(file, self.folder)) is None:
                raise ValueError(f"chunks must be as they were written, got {file} damaged. Give the command again.")
            rows += [Row(**row) for row in part]
        return rows

    def put(self, name: str, text: str) -> None:
        """Write one file, whole."""
        with common.written_whole(self.folder) as folder:
            (folder / name).write_text(text, encoding="utf-8")

    def _part(self, index: int) -> Path:
        return self.folder / _PARTS / f"{index:05d}.json"


def chunks_of(features: Sequence[int]) -> list[Sequence[int]]:
    """The features of each chunk."""
    return [features[start : start + CHUNK] for start in range(0, len(features), CHUNK)]
