"""What all figures share: the colours, an empty figure, numbers and texts as plotly takes them."""

import html
from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor

from bilinear_circuits.report.payload import plain

Spec = dict[str, Any]
"""A figure in plotly's JSON form: {"data": [traces], "layout": {...}}."""

POSITIVE, NEGATIVE, NEUTRAL = "#2b7bba", "#d8701a", "#ececec"
ACTIVATION = "#7b61c9"
GROUPS = ("#14967f", "#c2519a")
GREY, LEADER, FAINT = "#808080", "rgba(128, 128, 128, 0.45)", "rgba(128, 128, 128, 0.18)"
DIVERGING = [[0.0, NEGATIVE], [0.5, NEUTRAL], [1.0, POSITIVE]]
LEGEND_ABOVE = {"showlegend": True, "legend": {"orientation": "h", "y": 1.02, "yanchor": "bottom", "x": 0}}
_AXIS = {"gridcolor": FAINT, "zerolinecolor": GREY, "automargin": True, "ticks": ""}


def base_figure(
    traces: Sequence[Mapping[str, Any]],
    height: int,
    *,
    xaxis: Mapping[str, Any],
    yaxis: Mapping[str, Any],
    layout: Mapping[str, Any] | None = None,
) -> Spec:
    """A figure in the look of all of them.

    Args:
        traces: What it draws.
        height: In pixels; the width is that of the page.
        xaxis: Settings of the horizontal axis, over those of all figures.
        yaxis: Settings of the vertical axis.
        layout: Further settings: shapes, annotations, legend.
    """
    shared = {
        "height": height,
        "margin": {"l": 56, "r": 16, "t": 24, "b": 56},
        "paper_bgcolor": "rgba(0,0,0,0)",
        "plot_bgcolor": "rgba(0,0,0,0)",
        "font": {"color": GREY, "size": 12, "family": "system-ui, sans-serif"},
        "showlegend": False,
        "hovermode": "closest",
        "template": {},
    }
    axes = {"xaxis": {**_AXIS, **xaxis}, "yaxis": {**_AXIS, **yaxis}}
    return {"data": [dict(trace) for trace in traces], "layout": {**shared, **axes, **(layout or {})}}


def escaped(name: str) -> str:
    """Text that plotly draws as it is."""
    return html.escape(name, quote=False)


def short_values(values: Tensor) -> Any:
    """Numbers short enough to embed, as nested lists: five significant digits, None where not finite."""
    return _short(values.tolist())


def sign_colour(value: float | None) -> str:
    """Blue for what is positive or nothing, orange for what is negative."""
    return NEGATIVE if value is not None and value < 0 else POSITIVE


def colour_limit(magnitude: Tensor) -> float:
    """End of a colour scale; 1 where there is nothing to show."""
    return (plain(magnitude.max()) if magnitude.numel() else None) or 1.0


def _short(value: Any) -> Any:
    return [_short(item) for item in value] if isinstance(value, list) else plain(float(f"{value:.5g}"))
