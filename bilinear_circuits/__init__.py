"""Read circuits of language models with bilinear MLPs out of their weights, exactly.

Names are loaded when first used, so that importing the package costs nothing: no torch, no TransformerLens.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from bilinear_circuits.activity import LayerActivity, collect_activity
    from bilinear_circuits.attribution import attribute_prompt
    from bilinear_circuits.circuits import CircuitQuery, CircuitSearch, SearchSettings, find_circuits
    from bilinear_circuits.corpora import read_stories
    from bilinear_circuits.data import StoryTokens, tokenize_stories
    from bilinear_circuits.dictionaries import Dictionary, UnsupportedSAEError
    from bilinear_circuits.discovery import FeatureActivity, discover
    from bilinear_circuits.hooked import BilinearMLP, NotBilinearError
    from bilinear_circuits.interactions import FeatureInteractions
    from bilinear_circuits.ledger import Ledger
    from bilinear_circuits.lowrank import LowRankCorrelation, low_rank_correlation
    from bilinear_circuits.matrix import InteractionMatrix
    from bilinear_circuits.naming import feature_label, input_label
    from bilinear_circuits.profiles import FeatureProfile, profile_feature
    from bilinear_circuits.prompts import explain_prompt, prompt_tokens
    from bilinear_circuits.running import context_length, unembedding
    from bilinear_circuits.saving import load_result, save_result
    from bilinear_circuits.similarity import layer_similarity, quadratic_form_similarity
    from bilinear_circuits.spectra import Spectrum
    from bilinear_circuits.surgery import FormEdit, edit_model
    from bilinear_circuits.surgery.weights import check_weights
    from bilinear_circuits.tensor import InteractionTensor, QuadraticForm
    from bilinear_circuits.zoo import corpus_path, load_dictionaries, load_model

__version__ = "0.1.0"

_HOME = {
    "BilinearMLP": "hooked",
    "CircuitQuery": "circuits",
    "CircuitSearch": "circuits",
    "Dictionary": "dictionaries",
    "FeatureActivity": "discovery",
    "FeatureInteractions": "interactions",
    "FeatureProfile": "profiles",
    "FormEdit": "surgery",
    "InteractionMatrix": "matrix",
    "InteractionTensor": "tensor",
    "LayerActivity": "activity",
    "Ledger": "ledger",
    "LowRankCorrelation": "lowrank",
    "NotBilinearError": "hooked",
    "QuadraticForm": "tensor",
    "SearchSettings": "circuits",
    "Spectrum": "spectra",
    "StoryTokens": "data",
    "UnsupportedSAEError": "dictionaries",
    "attribute_prompt": "attribution",
    "check_weights": "surgery.weights",
    "collect_activity": "activity",
    "context_length": "running",
    "corpus_path": "zoo",
    "discover": "discovery",
    "edit_model": "surgery",
    "explain_prompt": "prompts",
    "feature_label": "naming",
    "find_circuits": "circuits",
    "input_label": "naming",
    "layer_similarity": "similarity",
    "load_dictionaries": "zoo",
    "load_model": "zoo",
    "load_result": "saving",
    "low_rank_correlation": "lowrank",
    "profile_feature": "profiles",
    "prompt_tokens": "prompts",
    "quadratic_form_similarity": "similarity",
    "read_stories": "corpora",
    "save_result": "saving",
    "tokenize_stories": "data",
    "unembedding": "running",
}

__all__ = [
    "BilinearMLP",
    "CircuitQuery",
    "CircuitSearch",
    "Dictionary",
    "FeatureActivity",
    "FeatureInteractions",
    "FeatureProfile",
    "FormEdit",
    "InteractionMatrix",
    "InteractionTensor",
    "LayerActivity",
    "Ledger",
    "LowRankCorrelation",
    "NotBilinearError",
    "QuadraticForm",
    "SearchSettings",
    "Spectrum",
    "StoryTokens",
    "UnsupportedSAEError",
    "attribute_prompt",
    "check_weights",
    "collect_activity",
    "context_length",
    "corpus_path",
    "discover",
    "edit_model",
    "explain_prompt",
    "feature_label",
    "find_circuits",
    "input_label",
    "layer_similarity",
    "load_dictionaries",
    "load_model",
    "load_result",
    "low_rank_correlation",
    "profile_feature",
    "prompt_tokens",
    "quadratic_form_similarity",
    "read_stories",
    "save_result",
    "tokenize_stories",
    "unembedding",
]


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_HOME[name]}"), name)


def __dir__() -> list[str]:
    return [*__all__, "__version__"]
