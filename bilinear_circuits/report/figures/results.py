"""Figures of single results, as notebooks draw them: spectra, interactions, ledgers, correlations, motifs."""

from collections.abc import Sequence
from typing import Any

import torch

from bilinear_circuits.algebra.spectra import Spectrum
from bilinear_circuits.discovery.results import Discovery, DiscoverySearch
from bilinear_circuits.interactions.ledger import Ledger, PairContributions
from bilinear_circuits.interactions.low_rank import LowRankCorrelation
from bilinear_circuits.report.figures.base import (
    DIVERGING,
    FAINT,
    GREY,
    GROUPS,
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
from bilinear_circuits.report.payload import plain
from bilinear_circuits.report.text import number, visible
from bilinear_circuits.sweep import InteractionStatistics, TopInteractions

N_EIGENVALUES = 64
_N_BARS = 24
_N_POSITIONS = 64
_QUARTILES = (0.05, 0.25, 0.5, 0.75, 0.95)


def eigenvalue_bars(spectrum: Spectrum, n: int = N_EIGENVALUES) -> Spec:
    """The n leading eigenvalues by magnitude, with their sign, over the band of the semicircle null.

    Raises:
        ValueError: If the spectrum is that of a batch of matrices.
    """
    if spectrum.eigenvalues.ndim != 1:
        shape = tuple(spectrum.eigenvalues.shape)
        raise ValueError(f"spectrum must be that of one matrix, got eigenvalues {shape}. Draw spectrum[0].")
    values = short_values(spectrum.eigenvalues[:n])
    edge = plain(spectrum.semicircle_edge())
    bars = {
        "type": "bar",
        "x": list(range(1, len(values) + 1)),
        "y": values,
        "marker": {"color": [sign_colour(value) for value in values], "line": {"width": 0}},
        "hovertemplate": "eigenvalue %{x}: %{y:.4g}<extra></extra>",
    }
    band = {"type": "rect", "xref": "paper", "x0": 0, "x1": 1, "y0": -edge, "y1": edge}
    note = {"text": f"null: ±{number(edge)}", "xref": "paper", "x": 1, "y": edge, "showarrow": False}
    return base_figure(
        [bars],
        340,
        xaxis={"title": {"text": "rank by magnitude"}, "showgrid": False},
        yaxis={"title": {"text": "eigenvalue"}, "zeroline": True},
        layout={
            "shapes": [{**band, "fillcolor": FAINT, "line": {"width": 0}, "layer": "below"}],
            "annotations": [{**note, "xanchor": "right", "yanchor": "bottom"}],
        },
    )


def interaction_bars(top: TopInteractions, n: int = _N_BARS) -> Spec:
    """The first n interactions of a search: coefficients of z_a z_b."""
    several = len(top.output.unique()) > 1
    rows = list(top)[:n]
    names = [f"{output}: {a} × {b}" if several else f"{a} × {b}" for output, a, b, _ in rows]
    return signed_bars(names, [weight for *_, weight in rows], "coefficient of z_a z_b")


def pair_bars(pairs: PairContributions, n: int = _N_BARS) -> Spec:
    """The n pairs of input features that add most to one pre-activation."""
    names = [f"{a} × {b}" for a, b in zip(pairs.first[:n].tolist(), pairs.second[:n].tolist(), strict=True)]
    return signed_bars(names, pairs.contributions[:n].tolist(), "added to the pre-activation")


def signed_bars(names: Sequence[str], values: Sequence[float], title: str) -> Spec:
    """Horizontal bars from zero, in the order given from the top, blue where positive and orange where negative."""
    trace = {
        "type": "bar",
        "orientation": "h",
        "x": plain(list(values)),
        "y": list(range(len(names))),
        "text": [escaped(name) for name in names],
        "textposition": "none",
        "marker": {"color": [sign_colour(value) for value in values], "line": {"width": 0}},
        "hovertemplate": "%{text}: %{x:.4g}<extra></extra>",
    }
    ticks = {"tickvals": list(range(len(names))), "ticktext": [escaped(name) for name in names], "showgrid": False}
    return base_figure(
        [trace],
        130 + 20 * len(names),
        xaxis={"title": {"text": title}, "zeroline": True},
        yaxis={**ticks, "range": [len(names) - 0.4, -0.6], "zeroline": False},
    )


def ledger_map(ledger: Ledger, tokens: Sequence[str] | None = None) -> Spec:
    """Terms of a ledger: bars for one token, a heat map with their sum in the last row for several.

    Args:
        ledger: The account.
        tokens: Texts of the positions, in order; their numbers by default.

    Raises:
        ValueError: If there are no positions, or more than can be told apart.
    """
    terms = {**ledger.terms, "total": ledger.total}
    values = torch.stack([term.reshape(-1) for term in terms.values()])
    n = values.shape[1]
    if not 1 <= n <= _N_POSITIONS:
        raise ValueError(f"ledger must hold 1 to {_N_POSITIONS} positions to be drawn, got {n}. Take fewer inputs x.")
    names = [name.replace("_", " × ") for name in terms]
    if n == 1:
        return signed_bars(names, values[:, 0].tolist(), "pre-activation")
    ticks = [str(i) for i in range(n)] if tokens is None else [escaped(visible(token)) for token in tokens]
    limit = colour_limit(values.abs())
    trace = {
        "type": "heatmap",
        "x": list(range(n)),
        "y": list(range(len(names))),
        "z": short_values(values),
        **{"zmin": -limit, "zmax": limit, "zmid": 0, "colorscale": DIVERGING, "xgap": 1, "ygap": 1},
        "customdata": [[[name, tick] for tick in ticks] for name in names],
        "hovertemplate": "%{customdata[0]} at %{customdata[1]}: %{z:.4g}<extra></extra>",
        "colorbar": {"thickness": 12, "outlinewidth": 0},
    }
    line = {"type": "line", "xref": "paper", "x0": 0, "x1": 1, "y0": len(names) - 1.5, "y1": len(names) - 1.5}
    shared = {"showgrid": False, "zeroline": False}
    return base_figure(
        [trace],
        110 + 24 * len(names),
        xaxis={**shared, "tickvals": list(range(n)), "ticktext": ticks, "tickangle": -50},
        yaxis={**shared, "tickvals": list(range(len(names))), "ticktext": names, "autorange": "reversed"},
        layout={"shapes": [{**line, "line": {"color": GREY, "width": 2}}]},
    )


def correlation_boxes(result: LowRankCorrelation) -> Spec:
    """Correlations of all features at each rank: quartiles as boxes, 5 and 95 % as whiskers."""
    at = torch.tensor(_QUARTILES, dtype=torch.double)
    columns = [result.at_rank(rank).double() for rank in result.ranks]
    if not all(len(column) for column in columns):
        raise ValueError("result must hold a feature with enough active tokens to be drawn, got none.")
    parts = short_values(torch.stack([column.quantile(at) for column in columns]).T)
    keys = ("lowerfence", "q1", "median", "q3", "upperfence")
    names = [*map(str, result.ranks[:-1]), "full"]
    box = {"type": "box", "x": names, "line": {"color": POSITIVE}, **dict(zip(keys, parts, strict=True))}
    return base_figure(
        [box],
        340,
        xaxis={"title": {"text": "rank of the form"}, "type": "category", "showgrid": False},
        yaxis={"title": {"text": "correlation with the activation"}, "zeroline": True},
    )


def magnitude_histogram(statistics: InteractionStatistics) -> Spec:
    """Draw the numbers of interactions by magnitude, positive and negative ones apart, both axes logarithmic."""
    edges = statistics.edges.double()
    low, high = edges[1:-1], edges[2:]  # the first bin starts at 0, which a logarithmic axis does not have
    middle, octaves = (low * high).sqrt(), (high / low).log2()
    traces = [
        {
            "type": "scatter",
            "mode": "lines",
            "name": name,
            "x": short_values(middle),
            "y": [count or None for count in short_values(counts.sum(0)[1 : 1 + len(middle)].cpu() / octaves.cpu())],
            "line": {"color": colour, "width": 2, "dash": dash},
            "hovertemplate": name + " %{x:.3g}: %{y:.3g}<extra></extra>",
        }
        for name, colour, dash, counts in (
            ("positive", POSITIVE, "solid", statistics.positive),
            ("negative", NEGATIVE, "dot", statistics.negative),
        )
    ]
    return base_figure(
        traces,
        340,
        xaxis={"title": {"text": "magnitude of the coefficient"}, "type": "log"},
        yaxis={"title": {"text": "interactions per factor of two"}, "type": "log"},
        layout=LEGEND_ABOVE,
    )


def motif_scores(search: DiscoverySearch) -> Spec:
    """Scores of all significant features by motif: those that stand by themselves, echoes, those that never meet."""
    motifs = list(search.cutoffs)
    parts = (("discovery", search.discoveries), ("echo", search.echoes), ("inputs apart", search.apart))
    looks = ((GROUPS[0], "circle"), (GROUPS[1], "diamond"), (GREY, "x"))
    traces = [
        _motif_points(found, name, motifs, row, *look)
        for row, ((name, found), look) in enumerate(zip(parts, looks, strict=True))
    ]
    null = {"type": "scatter", "mode": "markers", "name": "99 % of the null"}
    for kind, points in search.high_scores.items():
        if kind != "layer":
            mark = {"symbol": "line-ns-open", "size": 26, "color": GREY}
            xy = {"x": plain([points[motif] for motif in motifs]), "y": list(range(len(motifs)))}
            text = {"hovertemplate": f"99 % point under {kind}: %{{x:.3f}}<extra></extra>"}
            traces.append({**null, **xy, **text, "marker": mark, "showlegend": kind == list(search.high_scores)[-1]})
    return base_figure(
        traces,
        130 + 56 * len(motifs),
        xaxis={"title": {"text": "score: cosine between form and template"}},
        yaxis={"tickvals": list(range(len(motifs))), "ticktext": motifs, "range": [len(motifs) - 0.5, -0.5]},
        layout=LEGEND_ABOVE,
    )


def _motif_points(
    found: Sequence[Discovery], name: str, motifs: list[str], row: int, colour: str, symbol: str
) -> dict[str, Any]:
    return {
        "type": "scatter",
        "mode": "markers",
        "name": f"{name} ({len(found)})",
        "x": plain([value.score for value in found]),
        "y": [motifs.index(value.motif) + 0.25 * (row - 1) for value in found],
        "text": [f"{value.name}, q = {value.q:.2g}" for value in found],
        "marker": {"color": colour, "symbol": symbol, "size": 7, "opacity": 0.7},
        "hovertemplate": "%{text}<br>score %{x:.3f}<extra></extra>",
    }
