"""The causal effects of circuits, with their intervals and their controls."""

from collections.abc import Sequence
from typing import Any

from bilinear_circuits.circuits.prove import CausalProof
from bilinear_circuits.circuits.search import Circuit, CircuitSearch
from bilinear_circuits.comparison.stability import StabilityTable
from bilinear_circuits.report.figures.base import GREY, LEGEND_ABOVE, POSITIVE, Spec, base_figure, escaped, sign_colour
from bilinear_circuits.report.figures.feature import feature_figures
from bilinear_circuits.report.payload import plain
from bilinear_circuits.report.text import signed
from bilinear_circuits.statistics.effects import Effect
from bilinear_circuits.surgery.measure import EditReport

_RETURNS = {True: "circle", False: "circle-open"}


def search_figures(search: CircuitSearch) -> dict[str, Spec]:
    """Every figure of a circuit search, by the names its page uses."""
    drawn = {"forest": effect_forest(search.circuits)}
    for circuit in search.circuits:
        drawn |= feature_figures(circuit.profile)
    return drawn


def effect_forest(circuits: Sequence[Circuit]) -> Spec:
    """Causal effects of every circuit with their 95 % intervals, and every control as a small dot."""
    names = [(circuit.evidence.name, f"pushes to {'+' if circuit.evidence.sign > 0 else '−'}") for circuit in circuits]
    return proof_forest([(*name, circuit.proof) for name, circuit in zip(names, circuits, strict=True)])


def proof_forest(proofs: Sequence[tuple[str, str, CausalProof]]) -> Spec:
    """Causal effects of proofs, each with a name such as 4/143 and what is said beside it, and their controls."""
    ticks: list[str] = []
    effects: list[tuple[int, str, Effect]] = []
    dots: list[tuple[int, str, float]] = []
    for name, said, proof in proofs:
        place = f"{name.partition('/')[0]}/" if "/" in name else "feature "
        ticks.append(f"<b>{name}</b>, {said}")
        for label, effect in (
            ("removal", proof.removal),
            ("removal, all trigger sites", proof.removal_all_sites),
            ("ablation", proof.ablation),
            ("ablation, all trigger sites", proof.ablation_all_sites),
            ("controls, mean", proof.control),
        ):
            effects.append((len(ticks), f"{name} {label}", effect))
            ticks.append(label)
        ticks.append("controls at triggers")
        for row, controls in ((len(ticks) - 2, proof.controls), (len(ticks) - 1, proof.trigger_controls)):
            dots += [(row, f"{name} control: {place}{control.feature}", control.effect.mean) for control in controls]
    return _forest(ticks, effects, dots)


def edit_forest(report: EditReport) -> Spec:
    """Draw what an edit does: as a whole, by feature, at other ranks, beside its controls as small dots."""
    rows = [
        ("<b>edited model</b>", report.effect),
        ("predicted with hooks", report.predicted),
        *(
            (f"{feature.name} × {feature.factor:g} alone".replace("-", "−"), feature.effect)
            for feature in report.features
        ),
        *((f"rank {rank.rank}", rank.effect) for rank in report.ranks),
        ("controls, mean", report.control),
    ]
    ticks = [*(name for name, _ in rows), "controls at triggers"]
    effects = [(row, name, effect) for row, (name, effect) in enumerate(rows)]
    dots = [
        (row, f"controls {', '.join(subset.names)}", subset.effect.mean)
        for row, sets in ((len(ticks) - 2, report.controls), (len(ticks) - 1, report.trigger_controls))
        for subset in sets
    ]
    return _forest(ticks, effects, dots)


def return_dots(table: StabilityTable) -> Spec:
    """Draw how well circuits return elsewhere: the correlation with the best match, and what chance gives."""
    rows = [(comparison, match) for comparison in table.comparisons for match in comparison.matches]
    ticks = [f"<b>{match.circuit}</b> in {escaped(one.second)}" for one, match in rows]
    said = [f"{'returns as' if match.returns else 'nearest'} {match.match}" for _, match in rows]
    correlation = {
        "type": "scatter",
        "name": "best match: filled where it returns",
        "x": plain([match.likeness.activation for _, match in rows]),
        "y": list(range(len(rows))),
        "mode": "markers",
        "marker": {"color": POSITIVE, "size": 9, "symbol": [_RETURNS[match.returns] for _, match in rows]},
        "text": said,
        "hovertemplate": "%{text}: %{x:.3f}<extra></extra>",
    }
    chance = {
        "type": "scatter",
        "name": "by chance",
        "x": plain([match.chance for _, match in rows]),
        "y": list(range(len(rows))),
        "mode": "markers",
        "marker": {"color": GREY, "size": 6, "symbol": "line-ns-open"},
        "hovertemplate": "by chance: %{x:.3f}<extra></extra>",
    }
    axis = {"tickvals": list(range(len(ticks))), "ticktext": ticks, "range": [len(ticks) - 0.3, -0.7]}
    return base_figure(
        [chance, correlation],
        140 + 24 * len(ticks),
        xaxis={"title": {"text": "correlation of activations"}, "zeroline": True},
        yaxis={**axis, "zeroline": False},
        layout=LEGEND_ABOVE,
    )


def _forest(
    ticks: Sequence[str], effects: Sequence[tuple[int, str, Effect]], dots: Sequence[tuple[int, str, float]]
) -> Spec:
    """Draw effects and controls by their row."""
    rows = {"tickvals": list(range(len(ticks))), "ticktext": list(ticks), "range": [len(ticks) - 0.3, -0.7]}
    return base_figure(
        [_control_dots(dots), _effect_points(effects)],
        110 + 24 * len(ticks),
        xaxis={"title": {"text": "change of logit(+ words) − logit(− words)"}, "zeroline": True},
        yaxis={**rows, "zeroline": False},
    )


def _effect_points(effects: Sequence[tuple[int, str, Effect]]) -> dict[str, Any]:
    means = plain([effect.mean for _, _, effect in effects])
    above = plain([effect.high - effect.mean for _, _, effect in effects])
    below = plain([effect.mean - effect.low for _, _, effect in effects])
    return {
        "type": "scatter",
        "x": means,
        "y": [row for row, _, _ in effects],
        "mode": "markers",
        "marker": {"color": [sign_colour(mean) for mean in means], "size": 9},
        "error_x": {"type": "data", "array": above, "arrayminus": below, "color": GREY, "thickness": 1.5, "width": 4},
        "text": [f"{label}<br>{_interval(effect)}" for _, label, effect in effects],
        "hovertemplate": "%{text}<extra></extra>",
    }


def _control_dots(dots: Sequence[tuple[int, str, float]]) -> dict[str, Any]:
    return {
        "type": "scatter",
        "x": plain([mean for _, _, mean in dots]),
        # Three heights, so that dots of like effect do not hide each other.
        "y": [row + 0.22 * (index % 3 - 1) for index, (row, _, _) in enumerate(dots)],
        "mode": "markers",
        "marker": {"color": GREY, "size": 4, "opacity": 0.6},
        "text": [f"{label}<br>{signed(plain(mean))}" for _, label, mean in dots],
        "hovertemplate": "%{text}<extra></extra>",
    }


def _interval(effect: Effect) -> str:
    mean, low, high = (signed(plain(value)) for value in (effect.mean, effect.low, effect.high))
    return f"{mean} [{low}, {high}], n = {effect.n}"
