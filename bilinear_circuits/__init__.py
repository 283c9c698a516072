"""Read circuits of language models with bilinear MLPs out of their weights, exactly.

Names are loaded when first used, so that importing the package costs nothing: no torch, no TransformerLens.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from bilinear_circuits.circuits import CircuitQuery, CircuitSearch, find_circuits
    from bilinear_circuits.dictionaries import Dictionary, UnsupportedSAEError
    from bilinear_circuits.discovery import discover
    from bilinear_circuits.hooked import BilinearMLP, NotBilinearError
    from bilinear_circuits.interactions import FeatureInteractions
    from bilinear_circuits.ledger import Ledger
    from bilinear_circuits.lowrank import LowRankCorrelation, low_rank_correlation
    from bilinear_circuits.matrix import InteractionMatrix
    from bilinear_circuits.saving import load_result, save_result
    from bilinear_circuits.similarity import layer_similarity, quadratic_form_similarity
    from bilinear_circuits.spectra import Spectrum
    from bilinear_circuits.tensor import InteractionTensor, QuadraticForm
    from bilinear_circuits.zoo import load_dictionaries, load_model

__version__ = "0.1.0"

_HOME = {
    "BilinearMLP": "hooked",
    "CircuitQuery": "circuits",
    "CircuitSearch": "circuits",
    "Dictionary": "dictionaries",
    "FeatureInteractions": "interactions",
    "InteractionMatrix": "matrix",
    "InteractionTensor": "tensor",
    "Ledger": "ledger",
    "LowRankCorrelation": "lowrank",
    "NotBilinearError": "hooked",
    "QuadraticForm": "tensor",
    "Spectrum": "spectra",
    "UnsupportedSAEError": "dictionaries",
    "discover": "discovery",
    "find_circuits": "circuits",
    "layer_similarity": "similarity",
    "load_dictionaries": "zoo",
    "load_model": "zoo",
    "load_result": "saving",
    "low_rank_correlation": "lowrank",
    "quadratic_form_similarity": "similarity",
    "save_result": "saving",
}

__all__ = [
    "BilinearMLP",
    "CircuitQuery",
    "CircuitSearch",
    "Dictionary",
    "FeatureInteractions",
    "InteractionMatrix",
    "InteractionTensor",
    "Ledger",
    "LowRankCorrelation",
    "NotBilinearError",
    "QuadraticForm",
    "Spectrum",
    "UnsupportedSAEError",
    "discover",
    "find_circuits",
    "layer_similarity",
    "load_dictionaries",
    "load_model",
    "load_result",
    "low_rank_correlation",
    "quadratic_form_similarity",
    "save_result",
]


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_HOME[name]}"), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
