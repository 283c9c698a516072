"""An edit of the weights as a page: what it does, what it costs, and how well it was predicted."""

from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

from bilinear_circuits.circuits.query import CircuitQuery
from bilinear_circuits.report.figures.forest import edit_forest
from bilinear_circuits.report.html import render
from bilinear_circuits.report.pages.parts import (
    EFFECT,
    NAME,
    Column,
    Part,
    Table,
    effect,
    links,
    scientific,
    source,
    value,
)
from bilinear_circuits.report.payload import plain
from bilinear_circuits.report.text import number
from bilinear_circuits.surgery.measure import EditReport

WORDS = ("Circuit", "Controls", "Form", "Pole", "Site", "Trigger")
_WHAT = Column("what was done", "keep")
_ALL = Column("at all triggers", "n", "Mean with its 95 % bootstrap interval, in nats, at every trigger site.")
_N = Column("n", "n", "Sites, or sets of control features, that the interval resamples.")


def edit_page(report: EditReport, query: CircuitQuery, described: str, provenance: Mapping[str, Any]) -> str:
    """Write the report on an edited model as a page.

    Args:
        report: What was measured.
        query: The query whose circuits were edited.
        described: What was done to which features.
        provenance: What it was computed with; shown as a table.
    """
    listed = [_effects(report), _cost(report), _features(report), _ranks(report), _controls(report), _weights(report)]
    listed = [part for part in listed if part.table.rows]
    return render(
        "edit.html.j2",
        figures={"forest": edit_forest(report)},
        report=report,
        facts={
            "effect where active": value(report.effect.mean),
            "change of cross-entropy": value(report.overall.ce_change.mean, 5),
            "largest deviation from the prediction": scientific(report.largest_deviation),
            "controls as a share of the effect": number(plain(report.control_share), 2),
            "rank that does as much as full rank": number(report.matching_rank),
        },
        described=described,
        query=asdict(query),
        source=source(provenance, "circuit"),
        listed=listed,
        links=links(listed),
        provenance=plain(dict(provenance)),
        words=WORDS,
    )


def _effects(report: EditReport) -> Part:
    rows = [
        ("edited model", effect(report.effect), str(report.effect.n), effect(report.effect_all_sites)),
        ("predicted with hooks", effect(report.predicted), str(report.predicted.n), "–"),
        ("controls, mean", effect(report.control), str(report.control.n), "–"),
        ("controls at triggers, mean size", effect(report.trigger_control), str(report.trigger_control.n), "–"),
    ]
    note = (
        "The edited model was read back from disk; the prediction edits the original while it runs. At a site the two"
        f" differ by {scientific(report.largest_deviation)} nats at most."
    )
    columns = (_WHAT, Column("where a feature is active", "n", EFFECT.meaning), _N, _ALL)
    return Part("Effect on the poles", Table.of(columns, rows), note, "effect")


def _cost(report: EditReport) -> Part:
    columns = (
        Column("tokens", "keep"),
        Column("n", "n"),
        Column("cross-entropy before", "n"),
        Column("after", "n"),
        Column("change", "n", "Mean with its 95 % bootstrap interval over stories, in nats per token."),
        Column("divergence, mean", "n", "KL(original || edited) of the next token, in nats."),
        Column("largest", "n"),
    )
    rows = [
        (
            name,
            number(shift.n_tokens),
            number(plain(shift.ce_before), 5),
            number(plain(shift.ce_after), 5),
            effect(shift.ce_change, 5),
            number(plain(shift.kl.mean)),
            number(plain(shift.largest_kl)),
        )
        for name, shift in (("all tokens", report.overall), ("right after triggers", report.at_triggers))
    ]
    return Part("Cost", Table.of(columns, rows), "What else the edit changes, on held-out stories.", "cost")


def _features(report: EditReport) -> Part:
    leading = {edit.name: edit.spectrum.eigenvalues[:4].tolist() for edit in report.edits}
    columns = (
        NAME,
        Column("factor", "n", "What its form is multiplied by: 0 removes it, −1 inverts it."),
        Column("eigenvalues of the form", "n", "The leading ones, by magnitude, with their sign."),
        Column("alone, where active", "n", EFFECT.meaning),
        _N,
        _ALL,
    )
    rows = [
        (
            feature.name,
            f"{feature.factor:g}".replace("-", "−"),
            ", ".join(value(each) for each in leading.get(feature.name, [])),
            effect(feature.effect),
            str(feature.effect.n),
            effect(feature.effect_all_sites),
        )
        for feature in report.features
    ]
    return Part("Each feature alone", Table.of(columns, rows), "Predicted with hooks.", "features")


def _ranks(report: EditReport) -> Part:
    rows = [(str(rank.rank), effect(rank.effect), str(rank.effect.n)) for rank in report.ranks]
    found = "no rank" if report.matching_rank is None else f"rank {report.matching_rank}"
    note = f"The whole edit at other ranks, the full one last; the smallest within 10 % of that: {found}."
    return Part("Rank", Table.of((Column("rank", "n"), EFFECT, _N), rows), note, "ranks")


def _controls(report: EditReport) -> Part:
    kinds = {"like frequency and norm": report.controls, "as active at triggers": report.trigger_controls}
    rows = [
        (kind, ", ".join(subset.names), effect(subset.effect), str(subset.effect.n))
        for kind, sets in kinds.items()
        for subset in sets
    ]
    columns = (Column("controls of", "keep"), Column("features"), EFFECT, _N)
    return Part("Controls", Table.of(columns, rows), "The same edit of sets of other features.", "controls")


def _weights(report: EditReport) -> Part:
    weights = report.weights
    rows = [
        ("neurons of every layer, before", number(weights.d_mlp_before)),
        ("neurons of every layer, after", number(weights.d_mlp)),
        ("error of the proof that edited layers are bilinear", scientific(weights.probe_error)),
        ("error of the change of the interaction tensor, relative", scientific(weights.form_error)),
    ]
    note = "The forms became extra neurons of every layer; what is in the files was read back and checked."
    return Part("Weights changed", Table.of((Column("quantity"), Column("value", "n")), rows), note, "weights")
