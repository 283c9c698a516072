"""Edits that take a feature out of an MLP output."""

from bilinear_circuits.algebra.spectra import Spectrum
from bilinear_circuits.interactions.feature_interactions import FeatureInteractions
from bilinear_circuits.runs import Edit


def removal_edit(interactions: FeatureInteractions, feature: int, spectrum: Spectrum) -> Edit:
    """Make an edit that subtracts the form of a (truncated) spectrum along the feature's decoder row."""
    row = interactions.sae_out.W_dec[feature]
    return lambda x, y: (-spectrum(x.to(row.dtype)).unsqueeze(-1) * row).to(y.dtype)


def ablation_edit(interactions: FeatureInteractions, feature: int) -> Edit:
    """Make an edit that subtracts the feature's own contribution z_f d_f."""
    row = interactions.sae_out.W_dec[feature]
    return lambda x, y: (-interactions.sae_out.encode(y.to(row.dtype))[..., feature].unsqueeze(-1) * row).to(y.dtype)
