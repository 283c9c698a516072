"""Pages of the results that other verbs bring back: proofs, discoveries, edits and comparisons of circuits."""

from bilinear_circuits.report.pages.discovery import discovery_page
from bilinear_circuits.report.pages.proof import proof_page

__all__ = ["discovery_page", "proof_page"]
