"""Interventions on the terms of a bilinear layer: single edges, nodes, circuits and their complements, measured."""

from bilinear_circuits.circuits.target import Target
from bilinear_circuits.interactions.pairs import Pairs, pairs_of
from bilinear_circuits.interventions.ablations import circuit_ablations, dose_response, node_ablations
from bilinear_circuits.interventions.complement import complement_tests, worst_subset
from bilinear_circuits.interventions.controls import nonsense_task, other_features, other_sites
from bilinear_circuits.interventions.edges import edge_effects, edge_exactness, random_edges, top_edges
from bilinear_circuits.interventions.later import later_effects
from bilinear_circuits.interventions.proof import prove_interventions
from bilinear_circuits.interventions.results import CircuitProofs, InterventionProof, ProofSettings
from bilinear_circuits.interventions.study import prove_circuits
from bilinear_circuits.interventions.terms import Terms, terms_at

__all__ = [
    "CircuitProofs",
    "InterventionProof",
    "Pairs",
    "ProofSettings",
    "Target",
    "Terms",
    "circuit_ablations",
    "complement_tests",
    "dose_response",
    "edge_effects",
    "edge_exactness",
    "later_effects",
    "node_ablations",
    "nonsense_task",
    "other_features",
    "other_sites",
    "pairs_of",
    "prove_circuits",
    "prove_interventions",
    "random_edges",
    "terms_at",
    "top_edges",
    "worst_subset",
]
