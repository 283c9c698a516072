"""Figures of one output feature: its interactions, its eigenvectors, its spectrum, its rank-2 form."""

from typing import Any

import torch
from torch import Tensor

from bilinear_circuits.interactions.profiles import FeatureProfile
from bilinear_circuits.report.figures.base import (
    ACTIVATION,
    DIVERGING,
    GREY,
    GROUPS,
    LEADER,
    LEGEND_ABOVE,
    Spec,
    base_figure,
    colour_limit,
    escaped,
    short_values,
)
from bilinear_circuits.report.figures.results import N_EIGENVALUES, eigenvalue_bars
from bilinear_circuits.report.text import number, shorten, visible_label

_TICK_LENGTH, _LABEL_LENGTH = 30, 26


def feature_figures(profile: FeatureProfile, n_others: int | None = None) -> dict[str, Spec]:
    """Every figure of an output feature, by the names its page uses: LAYER-FEATURE-heatmap, -plane, and so on.

    Args:
        profile: The feature.
        n_others: Input features outside of the two groups that are drawn on the plane; all by default.
    """
    name = f"{profile.layer}-{profile.feature}"
    return {
        f"{name}-heatmap": interaction_heatmap(profile),
        f"{name}-plane": eigenvector_plane(profile, n_others),
        f"{name}-spectrum": spectrum_bars(profile),
        f"{name}-scatter": rank2_scatter(profile),
    }


def interaction_heatmap(profile: FeatureProfile) -> Spec:
    """Heat map of the interactions T_ab among the two groups of input features, a line between the groups."""
    names = _member_names(profile)
    block = profile.shape.block
    limit = colour_limit(block.abs())
    positions = list(range(len(names)))
    trace = {
        "type": "heatmap",
        "x": positions,
        "y": positions,
        "z": short_values(block),
        "zmin": -limit,
        "zmax": limit,
        "zmid": 0,
        "colorscale": DIVERGING,
        "customdata": [[[escaped(row), escaped(column)] for column in names] for row in names],
        "hovertemplate": "a: %{customdata[0]}<br>b: %{customdata[1]}<br>T_ab = %{z:.4g}<extra></extra>",
        "xgap": 1,
        "ygap": 1,
        "colorbar": {"title": {"text": "T_ab"}, "thickness": 12, "outlinewidth": 0},
    }
    ticks = {
        "tickvals": positions,
        "ticktext": [escaped(shorten(name, _TICK_LENGTH)) for name in names],
        "showgrid": False,
        "zeroline": False,
    }
    return base_figure(
        [trace],
        max(340, 190 + 27 * len(names)),
        xaxis={**ticks, "tickangle": -50},
        yaxis={**ticks, "autorange": "reversed"},
        layout=_groups_marked(len(profile.shape.first), len(names)),
    )


def eigenvector_plane(profile: FeatureProfile, n_others: int | None = None) -> Spec:
    """Input features on the two leading eigenvectors, the members of the two groups named at the sides.

    Args:
        profile: The feature.
        n_others: How many of the features outside of the groups are drawn, those furthest out; all by default.
    """
    points = profile.projections
    members = torch.cat([profile.shape.first, profile.shape.second]).tolist()
    others = sorted(set(range(len(points))) - set(members))
    if n_others is not None and n_others < len(others):
        furthest = points[others].norm(dim=1).topk(n_others).indices.tolist()
        others = [others[index] for index in sorted(furthest)]
    cloud = {
        **_plane_points(points[others], "other input features", GREY, "circle"),
        "customdata": others,
        "hovertemplate": "feature %{customdata}<br>v1 %{x:.3g}, v2 %{y:.3g}<extra></extra>",
    }
    names, n_first = _member_names(profile), len(profile.shape.first)
    groups = [
        {
            **_plane_points(points[members[part]], title, colour, symbol),
            "text": [escaped(name) for name in names[part]],
            "hovertemplate": "%{text}<br>v1 %{x:.3g}, v2 %{y:.3g}<extra></extra>",
        }
        for title, colour, symbol, part in (
            ("first group", GROUPS[0], "circle", slice(0, n_first)),
            ("second group", GROUPS[1], "diamond", slice(n_first, None)),
        )
    ]
    colours = [GROUPS[index >= n_first] for index in range(len(members))]
    annotations, limits = _names_at_sides(points, members, names, colours)
    values = profile.spectrum.eigenvalues[:2].tolist()
    titles = [f"projection on v{i + 1} (eigenvalue {number(value)})" for i, value in enumerate(values)]
    return base_figure(
        [cloud, *groups],
        540,
        xaxis={"title": {"text": titles[0]}, "range": list(limits), "zeroline": True, "showgrid": False},
        yaxis={"title": {"text": titles[1] if len(titles) > 1 else ""}, "zeroline": True, "showgrid": False},
        layout={
            "annotations": annotations,
            **LEGEND_ABOVE,
        },
    )


