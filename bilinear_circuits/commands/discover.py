"""Search all output features for motifs, without a query, and control the false-discovery rate.

The form of every output feature is compared with templates on its leading axes: and, flip, xor, contrast, square,
suppression. P-values come from null layers with the same numbers in other places, whose encoders are refitted to the
same firing patterns, and from rotated forms. Motifs that other features explain, and motifs whose inputs never meet,
are listed apart.
"""

import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from simple_parsing import field

from bilinear_circuits.command_line import common, records, tables
from bilinear_circuits.command_line.corpus import corpus_of, tokenized
from bilinear_circuits.command_line.outputs import Outputs
from bilinear_circuits.command_line.values import check_least, check_most
from bilinear_circuits.utilities.feature import Feature

if TYPE_CHECKING:
    from bilinear_circuits.discovery import (
        Block,
        Discovery,
        DiscoverySearch,
        DiscoverySettings,
        Interference,
        PlanePair,
    )
    from bilinear_circuits.interactions.naming import FeatureNames

OUTPUTS = Outputs(
    "pairs.json",
    "plane pairs",
    ("report.html", "discoveries.csv", "discoveries.parquet", "result.json", "result.safetensors"),
)


@dataclass(kw_only=True)
class Arguments(common.GateArguments, common.LabelArguments):
    """Options of `discover`."""

    layers: list[int] | None = None
    """Layers to search; by default all that have dictionaries."""

    n_stories: int = 200
    """Stories read from the corpus."""

    fdr: float = 0.05
    """False-discovery rate over all features, motifs and layers."""

    nulls: list[str] = field(default_factory=lambda: ["refit", "rotation"], metavar="NULL")  # noqa: RUF009
    """What scores are compared with, the strictest of: refit, weights, symmetric, rotation, dictionary."""

    replicates: int = 2
    """Draws of each null; the smallest p-value is 1 / (1 + draws x features)."""

    n_listed: int = 5
    """Discoveries of each motif that are printed."""

    n_largest: int = 0
    """Largest interactions of a layer that are checked for inputs that never meet, such as 1000. The check sweeps the
    whole interaction tensor, which takes as long as the search; by default it is left out."""

    out: str | None = None
    """Folder for report.html, result.json and .safetensors, pairs.json, discoveries.csv and .parquet; not written by
    default."""


def run(arguments: Arguments) -> None:
    """Search, print the best of each motif, write all of them."""
    started = time.perf_counter()
    common.check_out(arguments.out)

    from bilinear_circuits.discovery import discover, interference, plane_pairs, score_layer

    settings = _settings(arguments)
    layers = common.check_layers(arguments.layers, common.saes_of(arguments))
    corpus = corpus_of(arguments)

    from bilinear_circuits.interactions.activity import collect_activity
    from bilinear_circuits.interactions.naming import FeatureNames
    from bilinear_circuits.models.running import context_length

    stories = corpus.read(arguments.n_stories)
    model, interactions = common.load_interactions(arguments, layers, corpus=corpus)
    tokens = tokenized(corpus, stories, model.tokenizer, context_length(model))
    activity = collect_activity(model, interactions, tokens, common.bar)
    scores = [
        score_layer(layer, data, settings, arguments.seed, common.bar)
        for layer, data in zip(interactions, activity, strict=True)
    ]
    search = discover(interactions, activity, settings, arguments.seed, common.bar, scores)
    pairs = [pair for layer, own in zip(interactions, scores, strict=True) for pair in plane_pairs(layer, own)]
    unmet = [
        interference(layer, data.inputs, len(data.x), arguments.n_largest, arguments.seed, common.bar)
        for layer, data in zip(interactions, activity, strict=True)
        if arguments.n_largest
    ]
    names = FeatureNames(activity, model.tokenizer)
    print(summary(search, names, arguments.n_listed))
    print(pair_table(pairs, names, settings.fdr, arguments.n_listed))
    print(interference_table(unmet), end="")
    if arguments.out is not None:
        resolved = replace(arguments, saes=common.saes_of(arguments), layers=layers)
        source = records.provenance(resolved, interactions, corpus, len(stories), time.perf_counter() - started)
        _write(arguments.out, search, pairs, unmet, names, source)
        print(f"written: {arguments.out}/report.html, result.json, discoveries.csv, discoveries.parquet, pairs.json")


def _settings(arguments: Arguments) -> "DiscoverySettings":
    from bilinear_circuits.discovery import NULLS, DiscoverySettings

    if unknown := set(arguments.nulls) - set(NULLS):
        raise ValueError(f"nulls must be among {', '.join(NULLS)}, got {', '.join(sorted(unknown))}.")
    check_least(arguments, n_listed=1, n_stories=1, n_largest=0)
    check_most(arguments, replicates=10_000, n_largest=1_000_000)
    return DiscoverySettings(
        nulls=tuple(arguments.nulls),  # type: ignore[arg-type]
        replicates=arguments.replicates,
        fdr=arguments.fdr,
    )


