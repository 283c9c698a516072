"""The account of one prompt as a page: map, nodes, pairs, degrees, predicted against real effects, attention."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from bilinear_circuits.paths.account import PathAccount
from bilinear_circuits.paths.edges import Flows
from bilinear_circuits.paths.nodes import Node
from bilinear_circuits.paths.pair_matrix import PairMatrix
from bilinear_circuits.paths.why import AttentionLedger
from bilinear_circuits.report.figures.paths import account_figures
from bilinear_circuits.report.flow_map import flow_picture
from bilinear_circuits.report.html import render
from bilinear_circuits.report.pages.parts import Column, Part, Table, links, percent, scientific, value
from bilinear_circuits.report.payload import plain
from bilinear_circuits.report.text import number

WORDS = ("Cut", "Degree", "Flow", "Log-odds", "Pair")
N_NODES, N_TERMS = 30, 10
_FLOW = Column("flow", "n", "What it wrote times the cotangent there: its part of the target's value.")
_TOKENS = Column("tokens", "tokens", "Where it writes; for a message of a head from which token to which.")


def paths_page(account: PathAccount, token_text: Callable[[int], str], provenance: Mapping[str, Any]) -> str:
    """Write the account of a prompt as a page.

    Args:
        account: The account.
        token_text: Text of a token id.
        provenance: What it was computed with; shown as a table.
    """
    texts = [token_text(token) for token in account.token_ids.tolist()]
    matrices = [_matrix(matrix, texts) for matrix in account.matrices]
    places = {(matrix.node.layer or 0, matrix.node.position or 0): matrix_id(matrix) for matrix in account.matrices}
    ledgers = [_ledger(ledger, texts) for ledger in account.ledgers]
    nodes = _nodes(account.nodes.top(N_NODES), account, texts)
    effects, degrees = _effects(account), _degrees(account)
    sections = [("map", "Map"), ("nodes", nodes.heading)]
    sections += [("pairs", "Pairs")] if matrices else []
    sections += [("degrees", "Degrees"), ("effects", "Predicted and real effects")]
    sections += [("attention", "Why heads look")] if ledgers else []
    absent = {word for word, there in (("Log-odds", ledgers), ("Pair", matrices)) if not there}
    return render(
        "paths.html.j2",
        figures=account_figures(account),
        account=account,
        asked=target_text(account, token_text),
        texts=texts,
        facts=_facts(account),
        picture=flow_picture(account.map, account.position, texts, places),
        biased=(account.map.residual.sum(1) - account.total).abs().max().item() > 1e-3 * abs(account.total),
        nodes=nodes,
        matrices=matrices,
        effects=effects,
        degrees=degrees,
        ledgers=ledgers,
        links=links([], sections),
        provenance=plain(dict(provenance)),
        words=[word for word in WORDS if word not in absent],
    )


def target_text(account: PathAccount, token_text: Callable[[int], str]) -> list[tuple[str, str]]:
    """Say what is explained: pairs (sign, text of a token); for a feature its name alone."""
    if not account.weights:
        return [("", account.target.partition(" @")[0])]
    return [("−" if weight < 0 else "+", token_text(int(token))) for token, weight in account.weights.items()]


def matrix_id(matrix: PairMatrix) -> str:
    """Name the place of an MLP's pairs on the page."""
    return f"pairs-{matrix.node.layer}-{matrix.node.position}"


def tokens_of(node: Node, texts: Sequence[str]) -> list[str]:
    """Texts of the tokens of a node: that it is at, or those that a message goes from and to."""
    if node.position is None:
        return []
    return [texts[one] for one in (node.source, node.position) if one is not None]


def _facts(account: PathAccount) -> dict[str, str]:
    low = account.degrees.value[:3].sum().item()
    return {
        "value of the target": value(account.total),
        "largest error of a cut": scientific(account.worst_cut),
        "nodes with a flow": number(account.n_nodes),
        "correlation, predicted and real": value(account.effects.correlation, 2),
        "slope, real per predicted": value(account.effects.slope, 2),
        "of degree 2 and less": percent(low / account.total if account.total else 0.0),
    }


