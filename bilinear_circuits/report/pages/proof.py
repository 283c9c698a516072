"""The proof of circuits as a page: edges predicted and measured, ablations, doses, necessity, sufficiency, controls."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from typing import Any

from bilinear_circuits.interventions.results import CircuitProofs, InterventionProof
from bilinear_circuits.report.figures.edges import edge_scatter
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
    span,
    value,
)
from bilinear_circuits.report.pages.proof_parts import circuit_parts
from bilinear_circuits.report.payload import plain
from bilinear_circuits.report.text import number

WORDS = ("Circuit", "Controls", "Edge", "Form", "Pole", "Rank-2 form", "Site", "Trigger")


def proof_page(proofs: CircuitProofs, provenance: Mapping[str, Any], text_of: Callable[[int], str]) -> str:
    """Write the proofs of some circuits as a page.

    Args:
        proofs: The proofs.
        provenance: What they were computed with; shown as a table.
        text_of: Text of a token id.
    """
    sections = [
        {
            "id": _id(proof),
            "name": proof.name,
            "parts": circuit_parts(proof, proofs.labels.get(str(proof.layer), {})),
            "tokens": {
                "Raised": _tokens(proof.later.raised, text_of),
                "Lowered": _tokens(proof.later.lowered, text_of),
            },
            "divergence": effect(proof.later.divergence, 4),
        }
        for proof in proofs.proofs
    ]
    overview = [part for part in _overview(proofs) if part.table.rows]
    drawn = {"edges": edge_scatter(proofs.proofs, proofs.labels)} if proofs.proofs else {}
    return render(
        "proof.html.j2",
        figures=drawn,
        plotly="inline" if drawn else None,
        query=asdict(proofs.query),
        source=source(provenance),
        n_tokens=proofs.n_corpus_tokens,
        overview=overview,
        sections=sections,
        links=links(overview, [(_id(proof), f"Circuit {proof.name}") for proof in proofs.proofs]),
        provenance=plain(dict(provenance, settings=asdict(proofs.settings), seed=proofs.seed)),
        words=[word for word in WORDS if word != "Rank-2 form" or _truncated_to_two(proofs)],
    )


def _truncated_to_two(proofs: CircuitProofs) -> bool:
    return any(proof.truncation.rank == 2 for proof in proofs.proofs)


def _id(proof: InterventionProof) -> str:
    return f"circuit-{proof.layer}-{proof.feature}"


def _tokens(changes: Sequence[Any], text_of: Callable[[int], str]) -> list[tuple[str, float]]:
    return [(text_of(change.token_id), change.change) for change in changes]


def _overview(proofs: CircuitProofs) -> list[Part]:
    return [
        Part(
            "What removing each circuit does",
            Table.of(_REMOVAL, map(_removal, proofs.proofs)),
            "A circuit that does what is said of it: the removal excludes zero, most of the effect is lost without it"
            " and kept by it alone, and neither the control features nor random poles move as much.",
            "removal",
        ),
        Part(
            "Edges, predicted and measured",
            Table.of(_EXACT, map(_exact, proofs.proofs)),
            ("" if proofs.agreements else "On the pre-activation the prediction is exact, up to rounding. ")
            + "On the poles the prediction takes the direct path alone, with the scale of the final norm held: what"
            " later layers make of it is the difference.",
            "edges",
        ),
        _fits(proofs),
        Part(
            "What tells the damage of an edge",
            _ranks(proofs),
            "Rank correlation, over edges, of the mean size of the measured effect with each of these.",
            "damage",
        ),
        Part(
            "Circuits of one pole, removed together",
            Table.of(
                _JOINT, [(" + ".join(joint.names), effect(joint.together), effect(joint.sum)) for joint in proofs.joint]
            ),
            "Equal where circuits add up; less than the sum where they do the same thing.",
            "joint",
        ),
        Part(
            "Not tested",
            Table.of((NAME, Column("why")), proofs.untested.items()),
            "These circuits of the search have no proof, for or against.",
            "untested",
        ),
    ]


def _fits(proofs: CircuitProofs) -> Part:
    """Fitted layers, beside the MLPs that they stand for."""
    return Part(
        "Fitted layers and the model's own MLPs",
        Table.of(_AGREEMENT, _agreements(proofs)),
        "These layers are not bilinear: they are read through layers fitted to them. Here what those predict of"
        " removals from the MLP input stands beside what the model's own MLP does to the pre-activation.",
        "fits",
    )


_REMOVAL = (
    NAME,
    Column("active at", "n", "Trigger sites at which the feature is active, of those of held-out stories."),
    Column("edges", "n", "Pairs of input features in the circuit."),
    Column("circuit removed", "effect", "All its edges taken out at the trigger."),
    Column("whole form removed", "effect", "Every term of the feature's form but its constant."),
    Column(
        "lost without",
        "effect",
        "Necessity: share of the whole form's effect that is lost without the circuit's edges.",
    ),
    Column(
        "kept alone", "effect", "Sufficiency: share of the whole form's effect that the circuit's edges keep alone."
    ),
    Column("control features", "effect", "Mean effect of the same edit on control features, least and largest."),
    Column("random poles, p", "n", "Share of random poles between which the circuit's removal does at least as much."),
)


def _removal(one: InterventionProof) -> tuple[str, ...]:
    own = one.complement.sets[0]
    return (
        one.name,
        f"{one.n_active} of {one.n_sites}",
        number(len(one.edges)),
        effect(one.places.site),
        effect(one.complement.whole),
        effect(own.lost, 2),
        effect(own.kept, 2),
        span([other.effect.mean for other in one.other_features]),
        number(one.nonsense.p_value),
    )


_AGREEMENT = (
    NAME,
    Column("removed", "text"),
    Column("removals", "n"),
    Column("r", "n", "Correlation over all removals."),
    Column("slope", "n", "Measured per unit predicted."),
    Column("r of a feature", "n", "Median over features."),
)


def _agreements(proofs: CircuitProofs) -> list[tuple[Any, ...]]:
    """One row for each fitted layer and kind of removal."""
    return [
        (f"layer {layer}", kind, f"{n:,}", number(r, 3), number(one, 2), number(median, 3))
        for layer, agreement in proofs.agreements.items()
        for kind, n, r, one, median in zip(*agreement.table().values(), strict=True)
    ]


_EXACT = (
    NAME,
    Column("pre-activation, MLP", "n", "Correlation of prediction and second differences of the model's own MLP."),
    Column("pre-activation, run", "n", "Correlation of prediction and change in an edited forward pass."),
    Column("worst error", "n", "Largest difference of either from the prediction, over the largest prediction."),
    Column("poles, r", "n", "Correlation of direct path and measured effect, over edges and sites."),
    Column("poles, slope", "n", "Measured per unit predicted."),
    Column(
        "all logits, r", "effect", "Mean over edges of the correlation over the vocabulary, and the lowest of an edge."
    ),
)


def _exact(one: InterventionProof) -> tuple[str, ...]:
    exact, effects = one.exactness, one.effects
    over = effects.logit_correlation[effects.n_active > 0]
    logits = f"{number(over.mean().item())} (lowest {number(over.min().item())})" if len(over) else number(None)
    return (
        one.name,
        f"{exact.differenced_correlation:.9f}",
        f"{exact.written_correlation:.9f}",
        scientific(exact.worst_error),
        number(effects.effect_correlation),
        number(effects.effect_slope),
        logits,
    )


def _ranks(proofs: CircuitProofs) -> Table:
    keys = list(dict.fromkeys(key for proof in proofs.proofs for key in proof.effects.rank_correlations))
    rows = [
        (proof.name, *(value(proof.effects.rank_correlations.get(key, math.nan), 2) for key in keys))
        for proof in proofs.proofs
    ]
    return Table.of((NAME, *(Column(key, "n") for key in keys)), rows)


_JOINT = (
    Column("circuits", "keep"),
    Column("removed together", "n", EFFECT.meaning),
    Column("sum of each removed alone", "n", EFFECT.meaning),
)
