"""Circuits found by a query and proved by intervention."""

from bilinear_circuits.circuits.prove import CausalProof, Control
from bilinear_circuits.circuits.query import CircuitQuery, QueryTokens
from bilinear_circuits.circuits.rank import Evidence
from bilinear_circuits.circuits.search import Circuit, CircuitSearch, find_circuits
from bilinear_circuits.circuits.settings import SearchSettings
from bilinear_circuits.circuits.target import Searched, Target
from bilinear_circuits.interactions.shape import AndShape
from bilinear_circuits.statistics.effects import Effect

__all__ = [
    "AndShape",
    "CausalProof",
    "Circuit",
    "CircuitQuery",
    "CircuitSearch",
    "Control",
    "Effect",
    "Evidence",
    "QueryTokens",
    "SearchSettings",
    "Searched",
    "Target",
    "find_circuits",
]
