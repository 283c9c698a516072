"""Pages of the results that other verbs bring back: proofs, discoveries, edits, comparisons, prompt graphs, heads."""

from bilinear_circuits.report.pages.comparison import comparison_page
from bilinear_circuits.report.pages.discovery import discovery_page
from bilinear_circuits.report.pages.edit import edit_page
from bilinear_circuits.report.pages.heads import heads_page, why_page
from bilinear_circuits.report.pages.paths import paths_page
from bilinear_circuits.report.pages.proof import proof_page

__all__ = [
    "comparison_page",
    "discovery_page",
    "edit_page",
    "heads_page",
    "paths_page",
    "proof_page",
    "why_page",
]
