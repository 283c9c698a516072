"""Figures of prompt graphs and heads: degrees, predicted against real effects, scores over distance."""

from collections.abc import Sequence
from typing import Any

from bilinear_circuits.paths.account import PathAccount
from bilinear_circuits.paths.degrees import Degrees
from bilinear_circuits.paths.effects import Effects
from bilinear_circuits.paths.heads import HeadSummary, HeadTable
from bilinear_circuits.report.figures.base import (
    DIVERGING,
    GREY,
    GROUPS,
    LEADER,
    LEGEND_ABOVE,
    NEGATIVE,
    POSITIVE,
    Spec,
    base_figure,
    colour_limit,
    escaped,
    short_values,
    sign_colour,
)

_MOST_DEGREES = 33
_CURVES = (POSITIVE, NEGATIVE, *GROUPS, GREY)


def account_figures(account: PathAccount) -> dict[str, Spec]:
    """Every figure of an account, by the names its page uses."""
    return {"effects": effect_scatter(account.effects), "degrees": degree_bars(account.degrees)}


def degree_bars(degrees: Degrees) -> Spec:
    """Draw how much of a target is of each degree in the embeddings; degrees after the 32nd are left out."""
    values = short_values(degrees.value[:_MOST_DEGREES])
    bars = {
        "type": "bar",
        "x": list(range(len(values))),
        "y": values,
        "marker": {"color": [sign_colour(value) for value in values], "line": {"width": 0}},
        "hovertemplate": "degree %{x}: %{y:.4g}<extra></extra>",
    }
    return base_figure(
        [bars],
        300,
        xaxis={"title": {"text": "degree in the embeddings"}, "showgrid": False},
        yaxis={"title": {"text": "part of the target"}, "zeroline": True},
    )


def effect_scatter(effects: Effects) -> Spec:
    """Draw what removals are predicted to do against what they do; on the dashed line both agree."""
    kinds = {"heads": ("head", POSITIVE, "circle"), "MLPs": ("mlp", NEGATIVE, "diamond")}
    ends = [0.0, *effects.predicted.tolist(), *effects.real.tolist()]
    low, high = min(ends), max(ends)
    line = {"type": "line", "x0": low, "x1": high, "y0": low, "y1": high, "layer": "below"}
    return base_figure(
        [_points(effects, name, *kind) for name, kind in kinds.items()],
        420,
        xaxis={"title": {"text": "predicted change, norms alive"}, "zeroline": True},
        yaxis={"title": {"text": "real change"}, "zeroline": True},
        layout={
            "shapes": [{**line, "line": {"color": LEADER, "width": 1.5, "dash": "dash"}}],
            **LEGEND_ABOVE,
        },
    )


def _points(effects: Effects, name: str, kind: str, colour: str, symbol: str) -> dict[str, Any]:
    own = [i for i, removed in enumerate(effects.removed) if removed.startswith(kind)]
    return {
        "type": "scatter",
        "mode": "markers",
        "name": name,
        "x": short_values(effects.predicted[own]),
        "y": short_values(effects.real[own]),
        "text": [escaped(effects.removed[i]) for i in own],
        "marker": {"color": colour, "symbol": symbol, "size": 8, "opacity": 0.75},
        "hovertemplate": "%{text}<br>predicted %{x:.4g}, real %{y:.4g}<extra></extra>",
    }


def head_figures(table: HeadTable, texts: Sequence[str]) -> dict[str, Spec]:
    """Every figure of a table of heads, by the names its page uses; curves where there is one head alone."""
    drawn = {"distance": distance_map(table)}
    if len(table.heads) == 1:
        drawn["curves"] = score_curves(table.heads[0], texts)
    return drawn


def distance_map(table: HeadTable) -> Spec:
    """Draw how much every head prefers every distance, in standard deviations of its scores over pairs of tokens."""
    values = [head.preference for head in table.heads]
    names = [head.name for head in table.heads]
    trace = {
        "type": "heatmap",
        "z": [short_values(value) for value in values],
        "y": list(range(len(names))),
        "x": list(range(table.n_distances)),
        "text": [[name] * table.n_distances for name in names],
        "colorscale": DIVERGING,
        "zmid": 0,
        "zmax": (limit := max(map(colour_limit, (value.abs() for value in values)))),
        "zmin": -limit,
        "colorbar": {"thickness": 10, "outlinewidth": 0},
        "hovertemplate": "head %{text}, distance %{x}: %{z:.3g}<extra></extra>",
    }
    step = max(1, -(-len(names) // 40))
    return base_figure(
        [trace],
        130 + max(60, min(14 * len(names), 640)),
        xaxis={"title": {"text": "distance from query to key"}, "showgrid": False},
        yaxis={
            "title": {"text": "head"},
            "tickvals": list(range(0, len(names), step)),
            "ticktext": names[::step],
            "autorange": "reversed",
            "showgrid": False,
            "zeroline": False,
        },
    )


def score_curves(head: HeadSummary, texts: Sequence[str]) -> Spec:
    """Draw the scores of the highest pairs of tokens over the distance between them.

    Args:
        head: The head.
        texts: Texts of the tokens it was searched on.
    """
    pairs = zip(head.looks.query.tolist(), head.looks.key.tolist(), strict=True)
    names = [f"{texts[query]} looks at {texts[key]}" for query, key in pairs]
    traces = []
    for at, name in enumerate(names):
        if name in names[:at]:
            continue  # the same pair at another distance
        traces.append(
            {
                "type": "scatter",
                "mode": "lines+markers",
                "name": escaped(name),
                "x": list(range(head.curves.shape[1])),
                "y": short_values(head.curves[at]),
                "line": {"color": _CURVES[at % len(_CURVES)], "width": 2},
                "marker": {"size": 4},
                "hovertemplate": "distance %{x}: %{y:.4g}",
            }
        )
    return base_figure(
        traces,
        360,
        xaxis={"title": {"text": "distance from query to key"}, "showgrid": False, "zeroline": False},
        yaxis={"title": {"text": "score"}, "zeroline": True},
        layout=LEGEND_ABOVE,
    )
