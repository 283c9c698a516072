"""The training of dictionaries as a page of figures: pure functions of the result of `sae-progress` as plain data."""

from collections.abc import Mapping, Sequence
from typing import Any

from bilinear_circuits.report.figures import ACTIVATION, GREY, GROUPS, NEGATIVE, POSITIVE, Spec, base_figure
from bilinear_circuits.report.figures.base import LEGEND_ABOVE
from bilinear_circuits.report.html import render
from bilinear_circuits.runs.splice import Side

_COLOURS = (POSITIVE, NEGATIVE, *GROUPS, ACTIVATION, GREY)
_DASHES = {"hook_in": "dot", "hook_out": "solid"}
_SIDE_NAMES = {"hook_in": "input", "hook_out": "output"}
_HEIGHT = 330
_Point = tuple[int, float | None, float | None, float | None]


def progress_page(document: Mapping[str, Any]) -> str:
    """The result as one self-contained page: panels, table, provenance.

    Args:
        document: As progress.json holds it.
    """
    panels = progress_panels(document)
    titles = {name: panel["layout"]["yaxis"]["title"]["text"] for name, panel in panels.items()}
    return render("progress.html.j2", figures=panels, document=document, titles=titles)


def progress_panels(document: Mapping[str, Any]) -> dict[str, Spec]:
    """Panels of one figure over training tokens: shares of low-rank features at each rank, then quality.

    One line per dictionary: the colour is the layer; dotted is an MLP input, a full line an MLP output.

    Args:
        document: As progress.json holds it.

    Returns:
        Figures by name, in the order in which they are read.
    """
    stages = document["stages"]
    panels = {}
    for column, rank in enumerate(document["ranks"]):
        shares = [
            (stage["name"], (stage["training_tokens"], *_percent(stage["low_rank"][column]["share"])))
            for stage in stages
            if stage["low_rank"]
        ]
        panels[f"share-{rank}"] = _panel(stages, shares, f"above {document['threshold']:g} at rank {rank} (%)")
        panels[f"share-{rank}"]["layout"]["yaxis"]["range"] = [0, 100]
    for key, title in (("fvu", "FVU"), ("ce_recovered", "CE recovered"), ("n_dead", "dead features")):
        points = [(stage["name"], (stage["training_tokens"], stage[key], None, None)) for stage in stages]
        panels[key] = _panel(stages, points, title)
    return panels


def _percent(share: Mapping[str, Any]) -> list[float | None]:
    return [None if share[key] is None else 100 * share[key] for key in ("value", "low", "high")]


def _panel(stages: Sequence[Mapping[str, Any]], points: Sequence[tuple[str, _Point]], title: str) -> Spec:
    layers = list(dict.fromkeys(Side.of(stage["name"]).layer for stage in stages))
    lines: dict[str, list[_Point]] = {}
    for name, point in points:
        lines.setdefault(name, []).append(point)
    traces = []
    for name, line in lines.items():
        side = Side.of(name)
        traces.append(_line(side, line, _COLOURS[layers.index(side.layer) % len(_COLOURS)]))
    return base_figure(
        traces,
        _HEIGHT,
        xaxis={"title": {"text": "training tokens"}, "type": "log", "dtick": "D2", "tickformat": "~s"},
        yaxis={"title": {"text": title}, "rangemode": "tozero"},
        layout=LEGEND_ABOVE,
    )


def _line(side: Side, points: Sequence[_Point], colour: str) -> dict[str, Any]:
    name = f"layer {side.layer} {_SIDE_NAMES[side.side]}"
    above = [None if value is None or high is None else high - value for _, value, _, high in points]
    below = [None if value is None or low is None else value - low for _, value, low, _ in points]
    return {
        "type": "scatter",
        "x": [tokens for tokens, *_ in points],
        "y": [value for _, value, *_ in points],
        "mode": "lines+markers",
        "name": name,
        "line": {"color": colour, "dash": _DASHES[side.side], "width": 2},
        "marker": {"color": colour, "size": 6},
        "error_y": {"type": "data", "array": above, "arrayminus": below, "thickness": 1, "width": 3},
        "hovertemplate": f"{name}<br>%{{x:,}} tokens: %{{y:.4g}}<extra></extra>",
    }
