"""Evaluate dictionaries: variance explained, features, and what the model loses when they are spliced in.

FVU is the fraction of variance unexplained, L0 the mean number of active features. Recovered CE is the share of the
cross-entropy lost by setting that side of the MLP to zero that the dictionary keeps: 1 is no loss.
"""

import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from bilinear_circuits import zoo
from bilinear_circuits.command_line import common, records
from bilinear_circuits.command_line.corpus import corpus_of, tokenized
from bilinear_circuits.command_line.outputs import Outputs
from bilinear_circuits.data.corpora import Corpus

if TYPE_CHECKING:
    from sae.evaluate import Evaluation


OUTPUTS = Outputs("evaluation.json", "evaluation of dictionaries")


@dataclass(kw_only=True)
class Arguments(common.CommonArguments):
    """Options of `evaluate-sae`."""

    layers: list[int] | None = None
    """Layers to evaluate; by default all that have dictionaries."""

    n_stories: int = 200
    """Stories read from the corpus; best held-out ones."""

    out: str | None = None
    """Folder for evaluation.json; not written by default."""


def run(arguments: Arguments) -> None:
    """Evaluate and print one row per dictionary."""
    started = time.perf_counter()
    common.check_out(arguments.out)
    saes = common.saes_of(arguments)
    layers = common.check_layers(arguments.layers, saes)
    corpus = corpus_of(arguments)
    common.check_device(arguments.device)

    from bilinear_circuits.models.running import context_length
    from sae.evaluate import evaluate

    stories = corpus.read(arguments.n_stories)
    common.note(f"loading {arguments.model}")
    model = common.quietly_load_model(arguments.model, arguments.device)
    tokens = tokenized(corpus, stories, model.tokenizer, context_length(model))
    dictionaries = [one for layer in layers for one in zoo.load_dictionaries(layer, saes, arguments.device)]
    evaluations = evaluate(model, dictionaries, tokens, progress=common.bar)
    print(table(evaluations))
    if arguments.out is not None:
        resolved = replace(arguments, saes=saes, layers=layers)
        source = _provenance(resolved, evaluations, corpus, len(stories), time.perf_counter() - started)
        rows = [payload(evaluation) for evaluation in evaluations]
        with common.written_whole(arguments.out, first=OUTPUTS.record) as folder:
            document = {"schema_version": 1, "kind": OUTPUTS.kind, "dictionaries": rows, "provenance": source}
            (folder / OUTPUTS.record).write_text(common.to_json(document), encoding="utf-8")
        print(f"written: {arguments.out}/evaluation.json")


def table(evaluations: "Sequence[Evaluation]") -> str:
    """One row per dictionary, as text."""
    first = evaluations[0]
    lines = [
        f"{first.reconstruction.n_tokens} tokens; cross-entropy of the model {first.loss.base:.4f} nats per token",
        f"{'dictionary':<24}{'features':>9}{'FVU':>8}{'L0':>7}{'dead':>6}{'dense':>6}{'duplicates':>11}"
        f"{'CE added':>10}{'CE recovered':>14}",
    ]
    for evaluation in evaluations:
        seen = evaluation.reconstruction
        lines.append(
            f"{evaluation.dictionary.name:<24}{evaluation.dictionary.d_sae:>9}{seen.fvu:>8.4f}{seen.l0:>7.1f}{len(seen.dead):>6}"
            f"{len(seen.dense):>6}{len(evaluation.duplicates):>11}{evaluation.loss.added:>10.4f}{evaluation.loss.recovered:>14.4f}"
        )
    return "\n".join(lines)


def payload(one: "Evaluation") -> dict[str, Any]:
    """The result as plain data; what is not a number, as with no variance to explain, is null."""
    seen = one.reconstruction
    numbers = {
        "fvu": seen.fvu,
        "l0": seen.l0,
        "ce": one.loss.base,
        "ce_spliced": one.loss.spliced,
        "ce_zero": one.loss.zero,
        "ce_added": one.loss.added,
        "ce_recovered": one.loss.recovered,
    }
    return {
        "name": one.dictionary.name,
        "hook_name": one.dictionary.hook_name,
        "d_sae": one.dictionary.d_sae,
        "activation": one.dictionary.activation.kind,
        "n_tokens": seen.n_tokens,
        **{name: value if value == value else None for name, value in numbers.items()},
        "dead": seen.dead.tolist(),
        "dense": seen.dense.tolist(),
        "duplicate_threshold": one.duplicates.threshold,
        "duplicates": [
            {"features": pair, "cosine": round(cosine, 6)}
            for pair, cosine in zip(one.duplicates.pairs.tolist(), one.duplicates.cosine.tolist(), strict=True)
        ],
    }


def _provenance(
    arguments: Arguments, evaluations: "Sequence[Evaluation]", corpus: Corpus, n_stories: int, seconds: float
) -> dict[str, Any]:
    """What it takes to repeat the result: configuration, versions, commit, hashes of model, dictionaries and data."""
    names = [evaluation.dictionary.name for evaluation in evaluations]
    folders = {name: zoo.dictionary_folder(common.saes_of(arguments), name) for name in names}
    return {
        "model": records.model_source(arguments.model),
        "dictionaries": {
            name: None if one is None else zoo.dictionary_fingerprint(one).sha256 for name, one in folders.items()
        },
        "corpus": records.corpus_source(corpus, n_stories),
        **records.environment(),
        "config": records.shared_config(arguments),
        "seconds": round(seconds, 1),
    }