def summary(search: "DiscoverySearch", names: "FeatureNames", n_listed: int) -> str:
    """The search as text: how many of each motif, and the best of each."""
    from bilinear_circuits.discovery import MOTIFS

    rate = f"{100 * search.settings.fdr:g} %"
    lines = [
        f"{search.n_features} output features, {search.n_tests} tests at a false-discovery rate of {rate}"
        f" against {' and '.join(search.settings.nulls)}:",
        f"{len(search.discoveries)} discoveries, {len(search.echoes)} echoes of other features,"
        f" {len(search.apart)} whose inputs hardly meet",
        f"(with this many draws of the nulls, fewer than {search.fewest} significant tests cannot be told from chance)",
        "",
        "motif        discoveries  echoes  smallest significant score  99 % points: " + ", ".join(search.high_scores),
    ]
    counts, echoes = (Counter(discovery.motif for discovery in part) for part in (search.discoveries, search.echoes))
    for motif in MOTIFS:
        points = ", ".join(f"{column[motif]:.3f}" for column in search.high_scores.values())
        cutoff = f"{search.cutoffs[motif]:.3f}"
        lines.append(f"{motif:<11}  {counts[motif]:>11}  {echoes[motif]:>6}  {cutoff:<26}  {points}")
    for motif in MOTIFS:
        best = [discovery for discovery in search.discoveries if discovery.motif == motif][:n_listed]
        if best:
            lines += ["", f"{motif}:"] + [line for discovery in best for line in _described(discovery, names)]
    return "\n".join(lines)


def _described(one: "Discovery", names: "FeatureNames") -> list[str]:
    lines = [f"  {one.name:<8} score {one.score:.3f}  q {one.q:.2g}  at {_tokens(names, one.layer, one.feature)}"]
    return lines + [f"    {_block(block, one.layer, names)}" for block in one.blocks]


def _block(block: "Block", layer: int, names: "FeatureNames") -> str:
    first = _group(names, layer, block.first)
    if block.first == block.second:
        return f"{block.strength:+.3f}  ({first})^2"
    second = _group(names, layer, block.second)
    return f"{block.strength:+.3f}  ({first}) x ({second})  together on {block.together} tokens"


def _group(names: "FeatureNames", layer: int, features: Sequence[int], n: int = 3) -> str:
    """The first n features of a group."""
    more = f" and {len(features) - n} more" if len(features) > n else ""
    return " | ".join(names(layer, feature) for feature in features[:n]) + more


def _tokens(names: "FeatureNames", layer: int, feature: int) -> str:
    return " ".join(names.tokens(layer, feature))


def pair_table(pairs: "Sequence[PlanePair]", names: "FeatureNames", fdr: float, n_listed: int) -> str:
    """The pairs of output features with the nearest planes, as text."""
    kinds = Counter(pair.kind for pair in pairs)
    beyond = Counter(pair.kind for pair in pairs if pair.q <= fdr)
    count = ", ".join(f"{kinds[kind]} {kind} ({beyond[kind]})" for kind in ("antipodal", "parallel", "shared plane"))
    lines = ["", f"output features and the one nearest to their plane (beyond chance): {count}"]
    for kind in ("antipodal", "shared plane"):
        for pair in [one for one in pairs if one.kind == kind][:n_listed]:
            first, second = (
                f"{Feature(pair.layer, feature)} ({_tokens(names, pair.layer, feature)})" for feature in pair.features
            )
            numbers = f"overlap {pair.overlap:.2f}, forms {pair.correlation:+.2f}, decoders {pair.decoder_cosine:+.2f}"
            numbers += f", q {pair.q:.2g}"
            lines.append(f"  {kind:<12} {first} and {second}: {numbers}")
    return "\n".join(lines) + "\n"


def interference_table(unmet: "Sequence[Interference]") -> str:
    """Write as text how many of the largest interactions never meet."""
    lines = []
    for check in unmet:
        lines.append(
            f"layer {check.layer}: of the {check.k} largest interactions of two input features"
            f" {100 * check.never:.0f} % join features never active together"
            f" (random pairs: {100 * check.never_random:.0f} %);"
        )
        lines.append(
            f"  weighted by co-activation their ranks correlate {check.rank_correlation:+.2f}, and"
            f" {100 * check.kept:.0f} % of the largest {check.k} of {10 * check.k} stay among them"
        )
    return "\n".join([*lines, ""]) if lines else ""


def _write(
    out: str,
    search: "DiscoverySearch",
    pairs: "Sequence[PlanePair]",
    unmet: "Sequence[Interference]",
    names: "FeatureNames",
    source: dict[str, object],
) -> None:
    from dataclasses import asdict

    from bilinear_circuits.report.pages import discovery_page
    from bilinear_circuits.report.payload import plain
    from bilinear_circuits.utilities.saving import save_result

    with common.written_whole(out, first=OUTPUTS.record) as folder:
        save_result(search, folder, source)
        tables.write(folder, "discoveries", _columns(search, names))
        document = {"schema_version": 1, "kind": OUTPUTS.kind, "provenance": source}
        rows = [asdict(pair) for pair in pairs]
        document |= {"pairs": rows, "interference": [asdict(check) for check in unmet]}
        (folder / "pairs.json").write_text(common.to_json(plain(document)), encoding="utf-8")
    common.write_page(out, lambda: discovery_page(search, pairs, unmet, names, source))


def _columns(search: "DiscoverySearch", names: "FeatureNames") -> tables.Columns:
    """One row for each significant feature."""
    from bilinear_circuits.report.notebook import columns_of

    columns = columns_of(search)
    rows = (*search.discoveries, *search.echoes, *search.apart)
    columns["at"] = [_tokens(names, row.layer, row.feature) for row in rows]
    columns["blocks"] = ["; ".join(_block(block, row.layer, names) for block in row.blocks) for row in rows]
    return columns
