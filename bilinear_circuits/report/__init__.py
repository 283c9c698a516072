"""Results as a JSON document and as one self-contained HTML file. Nothing here reads or writes the user's files."""

from bilinear_circuits.report.figures import (
    effect_forest,
    eigenvector_plane,
    feature_figures,
    interaction_heatmap,
    rank2_scatter,
    search_figures,
    spectrum_bars,
)
from bilinear_circuits.report.html import circuits_page, feature_page
from bilinear_circuits.report.payload import SCHEMA_VERSION, profile_payload, search_payload
from bilinear_circuits.report.verdict import Verdict, verdict

__all__ = [
    "SCHEMA_VERSION",
    "Verdict",
    "circuits_page",
    "effect_forest",
    "eigenvector_plane",
    "feature_figures",
    "feature_page",
    "interaction_heatmap",
    "profile_payload",
    "rank2_scatter",
    "search_figures",
    "search_payload",
    "spectrum_bars",
    "verdict",
]
