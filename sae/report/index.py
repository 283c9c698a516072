"""The index of a dictionary: one row per feature, as a searchable page and as the columns of a table."""

import base64
import gzip
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from typing import Any

from bilinear_circuits.report.html import render
from bilinear_circuits.report.payload import plain
from sae.report.pages import SIDE_NAMES, DictionaryReport
from sae.report.results import FeatureSummary, InputReading, OutputReading

_PLAIN_BYTES = 200_000
_DIGITS = 5
INTERESTING_R = 0.75


@dataclass(frozen=True)
class Row:
    """A feature in the index; a number is None where it was not measured, or the side has none.

    Attributes:
        feature: Its number.
        label: Its name.
        state: "", "dead", "rare" or "dense".
        tokens: Tokens that tell most about its activation.
        promoted: Tokens it promotes.
        suppressed: Tokens it suppresses.
        frequency: Share of tokens at which it is active.
        n_active: Number of those tokens.
        strongest: Largest activation.
        rank2_correlation: Correlation of its rank-2 form with its activation.
        outlier: Smaller leading eigenvalue of either sign over the semicircle edge.
        and_shape: Share of interaction between its two groups.
        completeness: Median share of pairs of input features in its pre-activation.
        weight: Largest coefficient of an interaction it takes part in.
        added: Most that a pair with it adds to an output feature; for an output feature, to itself.
    """

    feature: int
    label: str
    state: str
    tokens: list[str]
    promoted: list[str]
    suppressed: list[str]
    frequency: float
    n_active: int
    strongest: float
    rank2_correlation: float | None = None
    outlier: float | None = None
    and_shape: float | None = None
    completeness: float | None = None
    weight: float | None = None
    added: float | None = None


_NUMBERS = {
    "frequency": ("frequency", "share of tokens at which it is active, in per cent"),
    "strongest": ("strongest", "largest activation in the corpus"),
    "rank2_correlation": ("rank-2 r", "correlation of its rank-2 form with its activation where active"),
    "outlier": ("outlier", "smaller leading eigenvalue of either sign, over the edge of the semicircle null"),
    "completeness": ("complete", "median share of its pre-activation that pairs of input features explain"),
    "and_shape": ("AND", "share of the interaction that lies between its two groups of input features"),
    "added": ("adds", "most that one pair adds where the output feature is active"),
    "weight": ("coefficient", "largest coefficient of an interaction"),
}
_OF_INPUTS = ("weight",)  # that of an output feature says little: see docs/proof.md
_OF_OUTPUTS = ("rank2_correlation", "outlier", "completeness", "and_shape")


def row_of(summary: FeatureSummary, reading: OutputReading | InputReading) -> Row:
    """A feature as a row."""
    measured: dict[str, float] = {}
    if isinstance(reading, OutputReading) and reading.profile is not None:
        measured = {
            "rank2_correlation": reading.profile.rank2_correlation,
            "outlier": reading.outlier or 0.0,
            "and_shape": reading.profile.shape.score,
            "completeness": reading.profile.completeness,
        }
    by_activity = [one.added for one in reading.by_activity if one.added is not None]
    return Row(
        feature=summary.feature,
        label=summary.label,
        state=summary.state,
        tokens=[token for token, _ in summary.top_tokens],
        promoted=[token for token, _ in summary.promoted],
        suppressed=[token for token, _ in summary.suppressed],
        frequency=_short(summary.frequency) or 0.0,
        n_active=summary.n_active,
        strongest=_short(summary.strongest) or 0.0,
        weight=_largest([one.weight for one in reading.by_weight]),
        added=_largest(by_activity),
        **{name: _short(value) for name, value in measured.items()},
    )


def columns_of(rows: Sequence[Row]) -> dict[str, list[Any]]:
    """Rows as columns by name, for a table."""
    return {field.name: [getattr(row, field.name) for row in rows] for field in fields(Row)}


def state_counts(rows: Sequence[Row]) -> dict[str, int]:
    """Count the dead, rare and dense features."""
    return {state: sum(row.state == state for row in rows) for state in ("dead", "rare", "dense")}


def interesting(rows: Sequence[Row], n: int = 3) -> list[Row]:
    """Features to look at first.

    Output features of low rank, r above 0.75, by outlier times AND shape: products of two groups that stand out. Of
    input features, those that add most.
    """
    if any(row.outlier is not None for row in rows):
        low_rank = [row for row in rows if (row.rank2_correlation or 0) > INTERESTING_R and row.state == ""]
        return sorted(low_rank, key=lambda row: -(row.outlier or 0) * (row.and_shape or 0))[:n]
    usual = [row for row in rows if row.state == ""]
    return sorted(usual, key=lambda row: -abs(row.added or 0))[:n]


def index_page(shared: DictionaryReport, rows: Sequence[Row], provenance: Mapping[str, Any]) -> str:
    """The index as a page that searches, filters and sorts by itself.

    Args:
        shared: The dictionary.
        rows: Its features, in the order of their numbers.
        provenance: What it was computed with; shown as a table.
    """
    numbers = [name for name in _NUMBERS if name not in (_OF_INPUTS if shared.side == "out" else _OF_OUTPUTS)]
    data = {
        "side": shared.side,
        "numbers": [[name, *_NUMBERS[name]] for name in numbers],
        "texts": ["tokens", "promoted", "suppressed"] if shared.side == "out" else ["tokens"],
        "rows": [_packed_row(row, numbers, shared.side == "out") for row in rows],
    }
    return render(
        "dictionary_index.html.j2",
        plotly=None,
        data={"features": packed(data)},
        scripts=("dictionary_index.js",),
        packages=("sae.report",),
        shared=shared,
        side_name=SIDE_NAMES[shared.side],
        n_features=len(rows),
        counts=state_counts(rows),
        first=interesting(rows),
        provenance=provenance,
    )


def packed(data: Mapping[str, Any]) -> Mapping[str, Any]:
    """JSON data as it is, or where it is long as {"gzip": base64}."""
    text = json.dumps(data, ensure_ascii=False, separators=(",", ":"), allow_nan=False)
    if len(text) <= _PLAIN_BYTES:
        return data
    return {"gzip": base64.b64encode(gzip.compress(text.encode(), mtime=0)).decode()}


def _packed_row(row: Row, numbers: Sequence[str], written: bool) -> list[Any]:
    named = asdict(row)
    texts = [row.tokens, row.promoted, row.suppressed] if written else [row.tokens]
    return [row.feature, row.label, row.state, *texts, *(plain(named[name]) for name in numbers)]


def _largest(values: Sequence[float]) -> float | None:
    return _short(max(values, key=abs)) if values else None


def _short(value: float) -> float | None:
    """Five significant digits; None where not finite."""
    return float(f"{value:.{_DIGITS}g}") if math.isfinite(value) else None
