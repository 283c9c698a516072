"""Read circuits of language models with bilinear MLPs out of their weights, exactly.

Names are loaded when first used, so that importing the package costs nothing: no torch, no TransformerLens.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from bilinear_circuits.algebra.layer_fits import TranscoderSettings
    from bilinear_circuits.algebra.matrix import InteractionMatrix
    from bilinear_circuits.algebra.similarity import layer_similarity, quadratic_form_similarity
    from bilinear_circuits.algebra.spectra import Spectrum
    from bilinear_circuits.algebra.tensor import InteractionTensor, QuadraticForm
    from bilinear_circuits.circuits import CircuitQuery, CircuitSearch, SearchSettings, find_circuits
    from bilinear_circuits.data.corpora import read_stories
    from bilinear_circuits.data.stories import StoryTokens, tokenize_stories
    from bilinear_circuits.dictionaries.dictionary import Dictionary
    from bilinear_circuits.dictionaries.folding import UnsupportedSAEError
    from bilinear_circuits.discovery import discover
    from bilinear_circuits.interactions.activity import FeatureActivity, LayerActivity, collect_activity
    from bilinear_circuits.interactions.cubic_interactions import CubicInteractions
    from bilinear_circuits.interactions.feature_interactions import FeatureInteractions
    from bilinear_circuits.interactions.ledger import Ledger
    from bilinear_circuits.interactions.low_rank import LowRankCorrelation, low_rank_correlation
    from bilinear_circuits.interactions.naming import feature_label, input_label
    from bilinear_circuits.interactions.profiles import FeatureProfile, profile_feature
    from bilinear_circuits.interventions import CircuitProofs, ProofSettings, prove_circuits
    from bilinear_circuits.interventions.agreement import removal_agreement
    from bilinear_circuits.models.bilinear_mlp import BilinearMLP, NotBilinearError
    from bilinear_circuits.models.directions import logit_directions, neuron_directions, token_directions
    from bilinear_circuits.models.gated_mlp import GatedMLP
    from bilinear_circuits.models.running import context_length, unembedding
    from bilinear_circuits.paths.account import PathAccount
    from bilinear_circuits.paths.attention import AttentionHead
    from bilinear_circuits.paths.heads import HeadTable
    from bilinear_circuits.paths.nodes import Node
    from bilinear_circuits.paths.removal import Pair
    from bilinear_circuits.paths.run import FrozenRun
    from bilinear_circuits.prompts.accounts import explain_prompt, prompt_tokens
    from bilinear_circuits.prompts.attribution import attribute_prompt
    from bilinear_circuits.runs.replacement import measure_replacements, mlp_inputs
    from bilinear_circuits.surgery import FormEdit, edit_model
    from bilinear_circuits.surgery.bilinear_llama import bilinear_llama
    from bilinear_circuits.surgery.weights import check_weights
    from bilinear_circuits.utilities.feature import Feature
    from bilinear_circuits.utilities.saving import load_result, save_result
    from bilinear_circuits.workspace import Workspace
    from bilinear_circuits.zoo import corpus_path, load_dictionaries, load_model

__version__ = "0.1.0"

_HOME = {
    "AttentionHead": "paths.attention",
    "BilinearMLP": "models.bilinear_mlp",
    "CircuitProofs": "interventions",
    "CircuitQuery": "circuits",
    "CircuitSearch": "circuits",
    "CubicInteractions": "interactions.cubic_interactions",
    "Dictionary": "dictionaries.dictionary",
    "Feature": "utilities.feature",
    "FeatureActivity": "interactions.activity",
    "FeatureInteractions": "interactions.feature_interactions",
    "FeatureProfile": "interactions.profiles",
    "FormEdit": "surgery",
    "FrozenRun": "paths.run",
    "GatedMLP": "models.gated_mlp",
    "HeadTable": "paths.heads",
    "InteractionMatrix": "algebra.matrix",
    "InteractionTensor": "algebra.tensor",
    "LayerActivity": "interactions.activity",
    "Ledger": "interactions.ledger",
    "LowRankCorrelation": "interactions.low_rank",
    "Node": "paths.nodes",
    "NotBilinearError": "models.bilinear_mlp",
    "Pair": "paths.removal",
    "PathAccount": "paths.account",
    "ProofSettings": "interventions",
    "QuadraticForm": "algebra.tensor",
    "SearchSettings": "circuits",
    "Spectrum": "algebra.spectra",
    "StoryTokens": "data.stories",
    "TranscoderSettings": "algebra.layer_fits",
    "UnsupportedSAEError": "dictionaries.folding",
    "Workspace": "workspace",
    "attribute_prompt": "prompts.attribution",
    "bilinear_llama": "surgery.bilinear_llama",
    "check_weights": "surgery.weights",
    "collect_activity": "interactions.activity",
    "context_length": "models.running",
    "corpus_path": "zoo",
    "discover": "discovery",
    "edit_model": "surgery",
    "explain_prompt": "prompts.accounts",
    "feature_label": "interactions.naming",
    "find_circuits": "circuits",
    "input_label": "interactions.naming",
    "layer_similarity": "algebra.similarity",
    "load_dictionaries": "zoo",
    "load_model": "zoo",
    "load_result": "utilities.saving",
    "logit_directions": "models.directions",
    "low_rank_correlation": "interactions.low_rank",
    "measure_replacements": "runs.replacement",
    "mlp_inputs": "runs.replacement",
    "neuron_directions": "models.directions",
    "profile_feature": "interactions.profiles",
    "prompt_tokens": "prompts.accounts",
    "prove_circuits": "interventions",
    "quadratic_form_similarity": "algebra.similarity",
    "read_stories": "data.corpora",
    "removal_agreement": "interventions.agreement",
    "save_result": "utilities.saving",
    "token_directions": "models.directions",
    "tokenize_stories": "data.stories",
    "unembedding": "models.running",
}

__all__ = [
    "AttentionHead",
    "BilinearMLP",
    "CircuitProofs",
    "CircuitQuery",
    "CircuitSearch",
    "CubicInteractions",
    "Dictionary",
    "Feature",
    "FeatureActivity",
    "FeatureInteractions",
    "FeatureProfile",
    "FormEdit",
    "FrozenRun",
    "GatedMLP",
    "HeadTable",
    "InteractionMatrix",
    "InteractionTensor",
    "LayerActivity",
    "Ledger",
    "LowRankCorrelation",
    "Node",
    "NotBilinearError",
    "Pair",
    "PathAccount",
    "ProofSettings",
    "QuadraticForm",
    "SearchSettings",
    "Spectrum",
    "StoryTokens",
    "TranscoderSettings",
    "UnsupportedSAEError",
    "Workspace",
    "attribute_prompt",
    "bilinear_llama",
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
    "logit_directions",
    "low_rank_correlation",
    "measure_replacements",
    "mlp_inputs",
    "neuron_directions",
    "profile_feature",
    "prompt_tokens",
    "prove_circuits",
    "quadratic_form_similarity",
    "read_stories",
    "removal_agreement",
    "save_result",
    "token_directions",
    "tokenize_stories",
    "unembedding",
]


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_HOME[name]}"), name)


def __dir__() -> list[str]:
    return [*__all__, "__version__"]
