"""The account of a prompt as text for the terminal, as a JSON document and as tables."""

from collections.abc import Callable
from itertools import islice
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from bilinear_circuits.paths.account import PathAccount
    from bilinear_circuits.paths.nodes import Node
    from bilinear_circuits.paths.why import AttentionLedger

_N_NODES, _N_MATRICES, _N_PAIRS, _N_DEGREES, _N_LISTED = 12, 2, 6, 6, 100
Texts = Callable[[int], str]


def describe(account: "PathAccount", texts: Texts) -> str:
    """Write the target, sums over cuts, the largest nodes and pairs, degrees, and how well removals are predicted."""
    from bilinear_circuits.report.text import visible

    tokens = [visible(texts(token)) for token in account.token_ids.tolist()]
    lines = [
        f"{len(tokens)} tokens: {' '.join(tokens)}",
        f"target: {named(account, texts)} at {tokens[account.position]} @{account.position}: {account.total:+.4f}",
        f"sum over each of {len(account.cuts)} cuts: the same, within {account.worst_cut:.1e}",
        "",
        f"largest of {account.n_nodes:,} nodes, whose flow goes on into others (it adds up over a cut, not here)",
    ]
    nodes = zip(account.nodes.nodes, account.nodes.value.tolist(), strict=True)
    lines += [f"  {flow:+9.3f}  {node!s:<22} {_at(node, tokens)}" for node, flow in islice(nodes, _N_NODES)]
    return "\n".join([*lines, *_pairs(account, tokens), *_degrees(account), *_effects(account)])


def named(account: "PathAccount", texts: Texts) -> str:
    """What is explained, with the texts of tokens."""
    from bilinear_circuits.report.pages.paths import target_text
    from bilinear_circuits.report.text import visible

    parts = target_text(account, texts)
    if not account.weights:
        return parts[0][1]
    return " ".join(f"{sign.replace('−', '-')} logit of {visible(text)}" for sign, text in parts).removeprefix("+ ")


def _at(node: "Node", tokens: list[str]) -> str:
    from bilinear_circuits.report.pages.paths import tokens_of

    return " -> ".join(tokens_of(node, tokens))


def _pairs(account: "PathAccount", tokens: list[str]) -> list[str]:
    lines = []
    for matrix in account.matrices[:_N_MATRICES]:  # the others are in the tables
        at = _at(matrix.node, tokens)
        lines += ["", f"largest of {matrix.n_pairs:,} pairs of {matrix.node} {at}, which add up to {matrix.value:+.3f}"]
        rows = zip(matrix.flow.tolist(), matrix.first, matrix.second, strict=True)
        for flow, *pair in islice(rows, _N_PAIRS):
            lines.append(f"  {flow:+9.3f}  {' x '.join(f'{part} {_at(part, tokens)}' for part in pair)}")
    return lines


def _degrees(account: "PathAccount") -> list[str]:
    values = account.degrees.value.tolist()
    shown = ", ".join(f"{at}: {value:+.3f}" for at, value in enumerate(values[:_N_DEGREES]))
    rest = sum(values[_N_DEGREES:]) + account.degrees.rest
    return ["", f"by degree in the embeddings: {shown}, higher: {rest:+.3f}"]


def _effects(account: "PathAccount") -> list[str]:
    effects = account.effects
    return [
        f"predicted (norms alive) against real effects of removing {len(effects.removed)} of {account.n_removable}"
        f" heads and MLPs: r {effects.correlation:+.2f}, slope {effects.slope:+.2f}",
        "The flow is an account, no prediction of what a removal does.",
    ]


def payload(account: "PathAccount", texts: Texts) -> dict[str, Any]:
    """Write what the page shows as plain data."""
    effects, nodes = account.effects, account.nodes.top(_N_LISTED)
    return {
        "tokens": [texts(token) for token in account.token_ids.tolist()],
        "target": named(account, texts),
        "position": account.position,
        "total": account.total,
        "cuts": account.cuts,
        "worst_cut": account.worst_cut,
        "n_nodes": account.n_nodes,
        "share_of_nodes": account.share_of_nodes,
        "nodes": nodes.table(),
        "pairs": [
            {
                "node": str(matrix.node),
                "flow": matrix.value,
                "constant": matrix.constant,
                "n_pairs": matrix.n_pairs,
                "mass": matrix.mass,
                "groups": matrix.groups,
                "matrix": matrix.matrix,
            }
            for matrix in account.matrices
        ],
        "degrees": {"value": account.degrees.value, "rest": account.degrees.rest},
        "effects": {
            "correlation": effects.correlation,
            "slope": effects.slope,
            "n_removable": account.n_removable,
            **effects.table(),
            "flow": account.flows,
        },
        "attention": [ledger_payload(ledger) for ledger in account.ledgers],
    }


def ledger_payload(ledger: "AttentionLedger", k: int = 10) -> dict[str, Any]:
    """Write an attention score and its k largest terms as plain data."""
    names = ("layer", "head", "query_pos", "key_pos", "pattern", "score", "log_odds")
    return {**{name: getattr(ledger, name) for name in names}, "terms": ledger.table(k)}


def node_columns(account: "PathAccount", texts: Texts) -> dict[str, list[Any]]:
    """Write the nodes kept as columns, with their tokens."""
    from bilinear_circuits.report.notebook import columns_of

    columns = columns_of(account)
    ids = account.token_ids.tolist()
    for name, of in (("token", "position"), ("source_token", "source")):
        columns[name] = [None if at is None else texts(ids[at]) for at in columns[of]]
    return columns


def pair_columns(account: "PathAccount", texts: Texts) -> dict[str, list[Any]]:
    """Write the pairs kept as columns, MLP by MLP, with their tokens."""
    from bilinear_circuits.report.pages.paths import tokens_of

    tokens = [texts(token) for token in account.token_ids.tolist()]
    columns: dict[str, list[Any]] = {}
    names = ("mlp", "token", "first", "first_tokens", "second", "second_tokens", "flow")
    for name in names:
        columns[name] = []
    for matrix in account.matrices:
        for first, second, flow in zip(matrix.first, matrix.second, matrix.flow.tolist(), strict=True):
            ends = [one for part in (first, second) for one in (str(part), tokens_of(part, tokens))]
            row = (str(matrix.node), tokens[matrix.node.position or 0], *ends, flow)
            for name, value in zip(names, row, strict=True):
                columns[name].append(value)
    return columns