def spectrum_bars(profile: FeatureProfile, n: int = N_EIGENVALUES) -> Spec:
    """The n leading eigenvalues by magnitude, with their sign, over the band of the semicircle null."""
    return eigenvalue_bars(profile.spectrum, n)


def rank2_scatter(profile: FeatureProfile) -> Spec:
    """Activation against the rank-2 form, at a sample of the tokens where the feature is active."""
    points = {
        "type": "scatter",
        "x": short_values(profile.predicted),
        "y": short_values(profile.actual),
        "mode": "markers",
        "marker": {"color": ACTIVATION, "size": 6, "opacity": 0.55, "line": {"width": 0}},
        "hovertemplate": "rank-2 form %{x:.3g}<br>activation %{y:.3g}<extra></extra>",
    }
    axes = {name: {"title": {"text": text}} for name, text in (("xaxis", "rank-2 form"), ("yaxis", "activation"))}
    return base_figure([points], 340, **axes)


def _member_names(profile: FeatureProfile) -> list[str]:
    """Names "id label" of the members of both groups, not yet escaped."""
    members = torch.cat([profile.shape.first, profile.shape.second]).tolist()
    named = zip(members, profile.input_labels, strict=True)
    return [f"{feature} {visible_label(label)}" for feature, label in named]


def _groups_marked(n_first: int, n: int) -> dict[str, Any]:
    """Lines between the groups, and their names above the columns."""
    split, line = n_first - 0.5, {"color": GREY, "width": 2}
    shapes = [
        {"type": "line", "x0": split, "x1": split, "y0": -0.5, "y1": n - 0.5, "line": line},
        {"type": "line", "x0": -0.5, "x1": n - 0.5, "y0": split, "y1": split, "line": line},
    ]
    annotations = [
        {"text": title, "x": centre, "y": 1, "yref": "paper", "yanchor": "bottom", "showarrow": False}
        for title, centre, size in (
            ("first group", (n_first - 1) / 2, n_first),
            ("second group", (n_first + n - 1) / 2, n - n_first),
        )
        if size
    ]
    return {"shapes": shapes if 0 < n_first < n else [], "annotations": annotations}


def _plane_points(points: Tensor, title: str, colour: str, symbol: str) -> dict[str, Any]:
    other = colour == GREY
    marker = {"color": colour, "symbol": symbol, "size": 4 if other else 10, "opacity": 0.35 if other else 0.95}
    xy = {"x": short_values(points[:, 0]), "y": short_values(points[:, -1])}
    return {"type": "scatter", **xy, "mode": "markers", "name": title, "marker": marker}


def _names_at_sides(
    points: Tensor, members: list[int], names: list[str], colours: list[str]
) -> tuple[list[dict[str, Any]], tuple[float, float]]:
    """Names in a column on either side, evenly spaced in order of height, each joined to its point.

    Names beside their points would cover each other: members of one group lie close together.

    Returns:
        The names as annotations, and the range of the horizontal axis that leaves room for both columns.
    """
    low, bottom = points.min(0).values.tolist()
    high, top = points.max(0).values.tolist()
    width = max(high - low, 1e-9)
    sides: tuple[list[int], list[int]] = ([], [])
    for index in sorted(range(len(members)), key=lambda index: points[members[index], 1].item()):
        sides[points[members[index], 0].item() > 0].append(index)
    ends = (low - 0.05 * width, high + 0.05 * width)
    leader = {"axref": "x", "ayref": "y", "showarrow": True, "arrowhead": 0, "arrowwidth": 1, "arrowcolor": LEADER}
    annotations = []
    for column, end, anchor in zip(sides, ends, ("right", "left"), strict=True):
        for place, index in enumerate(column):
            point_x, point_y = points[members[index]].tolist()
            annotations.append(
                {
                    **leader,
                    "x": point_x,
                    "y": point_y,
                    "ax": end,
                    "ay": bottom + (top - bottom) * (place + 0.5) / len(column),
                    "xanchor": anchor,
                    "text": escaped(shorten(names[index], _LABEL_LENGTH)),
                    "font": {"color": colours[index], "size": 12},
                }
            )
    room = [(0.5 if side else 0.1) * width for side in sides]
    return annotations, (low - room[0], high + room[1])
