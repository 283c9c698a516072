"""Circuits found without a query: motifs of all output features, with nulls and error control."""

from bilinear_circuits.discovery.interference import Interference, interference
from bilinear_circuits.discovery.motifs import MOTIFS, Motif, MotifScores, motif_scores
from bilinear_circuits.discovery.nulls import NULLS, Null, randomised_layer, refitted_encoders
from bilinear_circuits.discovery.pairs import PlanePair, plane_pairs
from bilinear_circuits.discovery.planted import PlantedCircuit, PlantedLayer, PlantedSettings, plant
from bilinear_circuits.discovery.results import Block, Discovery, DiscoverySearch, DiscoverySettings
from bilinear_circuits.discovery.scoring import LayerScores, score_layer
from bilinear_circuits.discovery.search import discover
from bilinear_circuits.interactions.activity import FeatureActivity
from bilinear_circuits.statistics.false_discovery import benjamini_hochberg, empirical_p_values, q_values

__all__ = [
    "MOTIFS",
    "NULLS",
    "Block",
    "Discovery",
    "DiscoverySearch",
    "DiscoverySettings",
    "FeatureActivity",
    "Interference",
    "LayerScores",
    "Motif",
    "MotifScores",
    "Null",
    "PlanePair",
    "PlantedCircuit",
    "PlantedLayer",
    "PlantedSettings",
    "benjamini_hochberg",
    "discover",
    "empirical_p_values",
    "interference",
    "motif_scores",
    "plane_pairs",
    "plant",
    "q_values",
    "randomised_layer",
    "refitted_encoders",
    "score_layer",
]
