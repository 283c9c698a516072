"""The proofs of circuits as text."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from bilinear_circuits.circuits import Effect
    from bilinear_circuits.interventions import CircuitProofs, InterventionProof


def tables(proofs: "CircuitProofs", tokenizer: Any) -> str:
    """Every circuit in short tables."""
    lines = [
        f"{proofs.query.name}: effects are changes of logit(positive) - logit(negative) at the trigger, in nats, with"
        " 95 % intervals over stories."
    ]
    for proof in proofs.proofs:
        lines += _exactness(proof, str(proof.layer) in proofs.agreements) + _largest(
            proof, proofs.labels[str(proof.layer)]
        )
        for part in (_places, _ablations, _doses, _complement, _controls):
            lines += part(proof)
        lines += _later(proof, tokenizer) + _weights(proof, fitted=str(proof.layer) in proofs.agreements)
    for name, why in proofs.untested.items():
        lines += ["", f"== layer/feature {name}: not tested", why]
    for joint in proofs.joint:
        lines += ["", f"== {' + '.join(joint.names)}, circuits of one pole"]
        lines += [_line("removed together", joint.together), _line("sum of each removed alone", joint.sum)]
    for layer, agreement in proofs.agreements.items():
        lines += ["", f"== layer {layer} is read through a fit: removals that it predicts, in the model's own MLP"]
        columns = zip(*agreement.table().values(), strict=True)
        lines += [
            f"  {kind:<9} {n:>6,} removals, correlation {r:.3f}, slope {one:.2f}, median of a feature {median:.3f}"
            for kind, n, r, one, median in columns
        ]
    return "\n".join(lines)


def _exactness(proof: "InterventionProof", fitted: bool) -> list[str]:
    exact, effects = proof.exactness, proof.effects
    over_logits = effects.logit_correlation[effects.n_active > 0]
    ranks = ", ".join(f"{name} {value:+.2f}" for name, value in effects.rank_correlations.items())
    return [
        "",
        f"== layer/feature {proof.name}: {len(proof.edges)} edges; active at {proof.n_active} of {proof.n_sites} sites",
        f"pre-activation, {len(exact.predicted)} single edges: predicted against measured, correlation"
        f" {exact.differenced_correlation:{'.3f' if fitted else '.9f'}} (MLP input taken apart"
        f"{': what the fit is worth' if fitted else ''}),",
        f"  {exact.written_correlation:.9f} (edited forward pass); worst error {exact.worst_error:.1e};"
        f" along the decoder row times {exact.decoder_gain:.3f}",
        f"pole logits, {len(effects.kind)} single edges: predicted by the direct path against measured, correlation"
        f" {effects.effect_correlation:.3f}, slope {effects.effect_slope:.2f}",
        f"  over all logits, correlation {over_logits.mean():.3f}, lowest of an edge {over_logits.min():.3f}",
        f"  rank correlation with the damage: {ranks}",
    ]


def _largest(proof: "InterventionProof", labels: dict[str, str], n: int = 6) -> list[str]:
    """The edges whose removal does most."""
    effects = proof.effects
    lines = ["largest edges: coefficient, mean term, predicted and measured effect"]
    for index in effects.measured.mean(1).abs().topk(min(n, len(effects.kind))).indices.tolist():
        first, second = int(effects.first[index]), int(effects.second[index])
        numbers = f"{effects.weight[index]:+.4f}  {effects.contribution[index]:+.3f}"
        moved = f"{effects.predicted[index].mean():+.4f}  {effects.measured[index].mean():+.4f}"
        names = "   x   ".join(labels[str(feature)] for feature in dict.fromkeys((first, second)))
        lines.append(f"  {first:>5} x {second:<5} {numbers}  {moved}  {names}")
    return lines


def _places(proof: "InterventionProof") -> list[str]:
    names = {
        "site": "circuit removed at the trigger",
        "all_sites": "  at all triggers, feature on or off",
        "encoder": "  at the trigger, along the encoder row",
        "row": "  at every token of the row",
        "before": "  at all tokens but the trigger",
        "elsewhere": "  at random other tokens",
        "rank_form": "low-rank form removed at the trigger",
    }
    return [_line(name, getattr(proof.places, key)) for key, name in names.items()]


def _ablations(proof: "InterventionProof") -> list[str]:
    lines = [_line(f"circuit ablated by {effect.method}", effect.effect) for effect in proof.circuit]
    for node in proof.nodes:
        if len(node.features) > 1:
            lines.append(_line(f"{node.name} ablated by {node.method}: in the form", node.form))
            lines.append(_line("  in the whole MLP input", node.layer))
    return lines


def _doses(proof: "InterventionProof") -> list[str]:
    return ["circuit scaled by:", *(_line(f"  {dose.factor:+.2f}", dose.effect) for dose in proof.doses)]


def _complement(proof: "InterventionProof") -> list[str]:
    tests = proof.complement
    lines = [
        _line("whole form removed", tests.whole),
        "edges left or removed     n   share   lost without   kept alone",
    ]
    for edges in tests.sets:
        lost, kept = (f"{x.mean:+.2f} [{x.low:+.2f}, {x.high:+.2f}]" for x in (edges.lost, edges.kept))
        lines.append(f"  {edges.name:<22}{edges.n_edges:>5}  {edges.share:+.2f}   {lost}   {kept}")
    lines.append("of the complement removed, effect that survives (and effect of the circuit within):")
    groups: dict[str, list[Any]] = {}
    for subset in tests.subsets:
        groups.setdefault(f"{subset.kind} {100 * subset.size:.0f} %", []).append(subset)
    for name, some in groups.items():
        survived, circuit = ([getattr(effect, key) for effect in some] for key in ("survived", "circuit"))
        lines.append(f"  {name:<14}{_span(survived):<32}({_span(circuit)})")
    return lines


def _controls(proof: "InterventionProof") -> list[str]:
    lines = []
    for kind in dict.fromkeys(other_feature.kind for other_feature in proof.other_features):
        means = [other_feature.effect.mean for other_feature in proof.other_features if other_feature.kind == kind]
        lines.append(f"{len(means)} control features ({kind}): {_span(means)}")
    nonsense = proof.nonsense
    return [
        *lines,
        f"random poles, {len(nonsense.draws)} draws: standard deviation {nonsense.spread:.3f}, p"
        f" {nonsense.p_value:.4f}",
    ]


def _later(proof: "InterventionProof", tokenizer: Any) -> list[str]:
    from bilinear_circuits.data.token_texts import token_text

    lines = []
    for layer in proof.later.layers:
        changes = []
        for side in ("input", "output"):
            some = [feature for feature in layer.features if feature.side == side][:3]
            changes += [f"{side} {effect.feature} {effect.change.mean:+.3f}" for effect in some]
        lines.append(
            f"layer {layer.layer}: MLP input moves by {100 * layer.input_change:.1f} %, output by"
            f" {100 * layer.output_change:.1f} %{'; features ' + ', '.join(changes) if changes else ''}"
        )
    for name, tokens in (("raised", proof.later.raised), ("lowered", proof.later.lowered)):
        lines.append(
            f"{name}: " + ", ".join(f"{token_text(tokenizer, t.token_id)} {t.change:+.2f}" for t in tokens[:8])
        )
    divergence = proof.later.divergence
    return [*lines, f"divergence from the original: {divergence.mean:.4f} nats"]


def _weights(proof: "InterventionProof", fitted: bool) -> list[str]:
    bound, explained = proof.truncation, proof.explained
    limits = "" if bound.any_input is None else f"; any input {bound.any_input[0]:+.2f} to {bound.any_input[1]:+.2f}"
    form = f"rank-{bound.rank} form{' of the fit' if fitted else ''}"
    return [
        f"{form} on {explained.n_active} active tokens: mean error {bound.size.mean:.3f},"
        f" certified bound {bound.bound.mean:.2f} ({bound.looseness:.1f} times){limits};"
        f" violations {bound.n_violations}",
        f"share of the activation: circuit {explained.circuit_total:.2f}, all pairs of input features"
        f" {explained.pairs_total:.2f}",
    ]


def _line(name: str, effect: "Effect") -> str:
    return f"{name:<48}{effect.mean:+.3f} [{effect.low:+.3f}, {effect.high:+.3f}]"


def _span(values: Sequence[float]) -> str:
    mean = sum(values) / len(values)
    return f"{mean:+.3f}" if len(values) == 1 else f"{mean:+.3f} ({min(values):+.3f} to {max(values):+.3f})"
