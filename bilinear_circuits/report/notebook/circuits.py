"""Features, circuits and their proofs in notebooks."""

from markupsafe import Markup

from bilinear_circuits.circuits.prove import CausalProof
from bilinear_circuits.circuits.search import Circuit, CircuitSearch
from bilinear_circuits.interactions.completeness import CircuitCompleteness
from bilinear_circuits.interactions.profiles import FeatureProfile
from bilinear_circuits.report.columns import EFFECTS
from bilinear_circuits.report.figures import Spec, effect_forest, feature_figures, search_figures
from bilinear_circuits.report.figures.forest import proof_forest
from bilinear_circuits.report.notebook.dispatch import drawn, shown
from bilinear_circuits.report.notebook.fragments import Cell, effect, facts, rest_of, table, tokens, value
from bilinear_circuits.report.notebook.measured import EFFECTS_ARE, effects_in
from bilinear_circuits.report.text import number, visible_label
from bilinear_circuits.report.verdict import verdict

_N_RANKED = 10


@shown.register
def _(profile: FeatureProfile) -> Markup:
    spectrum, n_first = profile.spectrum, len(profile.shape.first)
    names = [visible_label(label) for label in profile.input_labels]
    rows: list[tuple[str, Cell]] = [
        ("active at", f"{100 * profile.frequency:.2f} % of tokens, mostly {tokens(profile.top_tokens)}"),
        ("promotes", tokens(token for token, _ in profile.promoted)),
        ("suppresses", tokens(token for token, _ in profile.suppressed)),
        ("eigenvalues", Markup(", ").join(value(eigenvalue) for eigenvalue in spectrum.eigenvalues[:4].tolist())),
        ("rank-2 correlation", number(profile.rank2_correlation)),
        ("pairs of input features explain", f"{100 * profile.completeness:.0f} % of the pre-activation (median)"),
        ("first group", " | ".join(names[:n_first])),
        ("second group", " | ".join(names[n_first:])),
    ]
    return facts(f"Feature {profile.name}", rows, ['.plot("plane"), "heatmap", "spectrum", "scatter"'])


@drawn.register
def _(profile: FeatureProfile) -> dict[str, Spec]:
    prefix = f"{profile.layer}-{profile.feature}-"
    found = {name.removeprefix(prefix): spec for name, spec in feature_figures(profile).items()}
    return {"plane": found.pop("plane"), **found}


@shown.register
def _(circuit: Circuit) -> Markup:
    evidence = circuit.evidence
    pole = "positive" if evidence.sign > 0 else "negative"
    judged = verdict(circuit.proof, evidence.sign)
    rows: list[tuple[str, Cell]] = [
        ("pushes to", f"{pole} words"),
        ("score", number(evidence.score)),
        ("at triggers", f"{100 * evidence.trigger_share:.0f} % of its activation"),
        ("verdict", judged.text),
    ]
    head = facts(f"Circuit {evidence.name}", rows, [judged.note] if judged.note else [])
    return Markup("<div>{}{}{}</div>").format(head, shown(circuit.proof), shown(circuit.profile))


@drawn.register
def _(circuit: Circuit) -> dict[str, Spec]:
    return {"forest": effect_forest([circuit]), **drawn(circuit.profile)}


@shown.register
def _(proof: CausalProof) -> Markup:
    rows = [
        (EFFECTS.get(name, (name.replace("_", " "), ""))[0], effect(one), EFFECTS.get(name, ("", ""))[1])
        for name, one in effects_in(proof).items()
    ]
    notes = [EFFECTS_ARE, f"cross-entropy of the model before: {number(proof.ce_base)} nats per token"]
    notes.append(f"p = {number(proof.p_value)}, of {len(proof.controls) + len(proof.trigger_controls)} controls")
    return table(f"Removal of a rank-{proof.rank} form", ("", "mean [95 % interval]", ""), rows, notes)


@drawn.register
def _(proof: CausalProof) -> dict[str, Spec]:
    return {"forest": proof_forest([("circuit", f"rank {proof.rank}", proof)])}


@shown.register
def _(search: CircuitSearch) -> Markup:
    rows = []
    for circuit in search.circuits:
        one, proof = circuit.evidence, circuit.proof
        pole = "positive" if one.sign > 0 else "negative"
        judged = verdict(proof, one.sign).text
        rows.append((one.name, pole, number(one.score), effect(proof.removal), effect(proof.control), judged))
    columns = ("feature", "pushes to", "score", "removed", "controls", "verdict")
    notes = [
        EFFECTS_ARE,
        f"{search.n_trigger_tokens:,} triggers in {search.n_tokens:,} tokens; {search.n_sites} sites",
    ]
    proved = table(f"Circuits: {search.query.name}", columns, rows, notes)
    ranked = [
        (
            evidence.name,
            value(evidence.pole_shift),
            number(evidence.trigger_share),
            number(evidence.rank2_correlation),
            number(evidence.score),
        )
        for evidence in search.ranking[:_N_RANKED]
    ]
    names = ("feature", "pole shift", "trigger share", "rank-2 r", "score")
    more = rest_of(len(search.ranking), _N_RANKED, "features scored")
    return Markup("<div>{}{}</div>").format(proved, table("Ranking", names, ranked, more))


@drawn.register
def _(search: CircuitSearch) -> dict[str, Spec]:
    return search_figures(search)


@shown.register
def _(result: CircuitCompleteness) -> Markup:
    rows = [
        (name, number(summary.median), number(summary.quantiles[1]), number(summary.quantiles[-2]), number(total))
        for name, summary, total in (
            ("all pairs of input features", result.pairs, result.pairs_total),
            (f"the {result.n_edges:,} of the circuit", result.circuit, result.circuit_total),
        )
    ]
    header = ("share of the pre-activation", "median", "5 %", "95 %", "of the sum")
    covered = f"{100 * result.covered:.0f} % of the magnitude of all pairs lies in the circuit"
    notes = [covered, f"over {result.pairs.n:,} of {result.n_active:,} active tokens"]
    return table(f"Completeness of feature {result.name}", header, rows, notes)
