"""Results in notebooks: a small table for each, and its figures as plotly objects.

Analyses reach this package by name alone (`bilinear_circuits.display`). What a class shows and draws is registered with
the two functions of `dispatch`, so that a class of one's own can be added.
"""

from bilinear_circuits.report.notebook import algebra, circuits, discovery
from bilinear_circuits.report.notebook.dispatch import figure_of, figures_of, html_of

__all__ = ["algebra", "circuits", "discovery", "figure_of", "figures_of", "html_of"]
