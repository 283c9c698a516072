"""Circuits looked for in other dictionaries or models, as a page: which return where, and by how much."""

from collections.abc import Mapping, Sequence
from typing import Any

from bilinear_circuits.comparison.likeness import Likeness
from bilinear_circuits.comparison.stability import MAX_P_VALUE, Match, Stability, StabilityTable
from bilinear_circuits.report.html import render
from bilinear_circuits.report.pages.parts import Column, Part, Table, links, value
from bilinear_circuits.report.payload import plain
from bilinear_circuits.report.text import number, signed, visible

WORDS = ("Circuit", "Form")
_LIKENESS = (
    Column("active", "n", "Correlation of activations over the same tokens."),
    Column("jaccard", "n", "Tokens at which both are active, over those at which one is."),
    Column("promoted", "n", "Correlation of what they add to the logits."),
    Column("decoder", "n", "Cosine of decoder rows; only between dictionaries of one model."),
    Column("encoder", "n", "Cosine of encoder directions; only between dictionaries of one model."),
    Column("form", "n", "Correlation of the quadratic forms over Gaussian inputs like the corpus."),
    Column("inputs", "n", "Overlap of the two leading eigenvectors, from 0 to 1."),
)


def comparison_page(table: StabilityTable, provenance: Mapping[str, Any]) -> str:
    """Write a comparison of circuits as a page.

    Args:
        table: What was compared.
        provenance: What it was computed with: its `files` are named at the top.
    """
    listed = [_returns(table)]
    for index, comparison in enumerate(table.comparisons):
        listed += [_matches(comparison, index), _assigned(comparison, index)]
    listed = [part for part in listed if part.table.rows]
    return render(
        "comparison.html.j2",
        plotly=None,
        table=table,
        one=table.comparisons[0],
        most_p=MAX_P_VALUE,
        files=[_file(file) for file in provenance.get("files", ())],
        listed=listed,
        links=links(listed),
        provenance=plain(dict(provenance)),
        words=WORDS,
    )


def _file(file: Mapping[str, Any]) -> dict[str, str]:
    query = file.get("query") or {}
    return {
        "name": str(file.get("name", "")),
        "sha256": str(file.get("sha256", ""))[:12],
        "query": str(query.get("name", "")),
    }


def _returns(table: StabilityTable) -> Part:
    """Tell of every circuit in which of the other files it returns."""
    circuits = list(dict.fromkeys(match.circuit for comparison in table.comparisons for match in comparison.matches))
    found = [{match.circuit: match for match in comparison.matches} for comparison in table.comparisons]
    columns = (
        Column("circuit", "keep"),
        *(Column(f"in {visible(comparison.second)}", "keep") for comparison in table.comparisons),
        Column("returns in", "n"),
    )
    rows = []
    for circuit in circuits:
        here = [matches.get(circuit) for matches in found]
        count = sum(match is not None and match.returns for match in here)
        rows.append((circuit, *map(_verdict, here), f"{count} of {len(here)}"))
    total = [f"{comparison.n_returned} of {len(comparison.matches)}" for comparison in table.comparisons]
    every = (
        sum(comparison.n_returned for comparison in table.comparisons),
        sum(len(comparison.matches) for comparison in table.comparisons),
    )
    rows.append(("all circuits", *total, f"{every[0]} of {every[1]}"))
    note = "With the feature most like it there and the correlation of activations. *: a circuit of that file."
    return Part("Which circuits return where", Table.of(columns, rows), note, "returns")


def _verdict(match: Match | None) -> str:
    if match is None:
        return "–"
    correlation = signed(plain(match.likeness.activation), 2)
    return f"{'yes' if match.returns else 'no'}: {_matched(match)}, {correlation}"


def _matched(match: Match) -> str:
    return f"{match.match}{' *' if match.is_circuit else ''}"


def _matches(one: Stability, index: int) -> Part:
    columns = (
        Column("circuit", "keep"),
        Column("best match", "keep", "*: a circuit of the other file."),
        Column("returns", "keep"),
        Column("mutual", "keep", "Whether the circuit is the most alike of all features to its match, too."),
        *_LIKENESS,
        Column("percentile", "n", f"Among {one.n_null} random features of the layer, by how well each returns."),
        Column("chance", "n", f"Largest correlation with any candidate after a shift, median of {one.n_shifts}."),
        Column("p", "n", "Share of shifts of the tokens that find a correlation as large."),
    )
    rows = [
        (
            match.circuit,
            _matched(match),
            "yes" if match.returns else "no",
            "yes" if match.mutual else "no",
            *_numbers(match.likeness),
            f"{100 * match.percentile:.0f} %",
            value(match.chance, 2),
            number(match.p_value, 2),
        )
        for match in one.matches
    ]
    note = f"Matches of the circuits of {visible(one.first)}, chosen by {one.by}, on {number(one.n_tokens)} tokens."
    return Part(f"Matches in {visible(one.second)}", Table.of(columns, rows), note, f"matches-{index + 1}")


def _assigned(one: Stability, index: int) -> Part:
    columns = (Column("circuit", "keep"), Column("circuit there", "keep"), *_LIKENESS)
    rows = [(pair.first, pair.second, *_numbers(pair.likeness)) for pair in one.assignment]
    note = "The circuits of both files assigned to each other, so that the sum of their likenesses is largest."
    heading = f"One to one with {visible(one.second)}"
    return Part(heading, Table.of(columns, rows), note, f"assigned-{index + 1}")


def _numbers(likeness: Likeness) -> Sequence[str]:
    return [signed(plain(one), 2) for one in vars(likeness).values()]
