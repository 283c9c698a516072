"""Figures of a circuit, as plotly objects: pure functions of the results.

Plotly reads a small HTML of its own in every text it draws, so tokens are escaped before they go in. Colours that
depend on a light or a dark page are set by the page; here the background is transparent and the rest mid-grey.
"""

import html
from collections.abc import Sequence
from typing import Any

import plotly.graph_objects as go
import torch
from torch import Tensor

from bilinear_circuits.circuits.prove import Effect
from bilinear_circuits.circuits.search import Circuit
from bilinear_circuits.profiles import FeatureProfile
from bilinear_circuits.report.payload import plain
from bilinear_circuits.report.text import number, shorten, signed, visible_label

POSITIVE, NEGATIVE, NEUTRAL = "#2b7bba", "#d8701a", "#ececec"
ACTIVATION = "#7b61c9"
GROUPS = ("#14967f", "#c2519a")
GREY, LEADER, FAINT = "#808080", "rgba(128, 128, 128, 0.45)", "rgba(128, 128, 128, 0.18)"
DIVERGING = ((0.0, NEGATIVE), (0.5, NEUTRAL), (1.0, POSITIVE))
_TICK_LENGTH, _LABEL_LENGTH = 30, 26
_SPECTRUM_LENGTH = 64


def interaction_heatmap(profile: FeatureProfile) -> go.Figure:
    """Heat map of the interactions T_ab among the two groups of input features, a line between the groups."""
    names = _member_names(profile)
    block = profile.shape.block
    limit = _limit(block.abs())
    positions = list(range(len(names)))
    trace = go.Heatmap(
        x=positions,
        y=positions,
        z=_values(block),
        zmin=-limit,
        zmax=limit,
        zmid=0,
        colorscale=DIVERGING,
        customdata=[[[escaped(row), escaped(column)] for column in names] for row in names],
        hovertemplate="a: %{customdata[0]}<br>b: %{customdata[1]}<br>T_ab = %{z:.4g}<extra></extra>",
        xgap=1,
        ygap=1,
        colorbar={"title": {"text": "T_ab"}, "thickness": 12, "outlinewidth": 0},
    )
    figure = _figure([trace], height=max(340, 190 + 27 * len(names)))
    ticks = {
        "tickvals": positions,
        "ticktext": [escaped(shorten(name, _TICK_LENGTH)) for name in names],
        "showgrid": False,
    }
    figure.update_xaxes(**ticks, tickangle=-50, zeroline=False)
    figure.update_yaxes(**ticks, autorange="reversed", zeroline=False)
    _separate_groups(figure, len(profile.shape.first), len(names))
    return figure


def eigenvector_plane(profile: FeatureProfile) -> go.Figure:
    """All input features on the two leading eigenvectors, the members of the two groups named at the sides."""
    points = profile.projections
    members = torch.cat([profile.shape.first, profile.shape.second]).tolist()
    others = sorted(set(range(len(points))) - set(members))
    traces = [_plane_points(points[others], [f"feature {f}" for f in others], "other input features", GREY, "circle")]
    names, n_first = _member_names(profile), len(profile.shape.first)
    for title, colour, symbol, part in (
        ("first group", GROUPS[0], "circle", slice(0, n_first)),
        ("second group", GROUPS[1], "diamond", slice(n_first, None)),
    ):
        traces.append(_plane_points(points[members[part]], names[part], title, colour, symbol))
    figure = _figure(traces, height=540)
    colours = [GROUPS[index >= n_first] for index in range(len(members))]
    low, high = _name_at_sides(figure, points, members, names, colours)
    eigenvalues = profile.spectrum.eigenvalues[:2].tolist()
    titles = [f"projection on v{i + 1} (eigenvalue {number(value)})" for i, value in enumerate(eigenvalues)]
    figure.update_xaxes(title_text=titles[0], range=[low, high], zeroline=True, showgrid=False)
    figure.update_yaxes(title_text=titles[1] if len(titles) > 1 else "", zeroline=True, showgrid=False)
    figure.update_layout(showlegend=True, legend={"orientation": "h", "y": 1.02, "yanchor": "bottom", "x": 0})
    return figure


