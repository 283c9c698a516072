"""A folder of attribution graphs that circuit-tracer's server opens: graphs, the list of them, and feature details.

Others write there too. Their entries in the list are kept, runs that write at once wait for each other, and the list,
by which a graph is found, is replaced as a whole and last.
"""

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from bilinear_circuits.command_line.claims import claimed, half_written
from bilinear_circuits.utilities.folders import read_json

LIST = "graph-metadata.json"
FEATURES, NEURONPEDIA = "features", "neuronpedia"


class GraphFolder:
    """One graph in such a folder.

    Attributes:
        folder: The folder; made when the graph is written.
        slug: Name of the graph.
    """

    def __init__(self, folder: str | Path, slug: str, generator: str) -> None:
        """Name the folder and the graph.

        Args:
            folder: The folder.
            slug: Name of the graph.
            generator: Name of the program, by which its own graphs are told from those of others.
        """
        self.folder, self.slug, self._generator = Path(folder), slug, generator

    def check(self, prompt: str) -> None:
        """Refuse a damaged list, and a slug that another graph has; before the work, and again when it is written.

        Raises:
            ValueError: If the graph cannot be written there.
        """
        self._listed()
        for name in (LIST, f"{self.slug}.json"):
            if (self.folder / name).is_dir():
                raise ValueError(f"out must not hold a folder where a file is written, got {self.folder / name}.")
        for name in (FEATURES, NEURONPEDIA):
            if (self.folder / name).is_file():
                raise ValueError(f"out must not hold a file where a folder is made, got {self.folder / name}.")
        self._check_slug(prompt)

    def write(self, prompt: str, graph: Mapping[str, Any], others: Mapping[str, Mapping[str, Any]]) -> None:
        """Write a graph and add it to the list, or replace it there.

        Args:
            prompt: The prompt of the graph.
            graph: The graph.
            others: Documents that belong to it, by their path in the folder.

        Raises:
            ValueError: As `check` does, if the folder was changed meanwhile.
        """
        documents = {**others, f"{self.slug}.json": graph}
        with claimed(self.folder, wait=True), half_written(self.folder.resolve()) as name:
            temporary = Path(name)
            self.check(prompt)
            documents[LIST] = self._with_entry(graph["metadata"])
            for path, document in documents.items():
                _write(temporary / path, document)
            for path in documents:
                (self.folder / path).parent.mkdir(parents=True, exist_ok=True)
                os.replace(temporary / path, self.folder / path)

    def _listed(self) -> dict[str, Any]:
        """The list of graphs as it stands; an empty one where there is none.

        Raises:
            ValueError: If it is damaged.
        """
        file = self.folder / LIST
        if not file.is_file():
            return {"graphs": []}
        listed = read_json(file, LIST)
        graphs = listed.get("graphs")
        if not isinstance(graphs, list) or not all(isinstance(graph, dict) and "slug" in graph for graph in graphs):
            raise ValueError(
                f'{LIST} must hold a list "graphs" of entries with a slug, got {file}, which does not. Repair or remove'
                " it, or name another --out."
            )
        return listed

    def _with_entry(self, metadata: Mapping[str, Any]) -> dict[str, Any]:
        listed = self._listed()
        others = [graph for graph in listed["graphs"] if graph["slug"] != self.slug]
        return {**listed, "graphs": [*others, metadata]}

    def _check_slug(self, prompt: str) -> None:
        entries = [graph for graph in self._listed()["graphs"] if graph["slug"] == self.slug]
        files = [self.folder / part / f"{self.slug}.json" for part in (".", NEURONPEDIA)]
        known = [read_json(file, file.name).get("metadata") for file in files if file.is_file()]
        for metadata in (*known, *entries):
            if self._made(metadata) and metadata.get("prompt") == prompt:
                continue
            whose = f"the prompt {metadata.get('prompt')!r:.80}" if self._made(metadata) else "another program"
            raise ValueError(
                f"slug must be new in {self.folder}, or that of the same prompt, got {self.slug}, which is a graph of"
                f" {whose} there. Name another --slug or --out."
            )

    def _made(self, metadata: Any) -> bool:
        """Whether a graph says that this program made it."""
        for key in ("info", "generator"):
            metadata = metadata.get(key) if isinstance(metadata, dict) else None
        return isinstance(metadata, dict) and metadata.get("name") == self._generator


def _write(file: Path, document: Mapping[str, Any]) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    text = json.dumps(document, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
    file.write_text(text + "\n", encoding="utf-8")
