"""Report every feature of a dictionary: an index to search and a page for each, as plain files to open or to send.

Pages are made in chunks, which are kept: a report that was killed goes on when the same command is given again.
"""

import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from simple_parsing import field

from bilinear_circuits.command_line import common, records
from bilinear_circuits.command_line.corpus import corpus_of, settings_of
from bilinear_circuits.command_line.labels import Labels, read_labels
from bilinear_circuits.command_line.run_folder import MARKER
from bilinear_circuits.data.corpora import Corpus
from bilinear_circuits.utilities.folders import file_hash
from sae.commands.report_folder import ReportFolder

if TYPE_CHECKING:
    from bilinear_circuits.interactions.activity import Side
    from sae.report.index import Row
    from sae.report.pages import DictionaryReport

_SCHEMA_VERSION = 1
_FRONT = "index.html"
_SIDES: dict[str, tuple["Side", ...]] = {"both": ("in", "out"), "in": ("in",), "out": ("out",)}


@dataclass(kw_only=True)
class Arguments(common.GateArguments, common.LabelArguments):
    """Options of `features`."""

    layer: int
    """Layer of the MLP."""

    out: str
    """Folder of the report: a new one, that of a killed run, or one with the other side. Start at its index.html."""

    side: Literal["in", "out", "both"] = field(default="both", metavar="{in,out,both}")
    """Dictionary of the MLP input, of its output, or both, which links their pages to each other."""

    feature: list[int] | None = None
    """Features to report; all by default."""

    neuronpedia: bool = False
    """Write the features as SAEDashboard's JSON for Neuronpedia, too."""

    n_stories: int = 200
    """Stories read from the corpus."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.side not in _SIDES:
            raise ValueError(f"side must be one of {', '.join(_SIDES)}, got {self.side!r}.")
        if self.feature is not None and (not self.feature or len(set(self.feature)) < len(self.feature)):
            raise ValueError(f"feature must name one feature or more, each once, got {self.feature}.")


def run(arguments: Arguments) -> None:
    """Make the report, or go on making it, and print where to begin."""
    started = time.perf_counter()
    common.check_out(arguments.out)
    common.check_layers([arguments.layer], common.saes_of(arguments))
    corpus = corpus_of(arguments)
    sides = _SIDES[arguments.side]
    labels = read_labels(arguments.labels, [arguments.layer], _only(arguments))
    folders = {side: _folder(arguments, side) for side in sides}
    settings = {side: _settings(arguments, side, labels, corpus) for side in sides}
    for side in sides:
        folders[side].check(settings[side])
    _check_front(Path(arguments.out))

    from sae.commands.report_run import ReportRun

    stories = corpus.read(arguments.n_stories)
    report_run = ReportRun(arguments, stories, _only(arguments))
    # A report is sent to others: the folder it was made in is nothing to them.
    resolved = replace(arguments, saes=common.saes_of(arguments), out=Path(arguments.out).name)
    source = records.provenance(resolved, [report_run.interactions], corpus, len(stories), 0.0)
    for side in sides:
        report_run.check_features(side)
    for side in sides:
        folders[side].start(settings[side])
        _share_plotly(Path(arguments.out))
        shared = report_run.shared(side, settings[side]["linked"])
        rows = report_run.report(shared, folders[side])
        _write_index(shared, folders[side], rows, source, started)
        _write_front(Path(arguments.out))
        print(f"written: {folders[side].folder}/index.html with {len(rows)} features")
        for line in to_look_at(rows, folders[side].folder):
            print(line)
    print(f"open {arguments.out}/index.html in a browser")


def to_look_at(rows: "Sequence[Row]", folder: Path) -> list[str]:
    """The most interesting features as lines of text."""
    from bilinear_circuits.report.text import visible_label
    from sae.report.index import interesting

    lines = []
    for row in interesting(rows):
        measured = f", rank-2 r {row.rank2_correlation:.2f}, outlier {row.outlier:.1f}" if row.outlier else ""
        lines.append(f"  {row.feature:>6}  {visible_label(row.label)}{measured}: {folder}/features/{row.feature}.html")
    return ["to look at first:", *lines] if lines else []


def _only(arguments: Arguments) -> "Side | None":
    """The side reported, if it is one."""
    sides = _SIDES[arguments.side]
    return sides[0] if len(sides) == 1 else None


def _folder(arguments: Arguments, side: "Side") -> ReportFolder:
    from sae.report.pages import side_folder

    return ReportFolder(Path(arguments.out) / side_folder(arguments.layer, side))


def _settings(arguments: Arguments, side: "Side", labels: Labels, corpus: Corpus) -> dict[str, Any]:
    """What decides what the pages show, as plain data."""
    names = {one: {str(key): name for key, name in given.items()} for (_, one), given in labels.items()}
    return {
        "layer": arguments.layer,
        "side": side,
        "feature": arguments.feature,
        "labels": names,
        "neuronpedia": arguments.neuronpedia,
        "n_stories": arguments.n_stories,
        "approximate": arguments.approximate,
        "linked": _linked(arguments, side),
        **records.layer_hashes(arguments, arguments.layer),
        "names_sha256": records.names_hashes(arguments, arguments.layer),
        "corpus_sha256": file_hash(corpus.path),
        **settings_of(corpus),
        "commit": records.environment()["commit"],
    }


def _linked(arguments: Arguments, side: "Side") -> Any:
    """Features of the other side that have, or will have, a page: "all", some, or none."""
    if arguments.side == "both":
        return arguments.feature or "all"
    other = _folder(arguments, "in" if side == "out" else "out").settings
    return (other["feature"] or "all") if other else None


def _share_plotly(out: Path) -> None:
    """The one copy of plotly that all pages draw with."""
    from bilinear_circuits.report.html import PLOTLY_ASSET, plotly_asset

    if not (out / PLOTLY_ASSET).is_file():
        with common.written_whole(out) as folder:
            (folder / PLOTLY_ASSET).write_text(plotly_asset(), encoding="utf-8")


def _write_index(
    shared: "DictionaryReport", folder: ReportFolder, rows: "list[Row]", source: dict[str, Any], started: float
) -> None:
    """The table of all features, as a page, CSV, parquet, and what it takes to repeat it."""
    from bilinear_circuits.report.tables import write_table
    from sae.report.index import columns_of, index_page, state_counts

    source = source | {"seconds": round(time.perf_counter() - started, 1)}
    write_table(folder.folder / "features", columns_of(rows))
    record = {"schema_version": _SCHEMA_VERSION, "kind": "feature report", "layer": shared.layer, "side": shared.side}
    record |= {"n_features": len(rows), **state_counts(rows), "provenance": source}
    folder.put("features.json", common.to_json(record))
    folder.put("index.html", index_page(shared, rows, source))


def _check_front(out: Path) -> None:
    """Refuse a folder whose first page is not that of reports."""
    known = ("features.json", MARKER)
    if (out / _FRONT).exists() and not any(any(out.glob(f"layer-*-*/{name}")) for name in known):
        raise ValueError(
            f"out must be a new folder or one with reports of features, got {out}, which holds another {_FRONT}. Name"
            " another --out."
        )


def _write_front(out: Path) -> None:
    """The first page: all dictionaries whose index is there."""
    import json

    from sae.report.pages import SIDE_NAMES, front_page

    sides = []
    for file in sorted(out.glob("layer-*-*/features.json")):
        record = json.loads(file.read_text(encoding="utf-8"))
        sides.append(
            {
                "href": f"{file.parent.name}/index.html",
                "title": f"Layer {record['layer']}, {SIDE_NAMES[record['side']]} features",
                "text": f"{record['n_features']:,} features, {record['dead']} dead, {record['dense']} dense",
            }
        )
    with common.written_whole(out) as folder:
        (folder / _FRONT).write_text(front_page(sides), encoding="utf-8")
