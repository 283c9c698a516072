"""Figures of the feature report that no other report has; in the style of `bilinear_circuits.report.figures`."""

from dataclasses import replace

from bilinear_circuits.interactions.examples import Histogram, evenly
from bilinear_circuits.interactions.profiles import FeatureProfile
from bilinear_circuits.report.figures import (
    ACTIVATION,
    Spec,
    base_figure,
    interaction_heatmap,
    rank2_scatter,
    spectrum_bars,
)

_N_POINTS = 200


def activation_histogram(histogram: Histogram) -> Spec:
    """Number of active tokens by activation, on a logarithmic scale: strong activations are few."""
    width = (histogram.high - histogram.low) / max(1, len(histogram.counts))
    bars = {
        "type": "bar",
        "x0": histogram.low + width / 2,
        "dx": width,
        "y": [count or None for count in histogram.counts],
        "marker": {"color": ACTIVATION, "line": {"width": 0}},
        "hovertemplate": "activation about %{x:.3g}: %{y} tokens<extra></extra>",
    }
    return base_figure(
        [bars],
        280,
        xaxis={"title": {"text": "activation"}, "showgrid": False},
        yaxis={"title": {"text": "tokens (log)"}, "type": "log", "dtick": 1},
        layout={"bargap": 0.06},
    )


def form_figures(profile: FeatureProfile) -> dict[str, Spec]:
    """Interactions of the two groups, spectrum and scatter of one output feature, small enough for thousands of pages.

    At most 200 points are drawn, and the names of the input features are written once.
    """
    sample = evenly(len(profile.actual), _N_POINTS)
    fewer = replace(profile, predicted=profile.predicted[sample], actual=profile.actual[sample])
    return {
        "heatmap": _named_once(interaction_heatmap(profile)),
        "spectrum": spectrum_bars(profile),
        "scatter": rank2_scatter(fewer),
    }


def _named_once(heatmap: Spec) -> Spec:
    """A heat map whose cells are named by the categories of its axes, instead of a table of names for all cells."""
    (trace,), layout = heatmap["data"], heatmap["layout"]
    names = [row[0][0] for row in trace.pop("customdata")]
    trace |= {"x": names, "y": names, "hovertemplate": "a: %{y}<br>b: %{x}<br>T_ab = %{z:.4g}<extra></extra>"}
    for axis in (layout["xaxis"], layout["yaxis"]):
        axis |= {"type": "category"}
    return heatmap