def spectrum_bars(profile: FeatureProfile, n: int = _SPECTRUM_LENGTH) -> go.Figure:
    """The n leading eigenvalues by magnitude, with their sign, over the band of the semicircle null."""
    values = _values(profile.spectrum.eigenvalues[:n])
    edge = plain(profile.spectrum.semicircle_edge())
    bars = go.Bar(
        x=list(range(1, len(values) + 1)),
        y=values,
        marker={"color": [_sign_colour(value) for value in values], "line": {"width": 0}},
        hovertemplate="eigenvalue %{x}: %{y:.4g}<extra></extra>",
    )
    figure = _figure([bars], height=340)
    figure.add_shape(
        type="rect", xref="paper", x0=0, x1=1, y0=-edge, y1=edge, fillcolor=FAINT, line={"width": 0}, layer="below"
    )
    figure.add_annotation(
        text=f"null: ±{number(edge)}", xref="paper", x=1, y=edge, xanchor="right", yanchor="bottom", showarrow=False
    )
    figure.update_xaxes(title_text="rank by magnitude", showgrid=False)
    figure.update_yaxes(title_text="eigenvalue", zeroline=True)
    return figure


def rank2_scatter(profile: FeatureProfile) -> go.Figure:
    """Activation against the rank-2 form, at a sample of the tokens where the feature is active."""
    points = go.Scatter(
        x=_values(profile.predicted),
        y=_values(profile.actual),
        mode="markers",
        marker={"color": ACTIVATION, "size": 6, "opacity": 0.55, "line": {"width": 0}},
        hovertemplate="rank-2 form %{x:.3g}<br>activation %{y:.3g}<extra></extra>",
    )
    figure = _figure([points], height=340)
    figure.update_xaxes(title_text="rank-2 form")
    figure.update_yaxes(title_text="activation")
    return figure


def effect_forest(circuits: Sequence[Circuit]) -> go.Figure:
    """Causal effects of every circuit with their 95 % intervals, and every control as a small dot."""
    ticks: list[str] = []
    effects: list[tuple[int, str, Effect]] = []
    dots: list[tuple[int, str, float]] = []
    for circuit in circuits:
        name, proof = circuit.evidence.name, circuit.proof
        ticks.append(f"<b>{name}</b>, pushes to {'+' if circuit.evidence.sign > 0 else '−'}")
        for label, effect in (
            ("removal", proof.removal),
            ("removal, all trigger sites", proof.removal_all_sites),
            ("ablation", proof.ablation),
            ("ablation, all trigger sites", proof.ablation_all_sites),
            ("controls, mean", proof.control),
        ):
            effects.append((len(ticks), f"{name} {label}", effect))
            ticks.append(label)
        ticks.append("controls at triggers")
        for row, controls in ((len(ticks) - 2, proof.controls), (len(ticks) - 1, proof.trigger_controls)):
            dots += [(row, f"{name} control: feature {one.feature}", one.effect.mean) for one in controls]
    figure = _figure([_control_dots(dots), _effect_points(effects)], height=110 + 24 * len(ticks))
    figure.update_xaxes(title_text="change of logit(+ words) − logit(− words)", zeroline=True)
    figure.update_yaxes(
        tickvals=list(range(len(ticks))), ticktext=ticks, range=[len(ticks) - 0.3, -0.7], zeroline=False
    )
    return figure


def escaped(name: str) -> str:
    """Text that plotly draws as it is."""
    return html.escape(name, quote=False)


def _figure(traces: list[Any], height: int) -> go.Figure:
    figure = go.Figure(traces)
    figure.update_layout(
        template=go.layout.Template(),
        height=height,
        margin={"l": 56, "r": 16, "t": 24, "b": 56},
        paper_bgcolor="rgba(0,0,0,0)",
        plot_bgcolor="rgba(0,0,0,0)",
        font={"color": GREY, "size": 12, "family": "system-ui, sans-serif"},
        showlegend=False,
        hovermode="closest",
    )
    axes = {"gridcolor": FAINT, "zerolinecolor": GREY, "automargin": True, "ticks": ""}
    figure.update_xaxes(**axes)
    figure.update_yaxes(**axes)
    return figure


def _member_names(profile: FeatureProfile) -> list[str]:
    """Names "id label" of the members of both groups, not yet escaped."""
    members = torch.cat([profile.shape.first, profile.shape.second]).tolist()
    named = zip(members, profile.input_labels, strict=True)
    return [f"{feature} {visible_label(label)}" for feature, label in named]


def _separate_groups(figure: go.Figure, n_first: int, n: int) -> None:
    """Lines between the groups, and their names above the columns."""
    split, line = n_first - 0.5, {"color": GREY, "width": 2}
    if 0 < n_first < n:
        figure.add_shape(type="line", x0=split, x1=split, y0=-0.5, y1=n - 0.5, line=line)
        figure.add_shape(type="line", x0=-0.5, x1=n - 0.5, y0=split, y1=split, line=line)
    for title, centre, size in (
        ("first group", (n_first - 1) / 2, n_first),
        ("second group", (n_first + n - 1) / 2, n - n_first),
    ):
        if size:
            figure.add_annotation(
                text=title, x=centre, y=1, yref="paper", yanchor="bottom", showarrow=False, font={"size": 12}
            )


