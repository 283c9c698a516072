"""Results in notebooks: a small table for each, and its figures as plotly objects.

Analyses reach this package by name alone (`bilinear_circuits.utilities.display`). What a class shows, draws and lists
is registered with the functions of `dispatch`, so that a class of one's own can be added.
"""

from bilinear_circuits.report.notebook import algebra, circuits, columns, discovery, measured, paths
from bilinear_circuits.report.notebook.dispatch import columns_of, figure_of, figures_of, frame_of, html_of

__all__ = [
    "algebra",
    "circuits",
    "columns",
    "columns_of",
    "discovery",
    "figure_of",
    "figures_of",
    "frame_of",
    "html_of",
    "measured",
    "paths",
]