def _nodes(nodes: Flows, account: PathAccount, texts: Sequence[str]) -> Part:
    rows = [
        (str(node), tokens_of(node, texts), value(flow))
        for node, flow in zip(nodes.nodes, nodes.value.tolist(), strict=True)
    ]
    note = (
        f"The {number(len(rows))} of largest flow, of {number(account.n_nodes)}. A node's flow goes on into others, so"
        f" that these do not add up to the target. The {number(len(account.nodes.nodes))} largest, which hold"
        f" {percent(account.share_of_nodes)} of all magnitudes, are in nodes.csv."
    )
    return Part("Largest nodes", Table.of((Column("node", "keep"), _TOKENS, _FLOW), rows, tall=True), note, "nodes")


def _matrix(one: PairMatrix, texts: Sequence[str]) -> dict[str, Any]:
    """One MLP at a token: pairs by kind, and the largest of them."""
    rows = [
        (str(first), tokens_of(first, texts), str(second), tokens_of(second, texts), value(flow))
        for first, second, flow in zip(one.first, one.second, one.flow.tolist(), strict=True)
    ]
    part = Column("part", "keep")
    columns = (part, Column("tokens", "tokens"), Column("times", "keep"), Column("tokens", "tokens"), _FLOW)
    cells = plain(one.matrix)
    return {
        "id": matrix_id(one),
        "name": str(one.node),
        "token": texts[one.node.position or 0],
        "flow": value(one.value),
        "groups": one.groups,
        "cells": [row[: at + 1] for at, row in enumerate(cells)],
        "limit": one.matrix.abs().max().item() or 1.0,
        "constant": value(one.constant),
        "n_pairs": number(one.n_pairs),
        "share": percent(one.flow.abs().sum().item() / one.mass if one.mass else 0.0),
        "table": Table.of(columns, rows, tall=True),
    }


def _effects(account: PathAccount) -> Part:
    effects = account.effects
    columns = (
        Column("removed", "keep", "A head or an MLP at all tokens."),
        Column("flow", "n", "Its part of the account: no prediction."),
        Column("predicted", "n", "Patterns and gate factors fixed, norms computed again."),
        Column("real", "n", "All computed again."),
    )
    numbers = zip(
        effects.removed, account.flows.tolist(), effects.predicted.tolist(), effects.real.tolist(), strict=True
    )
    rows = [(name, *map(value, some)) for name, *some in numbers]
    note = f"All of the model's {number(account.n_removable)} heads and MLPs with a flow."
    if len(rows) < account.n_removable:
        note = f"The {number(len(rows))} of largest flow, of {number(account.n_removable)} heads and MLPs."
    return Part("Table of effects", Table.of(columns, rows, tall=True), note)


def _degrees(account: PathAccount) -> Part:
    degrees = account.degrees
    rows = [(str(at), value(one)) for at, one in enumerate(degrees.value.tolist())]
    rows.append(("higher", value(degrees.rest)))
    columns = (Column("degree", "n"), Column("part of the target", "n"))
    return Part("Table of degrees", Table.of(columns, rows, tall=True))


def _ledger(ledger: AttentionLedger, texts: Sequence[str]) -> dict[str, Any]:
    """Why a head looks from one token at another."""
    return {
        "name": f"head {ledger.layer}.{ledger.head}",
        "query": (texts[ledger.query_pos], ledger.query_pos),
        "key": (texts[ledger.key_pos], ledger.key_pos),
        "pattern": number(ledger.pattern),
        "log_odds": value(ledger.log_odds),
        "table": terms_table(ledger, N_TERMS),
    }


def terms_table(ledger: AttentionLedger, k: int) -> Table:
    """Write the largest terms of an attention score."""
    columns = (
        Column("part at the query", "keep"),
        Column("part at the key", "keep"),
        Column("log-odds", "n", "Product of both, less its mean over the keys that the query sees."),
    )
    rows = [(_bare(first), _bare(second), value(one)) for first, second, one in ledger.top(k)]
    return Table.of(columns, rows)


def _bare(node: Node) -> str:
    return str(node._replace(position=None))
