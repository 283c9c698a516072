"""A search without a query as a page: discoveries by motif, what is set apart and why, planes, interference."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

from bilinear_circuits.discovery.interference import Interference
from bilinear_circuits.discovery.pairs import PlanePair
from bilinear_circuits.discovery.results import Block, Discovery, DiscoverySearch
from bilinear_circuits.interactions.naming import FeatureNames
from bilinear_circuits.report.figures.results import motif_scores
from bilinear_circuits.report.html import render
from bilinear_circuits.report.pages.parts import Column, Line, Part, Table, links, percent, value
from bilinear_circuits.report.payload import plain
from bilinear_circuits.report.text import number
from bilinear_circuits.utilities.feature import Feature

WORDS = ("Echo", "Form", "Interaction", "Motif", "Null")
MOST_ROWS = 100
N_MEMBERS = 3
MOTIFS = {
    "and": "both groups, neither alone",
    "flip": "one group turns the sign of the effect of two others: negation",
    "xor": "either, not both",
    "contrast": "one against the other",
    "square": "one group",
    "suppression": "a negative product or square",
}


def discovery_page(
    search: DiscoverySearch,
    pairs: Sequence[PlanePair],
    interference: Sequence[Interference],
    names: FeatureNames,
    provenance: Mapping[str, Any],
) -> str:
    """Write a search without a query as a page.

    Args:
        search: What was found.
        pairs: Output features and the one nearest to their plane.
        interference: How many of the largest interactions of each layer never meet.
        names: The features in words.
        provenance: What it was computed with; shown as a table.
    """
    listed = [
        _motifs(search),
        *(_of_motif(motif, search, names) for motif in MOTIFS),
        _echoes(search, names),
        _apart(search, names),
        _pairs(pairs, names, search.settings.fdr),
        _interference(interference),
    ]
    listed = [part for part in listed if part.table.rows]
    significant = bool(search.discoveries or search.echoes or search.apart)
    return render(
        "discovery.html.j2",
        figures={"motifs": motif_scores(search)} if significant else {},
        plotly="inline" if significant else None,
        search=search,
        listed=listed,
        links=links(listed),
        provenance=plain(dict(provenance, settings=asdict(search.settings), seed=search.seed)),
        words=[word for word in WORDS if word != "Interaction" or interference],
    )


def _motifs(search: DiscoverySearch) -> Part:
    nulls = list(search.high_scores)
    columns = (
        Column("motif", "keep"),
        Column("reads as"),
        Column("discoveries", "n"),
        Column("echoes", "n"),
        Column("inputs apart", "n"),
        Column("smallest significant score", "n"),
        *(Column(f"99 % point, {'these layers' if null == 'layer' else null}", "n") for null in nulls),
    )
    parts = [
        Counter(discovery.motif for discovery in part) for part in (search.discoveries, search.echoes, search.apart)
    ]
    rows = [
        (
            motif,
            MOTIFS.get(motif, ""),
            *(number(count[motif]) for count in parts),  # type: ignore[index]
            _cutoff(search.cutoffs[motif]),
            *(number(search.high_scores[null].get(motif)) for null in nulls),
        )
        for motif in search.cutoffs
    ]
    note = "The 99 % point is the score that one in a hundred exceeds: of the features searched, and under each null."
    return Part("Motifs", Table.of(columns, rows), note, "motifs")


def _cutoff(score: float) -> str:
    return "none" if score == float("inf") else number(score)


_FEATURE = (
    Column("layer/feature", "keep"),
    Column("active at", "tokens"),
    Column("score", "n", "Cosine between form and template."),
    Column("corrected", "n", "What is left of it without what stronger motifs of other features explain."),
    Column("p", "n", "Share of null scores at least as large as what is left."),
    Column("q", "n", "Smallest false-discovery rate at which it is reported."),
)
_BLOCKS = Column("products of input features", "lines", "Strength, the two groups, and the tokens where they meet.")


def _row(one: Discovery, names: FeatureNames) -> tuple[Any, ...]:
    numbers = (number(one.score), number(one.corrected), number(one.p, 2), number(one.q, 2))
    return (one.name, names.tokens(one.layer, one.feature), *numbers)


def _of_motif(motif: str, search: DiscoverySearch, names: FeatureNames) -> Part:
    found = [discovery for discovery in search.discoveries if discovery.motif == motif]
    rows = [(*_row(one, names), [_block(b, one.layer, names) for b in one.blocks]) for one in found[:MOST_ROWS]]
    note = f"{MOTIFS[motif].capitalize()}. {_more(len(found), 'discoveries')}"
    return Part(f"Motif: {motif}", Table.of((*_FEATURE, _BLOCKS), rows, tall=True), note, f"motif-{motif}")


def _more(n: int, what: str) -> str:
    shown = f"The first {MOST_ROWS} of {number(n)} {what}; all are in discoveries.csv."
    return shown if n > MOST_ROWS else f"Highest score first, {number(n)} in all."


def _block(block: Block, layer: int, names: FeatureNames) -> Line:
    first = _members(block.first, layer, names)
    start = ((f"{value(block.strength)} ", "text"), *first)
    if block.first == block.second:
        return (*start, ("²", "text"))
    second = _members(block.second, layer, names)
    return (*start, (" × ", "text"), *second, (f" on {number(block.together)} tokens", "text"))


def _members(features: Sequence[int], layer: int, names: FeatureNames) -> Line:
    shown = [(names(layer, feature), "name") for feature in features[:N_MEMBERS]]
    more = f" and {len(features) - N_MEMBERS} more" if len(features) > N_MEMBERS else ""
    joined = [part for discovery in shown for part in ((" | ", "text"), discovery)][1:]
    return (("(", "text"), *joined, (f"{more})", "text"))


def _echoes(search: DiscoverySearch, names: FeatureNames) -> Part:
    rows = [
        (*_row(echo, names), echo.motif, "–" if echo.echo_of is None else str(Feature(echo.layer, echo.echo_of)))
        for echo in search.echoes[:MOST_ROWS]
    ]
    note = f"Significant, but explained by a stronger motif of another feature. {_more(len(search.echoes), 'echoes')}"
    columns = (*_FEATURE, Column("motif", "keep"), Column("echo of", "keep"))
    return Part("Set apart: echoes", Table.of(columns, rows, tall=True), note, "echoes", folded=True)


def _apart(search: DiscoverySearch, names: FeatureNames) -> Part:
    rows = [
        (
            *_row(discovery, names),
            discovery.motif,
            [_block(block, discovery.layer, names) for block in discovery.blocks],
        )
        for discovery in search.apart[:MOST_ROWS]
    ]
    note = f"Products of groups that are hardly ever active together. {_more(len(search.apart), 'such motifs')}"
    columns = (*_FEATURE, Column("motif", "keep"), _BLOCKS)
    return Part("Set apart: inputs that hardly meet", Table.of(columns, rows, tall=True), note, "apart", folded=True)


def _pairs(pairs: Sequence[PlanePair], names: FeatureNames, fdr: float) -> Part:
    columns = (
        Column("kind", "keep"),
        Column("first", "keep"),
        Column("active at", "tokens"),
        Column("second", "keep"),
        Column("active at", "tokens"),
        Column("overlap", "n", "Mean squared cosine of the angles between the planes."),
        Column("forms", "n", "Cosine between the two forms: near −1 for an antipodal pair."),
        Column("decoders", "n", "Cosine between the decoder rows."),
        Column("q", "n"),
    )
    rows = []
    for pair in pairs[:MOST_ROWS]:
        ends = [
            part
            for feature in pair.features
            for part in (str(Feature(pair.layer, feature)), names.tokens(pair.layer, feature))
        ]
        numbers = (number(pair.overlap), value(pair.correlation, 2), value(pair.decoder_cosine, 2), number(pair.q, 2))
        rows.append((pair.kind, *ends, *numbers))
    beyond = sum(pair.q <= fdr for pair in pairs)
    note = (
        f"Output features of a layer and the one nearest to the plane of their two leading eigenvectors, of"
        f" {number(len(pairs))} pairs {number(beyond)} beyond chance. pairs.json holds all."
    )
    return Part("Features that share a plane", Table.of(columns, rows, tall=True), note, "planes", folded=True)


def _interference(layers: Sequence[Interference]) -> Part:
    columns = (
        Column("layer", "n"),
        Column("largest interactions", "n"),
        Column("never together", "n", "Share of them that join input features never active together."),
        Column("of random pairs", "n", "The same share of as many random pairs."),
        Column("rank correlation", "n", "Of their size, raw and weighted by co-activation."),
        Column("kept", "n", "Share that stays among the largest when weighted."),
    )
    rows = [
        (
            str(layer.layer),
            number(layer.k),
            *(percent(share, 2) for share in (layer.never, layer.never_random)),
            value(layer.rank_correlation, 2),
            percent(layer.kept, 2),
        )
        for layer in layers
    ]
    note = "Large weights between inputs that never meet do nothing."
    return Part("Interactions that never meet", Table.of(columns, rows), note, "interference")