def _plane_points(points: Tensor, names: list[str], title: str, colour: str, symbol: str) -> go.Scatter:
    other = colour == GREY
    marker = {"color": colour, "symbol": symbol, "size": 4 if other else 10, "opacity": 0.35 if other else 0.95}
    return go.Scatter(
        x=_values(points[:, 0]),
        y=_values(points[:, -1]),
        mode="markers",
        name=title,
        marker=marker,
        text=[escaped(name) for name in names],
        hovertemplate="%{text}<br>v1 %{x:.3g}, v2 %{y:.3g}<extra></extra>",
    )


def _name_at_sides(
    figure: go.Figure, points: Tensor, members: list[int], names: list[str], colours: list[str]
) -> tuple[float, float]:
    """Write the names in a column on either side, evenly spaced in order of height, each joined to its point.

    Names beside their points would cover each other: members of one group lie close together.

    Returns:
        Range of the horizontal axis that leaves room for both columns.
    """
    low, bottom = points.min(0).values.tolist()
    high, top = points.max(0).values.tolist()
    width = max(high - low, 1e-9)
    sides: tuple[list[int], list[int]] = ([], [])
    for index in sorted(range(len(members)), key=lambda index: points[members[index], 1].item()):
        sides[points[members[index], 0].item() > 0].append(index)
    ends = (low - 0.05 * width, high + 0.05 * width)
    for column, end, anchor in zip(sides, ends, ("right", "left"), strict=True):
        for place, index in enumerate(column):
            point_x, point_y = points[members[index]].tolist()
            figure.add_annotation(
                x=point_x,
                y=point_y,
                ax=end,
                ay=bottom + (top - bottom) * (place + 0.5) / len(column),
                axref="x",
                ayref="y",
                xanchor=anchor,
                text=escaped(shorten(names[index], _LABEL_LENGTH)),
                font={"color": colours[index], "size": 12},
                showarrow=True,
                arrowhead=0,
                arrowwidth=1,
                arrowcolor=LEADER,
            )
    room = [(0.5 if side else 0.1) * width for side in sides]
    return low - room[0], high + room[1]


def _effect_points(effects: Sequence[tuple[int, str, Effect]]) -> go.Scatter:
    means = plain([effect.mean for _, _, effect in effects])
    above = plain([effect.high - effect.mean for _, _, effect in effects])
    below = plain([effect.mean - effect.low for _, _, effect in effects])
    return go.Scatter(
        x=means,
        y=[row for row, _, _ in effects],
        mode="markers",
        marker={"color": [_sign_colour(mean) for mean in means], "size": 9},
        error_x={"type": "data", "array": above, "arrayminus": below, "color": GREY, "thickness": 1.5, "width": 4},
        text=[f"{label}<br>{_interval(effect)}" for _, label, effect in effects],
        hovertemplate="%{text}<extra></extra>",
    )


def _control_dots(dots: Sequence[tuple[int, str, float]]) -> go.Scatter:
    return go.Scatter(
        x=plain([mean for _, _, mean in dots]),
        # Three heights, so that dots of like effect do not hide each other.
        y=[row + 0.22 * (index % 3 - 1) for index, (row, _, _) in enumerate(dots)],
        mode="markers",
        marker={"color": GREY, "size": 4, "opacity": 0.6},
        text=[f"{label}<br>{signed(plain(mean))}" for _, label, mean in dots],
        hovertemplate="%{text}<extra></extra>",
    )


def _interval(effect: Effect) -> str:
    mean, low, high = (signed(plain(value)) for value in (effect.mean, effect.low, effect.high))
    return f"{mean} [{low}, {high}], n = {effect.n}"


def _sign_colour(value: float | None) -> str:
    return NEGATIVE if value is not None and value < 0 else POSITIVE


def _limit(magnitude: Tensor) -> float:
    """End of a colour scale; 1 where there is nothing to show."""
    return (plain(magnitude.max()) if magnitude.numel() else None) or 1.0


def _values(values: Tensor) -> Any:
    """Numbers short enough to embed: five significant digits."""
    return _short(values.tolist())


def _short(value: Any) -> Any:
    return [_short(one) for one in value] if isinstance(value, list) else plain(float(f"{value:.5g}"))
