"""Figures of results, as plain dictionaries in plotly's JSON form: pure functions of the results.

`plotly.graph_objects.Figure(spec)` turns one into a plotly object; pages, notebooks and images are made from the same
dictionaries. Dictionaries, because plotly's own objects check themselves anew at every step: a report of thousands of
features would spend most of its time there.

Plotly reads a small HTML of its own in every text it draws, so tokens are escaped before they go in. Colours that
depend on a light or a dark page are set by the page; here the background is transparent and the rest mid-grey.
"""

from bilinear_circuits.report.figures.base import (
    ACTIVATION,
    DIVERGING,
    FAINT,
    GREY,
    GROUPS,
    LEADER,
    NEGATIVE,
    NEUTRAL,
    POSITIVE,
    Spec,
    base_figure,
    colour_limit,
    escaped,
    short_values,
    sign_colour,
)
from bilinear_circuits.report.figures.feature import (
    eigenvector_plane,
    feature_figures,
    interaction_heatmap,
    rank2_scatter,
    spectrum_bars,
)
from bilinear_circuits.report.figures.forest import effect_forest, search_figures

__all__ = [
    "ACTIVATION",
    "DIVERGING",
    "FAINT",
    "GREY",
    "GROUPS",
    "LEADER",
    "NEGATIVE",
    "NEUTRAL",
    "POSITIVE",
    "Spec",
    "base_figure",
    "colour_limit",
    "effect_forest",
    "eigenvector_plane",
    "escaped",
    "feature_figures",
    "interaction_heatmap",
    "rank2_scatter",
    "search_figures",
    "short_values",
    "sign_colour",
    "spectrum_bars",
]
