"""The folder of one dictionary of a feature report: pages made in chunks, kept when a run is killed."""

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bilinear_circuits.commands import common
from bilinear_circuits.commands.run_folder import RunFolder

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

    def finished(self, index: int, features: Sequence[int]) -> bool:
        """Whether the pages of a chunk are all there."""
        pages = self.folder / _PAGES
        return self._part(index).is_file() and all((pages / f"{feature}.html").is_file() for feature in features)

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
        with common.written_whole(self.folder / _PARTS) as folder:
            text = json.dumps([asdict(row) for row in rows], ensure_ascii=False, allow_nan=False)
            (folder / self._part(index).name).write_text(text, encoding="utf-8")

    def skip(self, listed: Mapping[str, Any]) -> None:
        """Write the list of features that are in no batch."""
        with common.written_whole(self.folder / _NEURONPEDIA) as folder:
            (folder / _SKIPPED).write_text(common.to_json(listed), encoding="utf-8")

    def rows(self, n_chunks: int) -> list["Row"]:
        """Rows of all chunks."""
        from sae.report.index import Row

        parts = (json.loads(self._part(index).read_text(encoding="utf-8")) for index in range(n_chunks))
        return [Row(**row) for part in parts for row in part]

    def put(self, name: str, text: str) -> None:
        """Write one file, whole."""
        temporary = self.folder / f".{name}.part"
        temporary.write_text(text, encoding="utf-8")
        os.replace(temporary, self.folder / name)

    def _part(self, index: int) -> Path:
        return self.folder / _PARTS / f"{index:05d}.json"


def chunks_of(features: Sequence[int]) -> list[Sequence[int]]:
    """The features of each chunk."""
    return [features[start : start + CHUNK] for start in range(0, len(features), CHUNK)]
