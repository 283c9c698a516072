"""The tables of one circuit's proof."""

from collections.abc import Mapping

from bilinear_circuits.interventions.results import InterventionProof
from bilinear_circuits.report.pages.parts import EFFECT, Column, Part, Table, effect, percent, product, span, value
from bilinear_circuits.report.text import number

_WHAT = Column("what was done", "keep")
_SITES = Column("n", "n", "Sites, or features, that the interval resamples.")


def circuit_parts(proof: InterventionProof, labels: Mapping[str, str]) -> list[Part]:
    """List the tables of one circuit, those that decide first; those without a row are left out.

    Args:
        proof: The proof.
        labels: Names of the input features of its layer.
    """
    parts = [
        _places(proof),
        _complement(proof),
        _subsets(proof),
        _edges(proof, labels),
        _ablations(proof),
        _doses(proof),
        _controls(proof),
        _later(proof),
        _form(proof),
    ]
    return [part for part in parts if part.table.rows]


_PLACES = {
    "site": "circuit removed at the trigger",
    "all_sites": "the same at all triggers, feature on or off",
    "encoder": "removed at the trigger, along the encoder row",
    "row": "removed at every token of the row",
    "before": "removed at all tokens but the trigger",
    "elsewhere": "removed at random other tokens",
    "rank_form": "low-rank form removed at the trigger",
}


def _places(proof: InterventionProof) -> Part:
    places = {name: getattr(proof.places, key) for key, name in _PLACES.items()}
    table = Table.of((_WHAT, EFFECT, _SITES), [(name, effect(place), str(place.n)) for name, place in places.items()])
    return Part(
        "Where it is removed", table, "At the trigger is the effect of the circuit; the others are for comparison."
    )


def _complement(proof: InterventionProof) -> Part:
    columns = (
        Column("edges", "keep"),
        Column("n", "n", "Edges that are active at one site or more."),
        Column("share of the form", "n"),
        Column("lost without", "n", "Share of the whole effect that is lost without these edges."),
        Column("kept alone", "n", "Share of the whole effect that these edges keep alone."),
    )
    rows = [
        (subset.name, number(subset.n_edges), value(subset.share, 2), effect(subset.lost, 2), effect(subset.kept, 2))
        for subset in proof.complement.sets
    ]
    note = f"Shares of the effect of removing the whole form, {effect(proof.complement.whole)}; at best both are 1."
    return Part("Necessity and sufficiency", Table.of(columns, rows), note)


def _subsets(proof: InterventionProof) -> Part:
    groups: dict[tuple[str, str], list[tuple[float, float]]] = {}
    for subset in proof.complement.subsets:
        groups.setdefault((subset.kind, percent(subset.size, 2)), []).append((subset.survived, subset.circuit))
    columns = (
        Column(
            "subset", "keep", "Random; worst: the pairs that support the form most; best: all that work against it."
        ),
        Column("of the complement", "n"),
        Column("effect that survives", "n", "Share of the form's effect that is left; mean, least and largest draw."),
        Column(
            "circuit within", "n", "Effect of removing the circuit without the subset, over that in the whole model."
        ),
    )
    rows = [
        (kind, size, *(span([one[side] for one in some], 2) for side in (0, 1)))
        for (kind, size), some in groups.items()
    ]
    note = "Parts of the rest of the form removed, with the circuit left in place: a circuit that stands alone keeps 1."
    return Part("Subsets of the complement", Table.of(columns, rows), note)


def _edges(proof: InterventionProof, labels: Mapping[str, str]) -> Part:
    effects = proof.effects
    columns = (
        Column("edge", "keep", "Input features a × b."),
        Column("names", "lines"),
        Column("chosen as", "keep", "Largest contribution, largest weight, or random."),
        Column("coefficient", "n", "Of z_a z_b: 2 T_ab, or T_aa of a square."),
        Column("mean term", "n", "Mean of w_ab z_a z_b over the sites."),
        Column("sites", "n", "Sites where both are active."),
        Column("predicted", "n", "Mean effect of its removal by the direct path, in nats."),
        Column("measured", "n", "Mean effect of its removal in the model, in nats."),
        Column("logits, r", "n", "Correlation of predicted and measured change over the vocabulary."),
    )
    predicted, measured = effects.predicted.mean(1), effects.measured.mean(1)
    rows = []
    for i in measured.abs().argsort(descending=True, stable=True).tolist():
        pair = (int(effects.first[i]), int(effects.second[i]))
        names = product(*(labels.get(str(feature), "") for feature in dict.fromkeys(pair)))
        numbers = [value(float(one), 4) for one in (effects.weight[i], effects.contribution[i])]
        moved = [value(float(one[i]), 4) for one in (predicted, measured)]
        logits = number(float(effects.logit_correlation[i]))
        kind = effects.kind[i]
        rows.append((f"{pair[0]} × {pair[1]}", names, kind, *numbers, str(int(effects.n_active[i])), *moved, logits))
    note = "Every edge that was taken out by itself, by the size of what that does; a square is named once."
    return Part("Edges, largest effect first", Table.of(columns, rows, tall=True), note)


