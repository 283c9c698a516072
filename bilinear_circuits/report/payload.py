"""Results as a JSON document: complete, with null where a number could not be measured."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

import torch

from bilinear_circuits.circuits.prove import CausalProof, Effect
from bilinear_circuits.circuits.rank import Evidence
from bilinear_circuits.circuits.search import Circuit, CircuitSearch
from bilinear_circuits.interactions.examples import Example
from bilinear_circuits.interactions.profiles import FeatureProfile
from bilinear_circuits.report.verdict import verdict

SCHEMA_VERSION = 2
N_EIGENVALUES = 32
_DIGITS = 7  # what float32 holds


def search_payload(search: CircuitSearch, provenance: Mapping[str, Any]) -> dict[str, Any]:
    """The answer to a query as a JSON document.

    Args:
        search: The answer.
        provenance: What it was computed with: model, dictionaries, corpus, versions. Kept as it is.

    Returns:
        Dictionaries, lists, strings and finite numbers only; NaN and infinities become None.
    """
    document = {
        "schema_version": SCHEMA_VERSION,
        "kind": "circuit search",
        "query": asdict(search.query),
        "missing": search.missing,
        "settings": asdict(search.settings),
        "seed": search.seed,
        "provenance": provenance,
        "n_tokens": search.n_tokens,
        "n_trigger_tokens": search.n_trigger_tokens,
        "n_sites": search.n_sites,
        "ranking": [_evidence(evidence) for evidence in search.ranking],
        "circuits": [_circuit(circuit) for circuit in search.circuits],
        "decoder_cosine": search.decoder_cosine,
    }
    return plain(document)


def profile_payload(
    profile: FeatureProfile, provenance: Mapping[str, Any], n_eigenvalues: int = N_EIGENVALUES
) -> dict[str, Any]:
    """One output feature as a JSON document.

    Args:
        profile: The feature.
        provenance: What it was computed with.
        n_eigenvalues: Leading eigenvalues listed.
    """
    document = {
        "schema_version": SCHEMA_VERSION,
        "kind": "feature profile",
        "provenance": provenance,
        "profile": _profile(profile, n_eigenvalues),
    }
    return plain(document)


def plain(value: Any) -> Any:
    """A value in JSON's own types: tensors as lists, floats to seven significant digits, None where not finite.

    Raises:
        TypeError: If there is something JSON has no type for.
    """
    if isinstance(value, torch.Tensor):
        return plain(value.tolist())
    if isinstance(value, Mapping):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, Sequence) and not isinstance(value, str):
        return [plain(item) for item in value]
    if isinstance(value, float):
        return float(f"{value:.{_DIGITS}g}") if math.isfinite(value) else None
    if value is None or isinstance(value, bool | int | str):
        return value
    raise TypeError(f"value must be made of JSON types or tensors, got a {type(value).__name__}. Convert it first.")


def _evidence(evidence: Evidence) -> dict[str, Any]:
    return {"name": evidence.name, "sign": evidence.sign, **asdict(evidence)}


def _circuit(circuit: Circuit) -> dict[str, Any]:
    return {
        "name": circuit.evidence.name,
        "verdict": asdict(verdict(circuit.proof, circuit.evidence.sign)),
        "evidence": _evidence(circuit.evidence),
        "profile": _profile(circuit.profile, N_EIGENVALUES),
        "proof": _proof(circuit.proof),
    }


def _proof(proof: CausalProof) -> dict[str, Any]:
    effects = {name: _effect(one) for name, one in vars(proof).items() if isinstance(one, Effect)}
    controls = {
        name: [{**asdict(one), "effect": _effect(one.effect)} for one in getattr(proof, name)]
        for name in ("controls", "trigger_controls")
    }
    numbers = {"rank": proof.rank, "p_value": proof.p_value, "ce_base": proof.ce_base}
    return {**numbers, **effects, **controls}


def _effect(effect: Effect) -> dict[str, Any]:
    return {**asdict(effect), "excludes_zero": effect.excludes_zero}


def _profile(profile: FeatureProfile, n_eigenvalues: int) -> dict[str, Any]:
    spectrum = profile.spectrum
    return {
        "name": f"{profile.layer}/{profile.feature}",
        "layer": profile.layer,
        "feature": profile.feature,
        "label": profile.label,
        "frequency": profile.frequency,
        "top_tokens": profile.top_tokens,
        "promoted": [{"token": token, "logit": logit} for token, logit in profile.promoted],
        "suppressed": [{"token": token, "logit": logit} for token, logit in profile.suppressed],
        "eigenvalues": spectrum.eigenvalues[:n_eigenvalues],
        "frobenius_norm": spectrum.frobenius_norm,
        "semicircle_edge": spectrum.semicircle_edge(),
        "effective_rank": spectrum.effective_rank(),
        "outliers": spectrum.outliers(),
        "and_shape": profile.shape.score,
        "groups": _groups(profile),
        "block": profile.shape.block,
        "eigenvectors": [
            [{"feature": feature, "label": label, "projection": value} for feature, label, value in column]
            for column in profile.eigenvector_labels
        ],
        "rank2_correlation": profile.rank2_correlation,
        "predicted": profile.predicted,
        "actual": profile.actual,
        "terms": profile.terms,
        "completeness": profile.completeness,
        "examples": [_example(example) for example in profile.examples],
    }


def _groups(profile: FeatureProfile) -> dict[str, list[dict[str, Any]]]:
    """The members of both groups, in the order of the rows of the block."""
    shape = profile.shape
    members = [
        {"feature": feature, "label": label, "usage": usage, "projection": profile.projections[feature]}
        for feature, label, usage in zip(
            torch.cat([shape.first, shape.second]).tolist(), profile.input_labels, shape.usage.tolist(), strict=True
        )
    ]
    return {"first": members[: len(shape.first)], "second": members[len(shape.first) :]}


def _example(example: Example) -> dict[str, Any]:
    return asdict(example)
