"""Measure how well the leading eigenvectors of each output feature predict its activation.

Active-only Pearson correlation of the rank-r quadratic form with the dictionary's own activations, for all output
features, by the protocol of Pearce et al. (2024): encoder row, [BOS] dropped, active tokens only, features with at most
ten active tokens left out.
"""

import time
from dataclasses import asdict, dataclass, replace
from typing import TYPE_CHECKING, Any

from bilinear_circuits.command_line import common, records, tables
from bilinear_circuits.command_line.corpus import corpus_of, tokenized
from bilinear_circuits.command_line.outputs import Outputs

if TYPE_CHECKING:
    from bilinear_circuits.interactions.low_rank import LowRankCorrelation

_THRESHOLD = 0.75


OUTPUTS = Outputs("lowrank.json", "low-rank correlations", ("lowrank.csv", "lowrank.parquet"))


@dataclass(kw_only=True)
class Arguments(common.GateArguments, common.CommonArguments):
    """Options of `lowrank`."""

    layers: list[int] | None = None
    """Layers to measure; by default all that have dictionaries."""

    ranks: list[int] | None = None
    """Ranks, besides the full one; by default 1, 2, 4, 8 and 16, as far as there are so many."""

    n_stories: int = 200
    """Stories read from the corpus."""

    min_active: int = 10
    """Features with at most this many active tokens are left out."""

    out: str | None = None
    """Folder for lowrank.json, lowrank.csv and lowrank.parquet: all correlations; not written by default."""


def run(arguments: Arguments) -> None:
    """Measure and print one table per layer."""
    started = time.perf_counter()
    common.check_out(arguments.out)
    if arguments.min_active < 1:
        raise ValueError(f"min_active must be at least 1, got {arguments.min_active}.")
    layers = common.check_layers(arguments.layers, common.saes_of(arguments))
    corpus = corpus_of(arguments)
    common.check_ranks("ranks", arguments.ranks or [], arguments.model)

    from bilinear_circuits.interactions.activity import collect_activity
    from bilinear_circuits.interactions.low_rank import low_rank_correlation
    from bilinear_circuits.models.running import context_length
    from bilinear_circuits.report.payload import plain

    stories = corpus.read(arguments.n_stories)
    model, interactions = common.load_interactions(arguments, layers, corpus=corpus)
    tokens = tokenized(corpus, stories, model.tokenizer, context_length(model))
    results = {}
    for activity in collect_activity(model, interactions, tokens, common.bar):
        layer = activity.interactions.mlp.layer
        results[layer] = low_rank_correlation(
            activity.interactions,
            activity.x,
            ranks=arguments.ranks,
            min_active=arguments.min_active,
            active=activity.outputs,
            progress=common.bar,
        )
        print(table(layer, results[layer], len(activity.x), arguments.seed), end="\n\n", flush=True)
    if arguments.out is not None:
        ranks = arguments.ranks or list(results[layers[0]].ranks[:-1])
        resolved = replace(arguments, saes=common.saes_of(arguments), layers=layers, ranks=ranks)
        source = records.provenance(resolved, interactions, corpus, len(stories), time.perf_counter() - started)
        rows = {str(layer): payload(result, arguments.seed) for layer, result in results.items()}
        with common.written_whole(arguments.out, first=OUTPUTS.record) as folder:
            document = {"schema_version": 1, "kind": OUTPUTS.kind, "layers": rows, "provenance": source}
            (folder / OUTPUTS.record).write_text(common.to_json(plain(document)), encoding="utf-8")
            files = tables.write(folder, "lowrank", tables.low_rank(results))
        print(f"written: {arguments.out}/lowrank.json, {', '.join(files)}")


def table(layer: int, result: "LowRankCorrelation", n_tokens: int, seed: int) -> str:
    """Mean correlation and share above 0.75 at each rank, as text."""
    kept = int(result.kept.sum())
    lines = [
        f"layer {layer}: {kept} of {len(result.features)} features have more than {result.min_active} active tokens"
        f" of {n_tokens}",
        "rank  mean correlation  share above 0.75 (95 % interval)",
    ]
    for rank in result.ranks:
        share = result.share_above(rank, _THRESHOLD, seed=seed)
        name = "full" if rank == result.ranks[-1] else str(rank)
        lines.append(
            f"{name:>4}  {result.mean(rank):16.4f}  {100 * share.value:5.1f} %"
            f" ({100 * share.low:.1f} to {100 * share.high:.1f})"
        )
    return "\n".join(lines)


def payload(result: "LowRankCorrelation", seed: int) -> dict[str, Any]:
    """The result as plain data; features left out hold null."""
    kept = result.kept.tolist()
    return {
        "ranks": list(result.ranks),
        "mean": [result.mean(rank) for rank in result.ranks],
        "share_above_0.75": [asdict(result.share_above(rank, _THRESHOLD, seed=seed)) for rank in result.ranks],
        "min_active": result.min_active,
        "features": result.features.tolist(),
        "n_active": result.n_active.tolist(),
        "correlation": [
            [round(value, 6) for value in row] if keep else None
            for row, keep in zip(result.correlation.tolist(), kept, strict=True)
        ],
    }
