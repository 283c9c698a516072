"""What verbs measure of circuits, in notebooks: their proofs, an edit of the weights, circuits looked for elsewhere."""

import math
from collections.abc import Mapping
from dataclasses import fields
from typing import Any

from markupsafe import Markup

from bilinear_circuits.comparison.stability import StabilityTable
from bilinear_circuits.interventions.results import CircuitProofs, InterventionProof
from bilinear_circuits.report.figures import Spec
from bilinear_circuits.report.figures.edges import edge_scatter
from bilinear_circuits.report.figures.forest import edit_forest, return_dots
from bilinear_circuits.report.notebook.columns import Columns
from bilinear_circuits.report.notebook.dispatch import columns_of, drawn, shown
from bilinear_circuits.report.notebook.fragments import effect, table
from bilinear_circuits.report.text import number, signed
from bilinear_circuits.statistics.effects import Effect
from bilinear_circuits.surgery.measure import EditReport

EFFECTS_ARE = "effects: changes of logit(positive words) − logit(negative words), in nats"


@shown.register
def _(proof: InterventionProof) -> Markup:
    rows = [(name.replace("_", " "), effect(one)) for name, one in effects_in(proof.places).items()]
    notes = [EFFECTS_ARE, f"{len(proof.edges.first)} edges, {proof.n_active} of {proof.n_sites} sites active"]
    title = f"Edges of {proof.name} removed, by place"
    parts = Markup("<div>{}{}</div>")
    return parts.format(table(title, ("place", "mean [95 % interval]"), rows, notes), shown(proof.explained))


@shown.register
def _(proofs: CircuitProofs) -> Markup:
    rows = [
        (proof.name, f"{proof.n_active} of {proof.n_sites}", effect(proof.places.site), *_shares(proof), _p(proof))
        for proof in proofs.proofs
    ]
    header = ("circuit", "active at", "its edges removed", "lost without", "kept alone", "p of random poles")
    notes = [EFFECTS_ARE, *(f"{name} was not tested: {why}" for name, why in proofs.untested.items())]
    return table(f"Proofs of circuits: {proofs.query.name}", header, rows, notes)


def _shares(one: InterventionProof) -> tuple[str, str]:
    own = one.complement.sets[0]
    return effect(own.lost), effect(own.kept)


def _p(one: InterventionProof) -> str:
    return number(one.nonsense.p_value)


@drawn.register
def _(proofs: CircuitProofs) -> dict[str, Spec]:
    if not proofs.proofs:
        raise ValueError("proofs must hold at least one to be drawn, got none.")
    return {"edges": edge_scatter(proofs.proofs, proofs.labels)}


@columns_of.register
def _(proofs: CircuitProofs) -> Columns:
    """One row for each edge measured alone, circuit by circuit."""
    columns: Columns = {name: [] for name in ("circuit", "first", "second", "kind", "weight", "predicted", "measured")}
    for proof in proofs.proofs:
        effects = proof.effects
        columns["circuit"] += [proof.name] * len(effects.first)
        columns["kind"] += effects.kind
        for name in ("first", "second", "weight"):
            columns[name] += getattr(effects, name).tolist()
        for name in ("predicted", "measured"):
            columns[name] += getattr(effects, name).mean(1).tolist()
    return columns


@shown.register
def _(report: EditReport) -> Markup:
    rows = [(name.replace("_", " "), effect(one)) for name, one in effects_in(report).items()]
    rows += [(f"{feature.name} alone, times {feature.factor:g}", effect(feature.effect)) for feature in report.features]
    return table(f"Edit of {len(report.edits)} features", ("", "mean [95 % interval]"), rows, [EFFECTS_ARE])


@drawn.register
def _(report: EditReport) -> dict[str, Spec]:
    return {"forest": edit_forest(report)}


@columns_of.register
def _(report: EditReport) -> Columns:
    """One row for each effect: of the edit, of each feature alone, at each rank, of each set of controls."""
    rows = [
        *effects_in(report).items(),
        *((f"{feature.name} times {feature.factor:g} alone", feature.effect) for feature in report.features),
        *((f"rank {rank.rank}", rank.effect) for rank in report.ranks),
        *((f"controls {', '.join(control.names)}", control.effect) for control in report.controls),
        *(
            (f"controls at triggers {', '.join(trigger_control.names)}", trigger_control.effect)
            for trigger_control in report.trigger_controls
        ),
    ]
    columns: Columns = {"what": [name for name, _ in rows]}
    return columns | {name: [getattr(one, name) for _, one in rows] for name in ("mean", "low", "high", "n")}


@shown.register
def _(result: StabilityTable) -> Markup:
    rows = [
        (
            comparison.second,
            match.circuit,
            match.match,
            "yes" if match.returns else "no",
            signed(match.likeness.activation, 2),
            number(match.p_value, 2),
        )
        for comparison in result.comparisons
        for match in comparison.matches
    ]
    header = ("in", "circuit", "best match", "returns", "correlation of activations", "p")
    notes = [
        f"{comparison.n_returned} of {len(comparison.matches)} return in {comparison.second}"
        for comparison in result.comparisons
    ]
    return table(f"Circuits of {result.comparisons[0].first} elsewhere", header, rows, notes)


@drawn.register
def _(result: StabilityTable) -> dict[str, Spec]:
    return {"returns": return_dots(result)}


@columns_of.register
def _(result: StabilityTable) -> Columns:
    """One row for each circuit and other file."""
    rows = [(comparison, match) for comparison in result.comparisons for match in comparison.matches]
    columns: Columns = {"second": [one.second for one, _ in rows]}
    for name in ("circuit", "match", "is_circuit", "mutual", "percentile", "chance", "p_value", "returns"):
        columns[name] = [getattr(match, name) for _, match in rows]
    for name in ("activation", "jaccard", "promoted", "decoder", "encoder", "form", "inputs"):
        values = [getattr(match.likeness, name) for _, match in rows]
        columns[name] = [math.nan if value is None else value for value in values]
    return columns


def effects_in(result: Any) -> Mapping[str, Effect]:
    """The effects a result holds, by name."""
    held = {field.name: getattr(result, field.name) for field in fields(result)}
    return {name: row for name, row in held.items() if isinstance(row, Effect)}
