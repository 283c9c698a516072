"""Heads from weights alone as a page, and why one head looks where it does in a prompt."""

from collections.abc import Mapping, Sequence
from typing import Any

from bilinear_circuits.paths.heads import HeadSummary, HeadTable
from bilinear_circuits.paths.why import AttentionLedger
from bilinear_circuits.report.figures.paths import head_figures
from bilinear_circuits.report.figures.results import signed_bars
from bilinear_circuits.report.html import render
from bilinear_circuits.report.pages.parts import Column, Part, Table, links, percent, value
from bilinear_circuits.report.pages.paths import terms_table
from bilinear_circuits.report.payload import plain
from bilinear_circuits.report.text import number

WORDS = ("Composition", "Copying score", "Log-odds")
_HEAD = Column("head", "keep", "Layer and head.")
_N_BARS, _N_TERMS = 16, 20


def heads_page(table: HeadTable, texts: Sequence[str], provenance: Mapping[str, Any]) -> str:
    """Write heads as a page.

    Args:
        table: The heads.
        texts: Texts of the tokens that were searched.
        provenance: What it was computed with; shown as a table.
    """
    parts = [_overview(table), _moves(table, texts), _looks(table, texts)]
    return render(
        "heads.html.j2",
        figures=head_figures(table, texts),
        table=table,
        parts_listed=parts,
        single=len(table.heads) == 1,
        n_tokens=number(len(texts)),
        chance=value(table.chance)[1:],
        links=links([parts[0]], [("distance", "Distance"), ("moves", parts[1].heading), ("looks", parts[2].heading)]),
        provenance=plain(dict(provenance)),
        words=WORDS[:2],
    )


def composition_text(head: HeadSummary, by: str) -> str:
    """Write the strongest composition of a kind: "0.11 with 0.3"; a dash in the first layer."""
    found = next((composition for composition in head.compositions if composition.by == by), None)
    return "–" if found is None else f"{found.value:.3f} with {found.layer}.{found.head}"


def _overview(table: HeadTable) -> Part:
    columns = (
        _HEAD,
        Column("copying score", "n", "1 if all eigenvalues of OV are positive, 1/2 by chance."),
        Column("prefers distance", "n", "Where the mean score over all pairs of tokens is highest."),
        Column("by", "n", "Above the mean over distances, in standard deviations of the scores over pairs of tokens."),
        Column("Q-composition", "keep", "Earlier head of which the queries read most, at the distance preferred."),
        Column("K-composition", "keep", "Earlier head of which the keys read most."),
        Column("V-composition", "keep", "Earlier head of which the values read most."),
        Column("read by MLP", "keep", "MLP that reads most of what it writes: by its gate and by W_in."),
    )
    rows = [
        (
            head.name,
            percent(head.copying, 3),
            str(head.distance),
            value(head.preference.max().item(), 2),
            *(composition_text(head, by) for by in "QKV"),
            f"{head.read.layer}: {head.read.gate:.3f}, {head.read.input:.3f}",
        )
        for head in table.heads
    ]
    note = f"Composition by chance, of random matrices of this width: {table.chance:.3f}."
    return Part("Heads", Table.of(columns, rows), note, "heads")


def _moves(table: HeadTable, texts: Sequence[str]) -> Part:
    columns = (_HEAD, Column("where it looks at", "tokens"), Column("moves the logit of", "tokens"), Column("by", "n"))
    rows = [
        (head.name, [texts[row]], [texts[column]], value(entry))
        for head in table.heads
        for row, column, entry in zip(
            *(x.tolist() for x in (head.moves.row, head.moves.column, head.moves.value)), strict=True
        )
    ]
    note = (
        "Largest entries of OV between tokens and logits, by the direct path: the embedding as the first norm scales"
        " it, and the final norm's scale left out. Negative: where the head looks at the first token, it lowers the"
        " second."
    )
    return Part("What heads move", Table.of(columns, rows, tall=True), note, "moves")


def _looks(table: HeadTable, texts: Sequence[str]) -> Part:
    columns = (
        _HEAD,
        Column("at", "tokens", "Token at the query."),
        Column("looks at", "tokens", "Token at the key."),
        Column("distance", "n"),
        Column("score", "n"),
    )
    rows = [
        (head.name, [texts[query]], [texts[key]], str(distance), value(score, 2))
        for head in table.heads
        for query, key, distance, score in zip(*head.looks.table().values(), strict=True)
    ]
    note = (
        f"Highest scores over all pairs of these {number(len(texts))} tokens and the distances 0 to"
        f" {table.n_distances - 1}, certified: none is higher. Scores are less their mean over the tokens at the key,"
        " which softmax ignores. Exact for layer 0, but for biases; later layers read what earlier ones wrote, too."
    )
    return Part("Where heads look", Table.of(columns, rows, tall=True), note, "looks")


def why_page(ledger: AttentionLedger, texts: Sequence[str], provenance: Mapping[str, Any]) -> str:
    """Write why a head looks from one token at another as a page.

    Args:
        ledger: The terms of the score.
        texts: Texts of the prompt's tokens.
        provenance: What it was computed with; shown as a table.
    """
    figures = {"by-query": _bars(ledger, "query"), "by-key": _bars(ledger, "key")}
    terms = Part("Largest terms", terms_table(ledger, _N_TERMS), "", "terms")
    return render(
        "why.html.j2",
        figures=figures,
        ledger=ledger,
        texts=texts,
        facts={
            "pattern: what the query gives the key": number(ledger.pattern),
            "log-odds against the mean key": value(ledger.log_odds),
            "score before softmax": value(ledger.score),
            "terms": number(ledger.terms.numel()),
        },
        terms=terms,
        links=links([terms], [("parts", "By part")]),
        provenance=plain(dict(provenance)),
        words=WORDS[2:],
    )


def _bars(ledger: AttentionLedger, side: str) -> dict[str, Any]:
    nodes, values = (ledger.query_parts, ledger.by_query()) if side == "query" else (ledger.key_parts, ledger.by_key())
    best = values.abs().argsort(descending=True, stable=True)[:_N_BARS].tolist()
    names = [str(nodes[i]._replace(position=None)) for i in best]
    return signed_bars(names, [values[i].item() for i in best], f"log-odds of the part at the {side}")
