"""Find the circuits a query asks for, prove them, and write report.html and circuit.json.

A query is a YAML file: a name, trigger words, two poles of words and a corpus. Output features that act at the triggers
and move the model between the poles are ranked; the best of either sign are removed from the weights, with matched
controls, on stories that played no part in the ranking.
"""

import math
import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from simple_parsing import field

from bilinear_circuits.command_line import common, images, records, tables
from bilinear_circuits.command_line.corpus import corpus_of, tokenized
from bilinear_circuits.command_line.outputs import RESULT_FILES, Outputs

if TYPE_CHECKING:
    from bilinear_circuits.circuits import CircuitSearch


OUTPUTS = Outputs("circuit.json", "circuit search", ("report.html", "ranking.csv", "ranking.parquet", *RESULT_FILES))


@dataclass(kw_only=True)
class Arguments(common.GateArguments, common.LabelArguments):
    """Options of `circuits`."""

    query: str = field(positional=True, metavar="QUERY")
    """Query: a YAML file, or a shipped one by name: sentiment_negation, ts_nano_negation."""

    layers: list[int] | None = None
    """Layers to search; by default all that have dictionaries."""

    n_stories: int | None = None
    """Stories read from the corpus; by default what the query says."""

    out: str = "out/circuits"
    """Folder for report.html, circuit.json, the ranking as ranking.csv and ranking.parquet, and result.json, from which
    Python loads the search: bc.load_result(bc.CircuitSearch, OUT)."""

    images: list[str] | None = None
    """Write the figures to OUT/images, too: png, svg or both."""


def run(arguments: Arguments) -> None:
    """Search, print the circuits, write the report."""
    from bilinear_circuits.circuits import find_circuits
    from bilinear_circuits.circuits.query_file import read_query
    from bilinear_circuits.models.running import context_length
    from bilinear_circuits.report import circuits_page, search_payload
    from bilinear_circuits.report.figures import search_figures
    from bilinear_circuits.report.notebook import columns_of
    from bilinear_circuits.utilities.saving import save_result

    started = time.perf_counter()
    asked = read_query(arguments.query)
    common.check_out(arguments.out)
    images.check(arguments.images, arguments.out)
    n_stories = asked.n_stories if arguments.n_stories is None else arguments.n_stories
    layers = common.check_layers(arguments.layers, common.saes_of(arguments, reads_corpus=asked.corpus is None))
    corpus = corpus_of(arguments, asked.corpus)
    stories = corpus.read(n_stories)
    model, interactions = common.load_interactions(arguments, layers, corpus=corpus)
    tokens = tokenized(corpus, stories, model.tokenizer, min(asked.settings.context, context_length(model)))
    search = find_circuits(
        model, interactions, asked.query, tokens, settings=asked.settings, seed=arguments.seed, progress=common.bar
    )
    seconds = time.perf_counter() - started
    resolved = replace(
        arguments, saes=common.saes_of(arguments), corpus=records.display_name(corpus.path), layers=layers
    )
    source = records.provenance(resolved, interactions, corpus, len(stories), seconds)
    with common.written_whole(arguments.out, first=OUTPUTS.record) as folder:
        (folder / "circuit.json").write_text(common.to_json(search_payload(search, source)), encoding="utf-8")
        save_result(search, folder, source)
        files = ["report.html", "circuit.json", *RESULT_FILES, *tables.write(folder, "ranking", columns_of(search))]
    common.write_page(arguments.out, lambda: circuits_page(search, source))
    drawn = images.written(search_figures(search), arguments.out, arguments.images)
    print(summary(search, any(one.mlp.approximation is not None for one in interactions)))
    print(f"\n{time.perf_counter() - started:.0f} s. Written:")
    for file in (*(Path(arguments.out) / name for name in files), *drawn):
        print(f"  {file}")
    if search.circuits:
        print(f"To look through them, prompt by prompt: bilinear-circuits explore {arguments.out}/circuit.json")


def summary(search: "CircuitSearch", fitted: bool = False) -> str:
    """The circuits as text: what was found, what removing it does, and which of them that proves."""
    taken = "taken out of the MLP output" if fitted else "subtracted from the weights"
    from bilinear_circuits.report.verdict import verdict

    lines = [
        f"{search.query.name}: {len(search.ranking)} features ranked in full on {search.n_tokens} tokens,"
        f" {search.n_trigger_tokens} of them triggers;",
        f"the best of either pole tested at the first trigger of {search.n_sites} other stories.",
        "",
        "layer/feature  pole      score  on triggers  removed (95 % interval)        controls (95 % interval)"
        "       CE change",
    ]
    verdicts = [verdict(one.proof, one.evidence.sign) for one in search.circuits]
    for circuit, judged in zip(search.circuits, verdicts, strict=True):
        evidence, proof = circuit.evidence, circuit.proof
        pole = "positive" if evidence.sign > 0 else "negative"
        effects = f"{_interval(proof.removal)}  {_interval(proof.control)}  {proof.ce_removal.mean:+.4f}"
        share = f"{100 * evidence.trigger_share:9.0f} %"
        lines += [f"{evidence.name:<13}  {pole}  {evidence.score:5.2f}  {share}  {effects}", f"  {judged.text}"]
        lines += [f"  {judged.note}"] if judged.note else []
    lines += [
        "",
        f"{sum(one.proved for one in verdicts)} of {len(verdicts)} proved",
        "",
        "on triggers: share of the feature's activation that lies on triggers. removed: change of logit(positive)",
        "- logit(negative) at the triggers where the feature is active, in nats, when the"
        f" rank-{search.settings.rank} part of its quadratic form",
        f"is {taken}. controls: the same for features of like frequency and norm.",
    ]
    return "\n".join(lines).replace("\N{MINUS SIGN}", "-")


def _interval(effect: Any) -> str:
    if math.isnan(effect.mean):
        return "active at no site".ljust(29) if effect.n == 0 else "not measured".ljust(29)
    interval = "" if math.isnan(effect.low) else f" [{effect.low:+.3f}, {effect.high:+.3f}]"
    return f"{effect.mean:+.3f}{interval}".ljust(29)