def _ablations(proof: InterventionProof) -> Part:
    columns = (
        Column("ablated", "keep"),
        Column("by", "keep", "Nothing, its mean over the corpus, or its value at a random token."),
        Column("in the form", "n", "Taken out of this output feature's form alone."),
        Column("in the whole MLP input", "n", "Taken out of everything that the layer reads."),
    )
    rows = [("the circuit", one.method, effect(one.effect), "–") for one in proof.circuit]
    rows += [
        (node.name, node.method, effect(node.form), effect(node.layer))
        for node in proof.nodes
        if len(node.features) > 1
    ]
    return Part("Ablations", Table.of(columns, rows))


def _doses(proof: InterventionProof) -> Part:
    rows = [(f"{dose.factor:+g}".replace("-", "−"), effect(dose.effect)) for dose in proof.doses]
    note = "The circuit's terms times a factor: 1 is the model as it is, 0 removes them, −1 inverts them."
    return Part("Dose response", Table.of((Column("factor", "n"), EFFECT), rows), note)


def _controls(proof: InterventionProof) -> Part:
    kinds = {"inert": "acts at triggers no more than chance", "trigger": "acts at triggers, points to no pole"}
    rows = [
        (
            f"{proof.layer}/{other_feature.feature}",
            kinds.get(other_feature.kind, other_feature.kind),
            effect(other_feature.effect),
        )
        for other_feature in proof.other_features
    ]
    nonsense = proof.nonsense
    note = (
        f"As many edges of other features removed. Between {number(len(nonsense.draws))} pairs of random poles the"
        f" removal of this circuit moves the model with a standard deviation of {number(nonsense.spread)}, against"
        f" {value(nonsense.effect)} between those of the query: p = {number(nonsense.p_value)}."
    )
    columns = (Column("control", "keep"), Column("kind", "keep"), EFFECT)
    return Part("Controls", Table.of(columns, rows), note)


def _later(proof: InterventionProof) -> Part:
    columns = (
        Column("layer", "n"),
        Column("MLP input moves by", "n"),
        Column("output by", "n"),
        Column("input features that change most"),
        Column("output features that change most"),
    )
    rows = []
    for layer in proof.later.layers:
        sides = [
            ", ".join(f"{some.feature} {value(some.change.mean)}" for some in layer.features if some.side == side)
            or "–"
            for side in ("input", "output")
        ]
        rows.append((str(layer.layer), percent(layer.input_change), percent(layer.output_change), *sides))
    return Part("Later layers", Table.of(columns, rows), "What the removal at the trigger changes further on.")


def _form(proof: InterventionProof) -> Part:
    bound, explained = proof.truncation, proof.explained
    rows = [
        ("share of the activation that the circuit explains", number(explained.circuit_total)),
        ("share that all pairs of input features explain", number(explained.pairs_total)),
        (f"mean error of the rank-{bound.rank} form", number(bound.size.mean)),
        ("certified bound of that error, mean", f"{number(bound.bound.mean)} ({number(bound.looseness, 2)} times)"),
        ("tokens at which the bound fails", number(bound.n_violations)),
    ]
    if bound.any_input is not None:
        rows.append(("bound for any input", " to ".join(value(one, 2) for one in bound.any_input)))
    note = (
        f"On {number(explained.n_active)} active tokens of the ranking stories, in units of the pre-activation. Errors"
        " and bounds are of the form: where a layer is read through a fit, not of what the fit misses."
    )
    return Part(
        "What the form explains, and can be wrong by", Table.of((Column("quantity"), Column("value", "n")), rows), note
    )
