"""Results as columns: the tables that verbs write to files, and the frames of `.to_pandas()`."""

from dataclasses import asdict, fields
from typing import Any

from bilinear_circuits.circuits.rank import Evidence
from bilinear_circuits.circuits.search import CircuitSearch
from bilinear_circuits.discovery.results import DiscoverySearch
from bilinear_circuits.interactions.low_rank import LowRankCorrelation
from bilinear_circuits.report.notebook.dispatch import columns_of
from bilinear_circuits.sweep import InteractionStatistics, TopInteractions

Columns = dict[str, list[Any]]


@columns_of.register
def _(top: TopInteractions) -> Columns:
    """One row for each interaction, in the order of the search."""
    names = {"output": top.output, "first": top.first, "second": top.second, "weight": top.weights, "score": top.scores}
    return {name: column.tolist() for name, column in names.items()}


@columns_of.register
def _(result: InteractionStatistics) -> Columns:
    """One row for each output feature: moments of its coefficients."""
    moments = {"mean": result.mean, "variance": result.variance, "kurtosis": result.kurtosis}
    return {"output": result.outputs.tolist(), **{name: column.tolist() for name, column in moments.items()}}


@columns_of.register
def _(result: LowRankCorrelation) -> Columns:
    """One row for each output feature: its correlation at every rank, nothing where it was left out."""
    columns: Columns = {"feature": result.features.tolist(), "n_active": result.n_active.tolist()}
    for rank, correlation in zip(result.ranks, result.correlation.T.tolist(), strict=True):
        columns[f"rank_{rank}"] = correlation
    return columns


@columns_of.register
def _(search: CircuitSearch) -> Columns:
    """One row for each feature that was scored in full, best first; eigenvalues are left out."""
    rows = [{"name": evidence.name, "sign": evidence.sign, **asdict(evidence)} for evidence in search.ranking]
    names = ["name", "sign", *(field.name for field in fields(Evidence) if field.name != "eigenvalues")]
    return {name: [row[name] for row in rows] for name in names}


@columns_of.register
def _(search: DiscoverySearch) -> Columns:
    """One row for each significant feature: discoveries, then echoes, then those whose inputs stay apart."""
    parts = {"discovery": search.discoveries, "echo": search.echoes, "apart": search.apart}
    rows = [(status, discovery) for status, part in parts.items() for discovery in part]
    columns: Columns = {name: [getattr(one, name) for _, one in rows] for name in ("layer", "feature")}
    columns["status"] = [status for status, _ in rows]
    for name in ("motif", "score", "corrected", "p", "q", "echo_of"):
        columns[name] = [getattr(one, name) for _, one in rows]
    return columns
