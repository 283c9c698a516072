"""Show attention heads from weights alone: copying, what they move, where they look, with whom they compose.

With --prompt, --layer and --head: why that head looks from one token of the prompt at another, part by part. Works for
any Llama-type model.

  bilinear-circuits heads --layer 2 --head 1 --prompt "tom saw a dog . lily" --out out/why
"""

import re
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from bilinear_circuits import zoo
from bilinear_circuits.command_line import common, records, tables
from bilinear_circuits.command_line.outputs import Outputs
from bilinear_circuits.command_line.values import check_least, check_most
from bilinear_circuits.commands.path_tables import ledger_payload

if TYPE_CHECKING:
    from bilinear_circuits.paths.heads import HeadTable
    from bilinear_circuits.paths.why import AttentionLedger

OUTPUTS = Outputs("heads.json", "attention heads", ("report.html", "heads.csv", "heads.parquet"))
_BYTE = re.compile("<0x[0-9A-Fa-f]{2}>")
_N_TERMS, _N_LISTED = 12, 100


@dataclass(kw_only=True)
class Arguments:
    """Options of `heads`."""

    model: str = zoo.DEFAULT_MODEL
    """A shipped model, a Hugging Face model folder, or a Hub id."""

    layer: int | None = None
    """Layer; by default all."""

    head: int | None = None
    """Head of the layer; by default all."""

    n_tokens: int = 1000
    """Tokens between which is searched: the first of the vocabulary, which in most are the most frequent, without
    special tokens and single bytes."""

    n_distances: int = 32
    """Distances from query to key, from 0 on."""

    k: int = 5
    """Entries and scores listed of each head."""

    prompt: str | None = None
    """Text in which to explain the attention of the head, without [BOS]."""

    query_pos: int | None = None
    """Token of the prompt that looks, [BOS] being 0; by default the last."""

    key_pos: int | None = None
    """Token that is looked at; by default the one to which the query gives most."""

    device: str = "cpu"
    """Where to compute: cpu, cuda, cuda:1."""

    out: str | None = None
    """Folder for report.html, heads.json and tables; nothing is written by default."""

    def __post_init__(self) -> None:
        check_least(self, n_tokens=1, n_distances=1, k=1)
        check_most(self, n_tokens=1_000_000, n_distances=100_000, k=1_000)
        check_least(self, layer=0, head=0, query_pos=0, key_pos=0)
        if self.head is not None and self.layer is None:
            raise ValueError("layer must be given with head: heads are counted within their layer.")
        if self.prompt is not None and self.head is None:
            raise ValueError("layer and head must be given with prompt: one head is explained.")
        for name in ("query_pos", "key_pos"):
            if getattr(self, name) is not None and self.prompt is None:
                raise ValueError(f"prompt must be given with {name}: it counts the prompt's tokens.")


def run(arguments: Arguments) -> None:
    """Summarize, or explain; print and write."""
    started = time.perf_counter()
    common.check_out(arguments.out)
    zoo.model_path(arguments.model)
    common.check_device(arguments.device)
    common.note(f"loading {arguments.model}")
    model, tokenizer = common.quietly_load(zoo.load_plain_model, arguments.model, arguments.device)
    (_heads if arguments.prompt is None else _why)(arguments, model, tokenizer, started)
    if arguments.out is not None:
        print(f"\nwritten:\n{OUTPUTS.listed(arguments.out)}")
    print(f"{time.perf_counter() - started:.0f} s")


def _heads(arguments: Arguments, model: Any, tokenizer: Any, started: float) -> None:
    """Heads from weights alone."""
    import torch

    from bilinear_circuits.data.token_texts import TokenTexts
    from bilinear_circuits.paths.heads import summarize_heads
    from bilinear_circuits.paths.weights import read_weights
    from bilinear_circuits.report.notebook import columns_of
    from bilinear_circuits.report.pages import heads_page

    weights = read_weights(model)
    names = _names(arguments, weights.n_layers, weights.n_heads)
    texts = TokenTexts(tokenizer)
    ids = [one for one in range(len(weights.W_E)) if _is_text(texts(one), one, tokenizer)][: arguments.n_tokens]
    if not ids:
        raise ValueError(f"model must have tokens that are text to search among, got none in {arguments.model}.")
    chosen = torch.tensor(ids, device=weights.W_E.device)
    found = summarize_heads(weights, names, chosen, arguments.n_distances, arguments.k, common.bar)
    shown = [texts(token) for token in ids]
    print(describe(found, shown))
    _write(
        arguments,
        started,
        _heads_payload(found, shown),
        columns_of(found),
        lambda source: heads_page(found, shown, source),
    )


def _names(arguments: Arguments, n_layers: int, n_heads: int) -> list[tuple[int, int]]:
    """Layer and number of the heads asked for."""
    for name, size in (("layer", n_layers), ("head", n_heads)):
        if (value := getattr(arguments, name)) is not None and value >= size:
            raise ValueError(f"{name} must be below {size}, got {value}.")
    layers = range(n_layers) if arguments.layer is None else [arguments.layer]
    return [
        (layer, head) for layer in layers for head in (range(n_heads) if arguments.head is None else [arguments.head])
    ]


