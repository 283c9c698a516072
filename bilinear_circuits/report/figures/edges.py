"""Single edges of circuits: what the direct path predicts, and what the model does without each."""

from collections.abc import Mapping, Sequence
from typing import Any

from bilinear_circuits.interventions.results import InterventionProof
from bilinear_circuits.report.figures.base import (
    ACTIVATION,
    GREY,
    GROUPS,
    LEADER,
    LEGEND_ABOVE,
    NEGATIVE,
    POSITIVE,
    Spec,
    base_figure,
    escaped,
    short_values,
)
from bilinear_circuits.report.text import visible_label

_COLOURS = (POSITIVE, NEGATIVE, *GROUPS, ACTIVATION, GREY)
_SYMBOLS = ("circle", "diamond", "square", "triangle-up", "cross", "x", "star")


def edge_scatter(proofs: Sequence[InterventionProof], labels: Mapping[str, Mapping[str, str]]) -> Spec:
    """Draw every edge by its predicted and its measured mean effect, a colour and a sign for each circuit.

    Args:
        proofs: The proofs.
        labels: Names of input features, by layer and feature.
    """
    traces = [_edges(proof, labels.get(str(proof.layer), {}), index) for index, proof in enumerate(proofs)]
    ends = [one for trace in traces for axis in ("x", "y") for one in trace[axis] if one is not None]
    low, high = min(ends, default=0.0), max(ends, default=1.0)
    line = {"type": "line", "x0": low, "x1": high, "y0": low, "y1": high, "layer": "below"}
    return base_figure(
        traces,
        420,
        xaxis={"title": {"text": "predicted by the direct path, nats"}, "zeroline": True},
        yaxis={"title": {"text": "measured, nats"}, "zeroline": True},
        layout={
            "shapes": [{**line, "line": {"color": LEADER, "width": 1.5, "dash": "dash"}}],
            **LEGEND_ABOVE,
        },
    )


def _edges(proof: InterventionProof, labels: Mapping[str, str], index: int) -> dict[str, Any]:
    effects = proof.effects
    pairs = zip(effects.first.tolist(), effects.second.tolist(), strict=True)
    names = [
        [f"{feature} {visible_label(labels.get(str(feature), ''))}" for feature in dict.fromkeys(pair)]
        for pair in pairs
    ]
    return {
        "type": "scatter",
        "mode": "markers",
        "name": f"{proof.name} (r = {effects.effect_correlation:.2f})".replace("-", "−"),
        "x": short_values(effects.predicted.mean(1)),
        "y": short_values(effects.measured.mean(1)),
        "text": [f"{proof.name}: {escaped(' × '.join(name))}" for name in names],
        "marker": {
            "color": _COLOURS[index % len(_COLOURS)],
            "symbol": _SYMBOLS[index % len(_SYMBOLS)],
            "size": 7,
            "opacity": 0.75,
        },
        "hovertemplate": "%{text}<br>predicted %{x:.4f}, measured %{y:.4f}<extra></extra>",
    }
