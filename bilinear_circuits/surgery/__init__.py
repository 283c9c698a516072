"""Weight surgery: circuits removed, scaled or inverted by extra neurons, and what that does to the model."""

from bilinear_circuits.surgery.edits import FormEdit, edit_model, edited_tensor, plain_llama
from bilinear_circuits.surgery.measure import EditReport, measure_edit

__all__ = ["EditReport", "FormEdit", "edit_model", "edited_tensor", "measure_edit", "plain_llama"]