def _is_text(text: str, token_id: int, tokenizer: Any) -> bool:
    return token_id not in tokenizer.all_special_ids and not _BYTE.fullmatch(text)


def _why(arguments: Arguments, model: Any, tokenizer: Any, started: float) -> None:
    """Why a head looks where it does."""
    from bilinear_circuits.data.token_texts import token_text
    from bilinear_circuits.models.running import context_length
    from bilinear_circuits.paths.run import FrozenRun
    from bilinear_circuits.prompts.accounts import prompt_tokens
    from bilinear_circuits.report.pages import why_page

    assert arguments.prompt is not None
    assert arguments.layer is not None
    assert arguments.head is not None
    tokens = prompt_tokens(arguments.prompt, tokenizer, context_length(model))
    frozen = FrozenRun(model, tokens.to(arguments.device))
    _names(arguments, frozen.frozen.n_layers, frozen.frozen.n_heads)
    for name in ("query_pos", "key_pos"):
        if (value := getattr(arguments, name)) is not None and value >= len(tokens):
            raise ValueError(f"{name} must be below {len(tokens)}, the prompt's tokens, got {value}.")
    query = len(tokens) - 1 if arguments.query_pos is None else arguments.query_pos
    most = int(frozen.patterns[arguments.layer, arguments.head, query].argmax())
    ledger = frozen.why(
        arguments.layer, arguments.head, query, most if arguments.key_pos is None else arguments.key_pos
    )
    texts = [token_text(tokenizer, token) for token in tokens.tolist()]
    print(describe_why(ledger, texts))
    columns = ledger.table(ledger.terms.numel())
    content = {**ledger_payload(ledger, _N_LISTED), "tokens": texts}
    _write(arguments, started, content, columns, lambda source: why_page(ledger, texts, source))


def _write(
    arguments: Arguments, started: float, content: dict[str, Any], columns: dict[str, list[Any]], page: Any
) -> None:
    """Numbers and tables, then the page."""
    if arguments.out is None:
        return
    from bilinear_circuits.report.payload import plain

    source = records.prompt_provenance(arguments, [], time.perf_counter() - started)
    with common.written_whole(arguments.out, first=OUTPUTS.record) as folder:
        document = plain({"schema_version": 1, "kind": OUTPUTS.kind, "provenance": source, **content})
        (folder / OUTPUTS.record).write_text(common.to_json(document), encoding="utf-8")
        tables.write(folder, "heads", columns)
    common.write_page(arguments.out, lambda: page(source))


def describe(table: "HeadTable", texts: list[str]) -> str:
    """Write heads as a table."""
    from bilinear_circuits.report.pages.heads import composition_text
    from bilinear_circuits.report.text import visible

    lines = [
        f"{len(table.heads)} heads, {len(texts)} tokens, distances 0 to {table.n_distances - 1};"
        f" composition by chance {table.chance:.3f}",
        "head  copying  distance  Q-composition   K-composition   V-composition   moves; looks",
    ]
    for head in table.heads:
        row, column = texts[int(head.moves.row[0])], texts[int(head.moves.column[0])]
        query, key = texts[int(head.looks.query[0])], texts[int(head.looks.key[0])]
        by = "".join(f"{composition_text(head, by):<16}" for by in "QKV")
        lines.append(
            f"{head.name:<6}{100 * head.copying:5.0f} %  {head.distance:8}  {by}{visible(row)} ->"
            f" {visible(column)} {head.moves.value[0]:+.2f}; {visible(query)} at {visible(key)},"
            f" {int(head.looks.distance[0])} before {head.looks.score[0]:+.1f}"
        )
    return "\n".join(lines)


def describe_why(ledger: "AttentionLedger", texts: list[str]) -> str:
    """Write the largest terms of an attention score."""
    from bilinear_circuits.report.text import visible

    query, key = (f"{visible(texts[at])} @{at}" for at in (ledger.query_pos, ledger.key_pos))
    lines = [
        f"head {ledger.layer}.{ledger.head}: {query} looks at {key}, pattern {ledger.pattern:.3f}",
        f"log-odds against the mean key {ledger.log_odds:+.3f}, of {ledger.terms.numel()} terms",
    ]
    rows = ledger.top(_N_TERMS)
    return "\n".join([*lines, *(f"  {value:+9.3f}  {first} x {second}" for first, second, value in rows)])


def _heads_payload(table: "HeadTable", texts: list[str]) -> dict[str, Any]:
    """Heads as plain data, tokens by their texts."""
    return {
        "chance": table.chance,
        "n_distances": table.n_distances,
        "n_tokens": len(texts),
        "heads": [
            {
                "layer": head.layer,
                "head": head.head,
                "copying": head.copying,
                "distance": head.distance,
                "by_distance": head.by_distance,
                "spread": head.spread,
                "composition": [each._asdict() for each in head.compositions],
                "read": head.read._asdict(),
                "moves": [
                    {"token": texts[row], "promoted": texts[column], "value": value}
                    for row, column, value in zip(*head.moves.table().values(), strict=True)
                ],
                "looks": [
                    {"query": texts[query], "key": texts[key], "distance": distance, "score": score}
                    for query, key, distance, score in zip(*head.looks.table().values(), strict=True)
                ],
            }
            for head in table.heads
        ],
    }
