"""An edit's report as text, as a JSON document, and as the card of the edited model."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from bilinear_circuits.circuits import CircuitQuery, Effect
    from bilinear_circuits.surgery import EditReport, FormEdit

KIND, SCHEMA_VERSION = "circuit edit", 1


def edit_payload(report: "EditReport", query: "CircuitQuery", provenance: Mapping[str, Any]) -> dict[str, Any]:
    """The report as a JSON document; the tensors of the edits are in the result folder beside it."""
    from bilinear_circuits.report.payload import plain

    edits = [
        {"name": e.name, "factor": e.factor, "rank": e.rank, "eigenvalues": e.spectrum.eigenvalues}
        for e in report.edits
    ]
    header = {"schema_version": SCHEMA_VERSION, "kind": KIND, "query": asdict(query), "provenance": provenance}
    shares = {name: getattr(report, name) for name in ("control_share", "trigger_control_share")}
    return plain({**header, **asdict(report), "edits": edits, **shares})


def edit_card(report: "EditReport", query: "CircuitQuery", model: str) -> str:
    """README.md of the edited model."""
    weights = report.weights
    return f"""---
library_name: transformers
tags: [bilinear-mlp, interpretability]
---

# {model}, edited

{model} with {described(report.edits)} (rank {report.edits[0].rank} each): circuits of the query "{query.name}", edited
in the weights by `bilinear-circuits edit`. A stock Llama with {weights.d_mlp - weights.d_mlp_before} extra neurons per
layer ({weights.d_mlp} instead of {weights.d_mlp_before}); `AutoModelForCausalLM.from_pretrained` loads it. At the
trigger tokens where a feature edited is active, logit(positive) - logit(negative) changes by
{interval(report.effect).strip()} nats; cross-entropy changes by {report.overall.ce_change.mean:+.5f} nats per token.
All numbers are in `edit.json` and, to be read, in `report.html`; `result/` holds them with the edits themselves.
"""


def summary(report: "EditReport", name: str) -> str:
    """The report as text: what the edit does, and what else it does."""
    overall, triggers, weights = report.overall, report.at_triggers, report.weights
    lines = [
        f"{name}: {described(report.edits)}, rank {report.edits[0].rank}",
        "",
        "change of logit(positive) - logit(negative), nats, mean (95 % interval) and sites",
        f"{'':<24}{'where a feature is active':<36}all trigger sites",
        _row("edited model", report.effect, report.effect_all_sites),
        _row("predicted with hooks", report.predicted),
        *(
            _row(f"{feature.name} x {feature.factor:g} alone", feature.effect, feature.effect_all_sites)
            for feature in report.features
        ),
        *(_row(f"rank {rank.rank}", rank.effect) for rank in report.ranks),
        _row("controls, mean", report.control) + " sets of features of like frequency and norm",
        _row("controls, mean size", report.trigger_control) + " sets of features that act at triggers",
        "",
        f"smallest of these ranks within 10 % of the effect of full rank: {report.matching_rank}",
        f"controls as a share of the effect: mean {report.control_share:.3f}, mean size of those at triggers"
        f" {report.trigger_control_share:.3f}",
        f"largest difference between edited model and prediction: {report.largest_deviation:.1e}",
        "",
        "nats per token             tokens  cross-entropy before  after    change (95 % interval)             "
        "KL mean   largest",
        _prediction_row("all tokens", overall),
        _prediction_row("right after triggers", triggers),
        "",
        f"neurons per layer: {weights.d_mlp_before} before, {weights.d_mlp} after; error of the proof of bilinearity"
        f" {weights.probe_error:.1e}, of the change of the interaction tensor {weights.form_error:.1e}",
    ]
    return "\n".join(lines)


def described(edits: "Sequence[FormEdit]") -> str:
    """Write as text what is done to the features of an edit."""
    by_factor: dict[float, list[str]] = {}
    for edit in edits:
        by_factor.setdefault(edit.factor, []).append(edit.name)
    verbs = {0.0: "removed", -1.0: "inverted"}
    return "; ".join(f"{', '.join(names)} {verbs.get(f, f'times {f:g}')}" for f, names in by_factor.items())


def interval(effect: "Effect", digits: int = 3) -> str:
    """Mean and 95 % interval."""
    return f"{effect.mean:+.{digits}f} [{effect.low:+.{digits}f}, {effect.high:+.{digits}f}]"


def _row(label: str, *effects: "Effect") -> str:
    return f"  {label:<22}" + "".join(f"{interval(effect):<26}{effect.n:>4}      " for effect in effects).rstrip()


def _prediction_row(label: str, shift: Any) -> str:
    change = interval(shift.ce_change, 5)
    return (
        f"  {label:<22}{shift.n_tokens:>9}  {shift.ce_before:>20.4f}  {shift.ce_after:.4f}  {change:<34}"
        f" {shift.kl.mean:.5f}  {shift.largest_kl:.4f}"
    )
