"""Reruns of a model with MLP outputs changed, and a metric read off its logits: the one measuring device."""

from bilinear_circuits.runs.edits import Edit
from bilinear_circuits.runs.metrics import CrossEntropy, Metric
from bilinear_circuits.runs.runs import Runs, measure
from bilinear_circuits.runs.sites import Sites

__all__ = ["CrossEntropy", "Edit", "Metric", "Runs", "Sites", "measure"]
