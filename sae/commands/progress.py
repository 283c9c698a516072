"""Measure the dictionaries kept along a training: quality and low-rank correlation against training tokens.

Reads a folder of `train-sae` whose recipe had `snapshots`. For every snapshot and the final dictionaries: FVU, L0, dead
features, recovered CE, and for those of an MLP output how well a few eigenvectors predict their features.
"""

import json
import time
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from simple_parsing import field

from bilinear_circuits import zoo
from bilinear_circuits.command_line import common, records
from bilinear_circuits.command_line.arguments import CorpusArguments
from bilinear_circuits.command_line.corpus import corpus_of, tokenized
from bilinear_circuits.command_line.outputs import Outputs
from bilinear_circuits.data.corpora import Corpus

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from bilinear_circuits.dictionaries.dictionary import Dictionary
    from bilinear_circuits.interactions.low_rank import LowRankCorrelation
    from sae.progress import Stage, Trend

_RECORD, _MARKER, _SNAPSHOTS = "training.json", "run.json", "snapshots"
_THRESHOLD = 0.75
_TREND_RANK = 2


OUTPUTS = Outputs("progress.json", "training of dictionaries", ("progress.html",))


@dataclass(kw_only=True)
class Arguments(CorpusArguments):
    """Options of `sae-progress`."""

    folder: str = field(positional=True, metavar="FOLDER")
    """Folder that `train-sae` wrote."""

    model: str | None = None
    """A shipped model, a Hugging Face model folder, or a Hub id; by default the one trained on, if it is shipped."""

    layers: list[int] | None = None
    """Layers to measure; by default all that have dictionaries."""

    n_stories: int = 200
    """Stories read from the corpus; best held-out ones."""

    device: str = "cpu"
    """Where to compute: cpu, cuda, cuda:1."""

    seed: int = 0
    """Seed of the bootstrap intervals."""

    out: str | None = None
    """Folder for progress.json and progress.html; not written by default."""

    def __post_init__(self) -> None:
        super().__post_init__()
        common.check_seed(self.seed)


def run(arguments: Arguments) -> None:
    """Measure every stage and print one row for each."""
    started = time.perf_counter()
    common.check_out(arguments.out)
    folder = Path(arguments.folder)
    record = _read_record(folder)
    names = _hook_names(folder, record, arguments.layers)
    folders = _stage_folders(folder, record, names)
    model_name = arguments.model or _shipped_model(folder, record)
    zoo.model_path(model_name)
    corpus = corpus_of(
        common.CommonArguments(
            model=model_name, corpus=arguments.corpus, separator=arguments.separator, column=arguments.column
        )
    )
    common.check_device(arguments.device)

    from bilinear_circuits.models.running import context_length
    from sae.progress import training_progress, trends

    stories = corpus.read(arguments.n_stories)
    common.note(f"loading {model_name}")
    model = common.quietly_load_model(model_name, arguments.device)
    tokens = tokenized(corpus, stories, model.tokenizer, context_length(model))
    stages = training_progress(model, _load(folders, names, arguments.device), tokens, progress=common.bar)
    document = payload(stages, trends(stages, _TREND_RANK, _THRESHOLD), arguments.seed)
    print(table(document))
    if arguments.out is not None:
        resolved = replace(arguments, model=model_name, layers=sorted({_layer(name) for name in names}))
        source = _provenance(resolved, record, folders, names, corpus, len(stories), time.perf_counter() - started)
        _write(arguments.out, document | {"provenance": source})


def table(document: "Mapping[str, Any]") -> str:
    """One row per dictionary and number of training tokens, and how share and quality go together, as text."""
    heads = [f"rank {rank}: mean r, share above {document['threshold']:g}" for rank in document["ranks"]]
    lines = [
        f"{document['n_tokens']} tokens; cross-entropy of the model {document['ce']:.4f} nats per token",
        f"{'dictionary':<24}{'tokens':>13}{'FVU':>8}{'L0':>7}{'dead':>6}{'CE recovered':>14}"
        + "".join(f"{head:>33}" for head in heads),
    ]
    for one in document["stages"]:
        lines.append(
            f"{one['name']:<24}{one['training_tokens']:>13,}{_text(one['fvu'], '.4f'):>8}{one['l0']:>7.1f}"
            f"{one['n_dead']:>6}{_text(one['ce_recovered'], '.4f'):>14}"
            + "".join(f"{_cell(part):>33}" for part in one["low_rank"][: len(heads)])
        )
    lines += [
        f"{one['hook_name']}: Spearman correlation of the share at rank {one['rank']} with FVU"
        f" {_text(one['fvu'], '+.2f')}, with CE recovered {_text(one['ce_recovered'], '+.2f')}, over {one['n']} stages"
        for one in document["spearman"]
    ]
    return "\n".join(lines)


def payload(stages: "Sequence[Stage]", found: "Sequence[Trend]", seed: int = 0) -> dict[str, Any]:
    """The result as plain data; what is not a number is null.

    Args:
        stages: As `training_progress` returns them.
        found: Their trends.
        seed: Seed of the bootstrap intervals.
    """
    from bilinear_circuits.report.payload import plain

    return plain(
        {
            "schema_version": 1,
            "kind": OUTPUTS.kind,
            "n_tokens": stages[0].reconstruction.n_tokens,
            "ce": stages[0].loss.base,
            "threshold": _THRESHOLD,
            # The last one is the whole form, which is exact.
            "ranks": next((stage.low_rank.ranks[:-1] for stage in stages if stage.low_rank is not None), ()),
            "stages": [_stage(stage, seed) for stage in stages],
            "spearman": [asdict(one) for one in found],
        }
    )


def _stage(one: "Stage", seed: int) -> dict[str, Any]:
    return {
        "name": one.hook_name,
        "training_tokens": one.training_tokens,
        "d_sae": one.d_sae,
        "fvu": one.reconstruction.fvu,
        "l0": one.reconstruction.l0,
        "n_dead": len(one.reconstruction.dead),
        "ce_spliced": one.loss.spliced,
        "ce_zero": one.loss.zero,
        "ce_recovered": one.loss.recovered,
        "low_rank": [] if one.low_rank is None else _low_rank(one.low_rank, seed),
    }


def _low_rank(result: "LowRankCorrelation", seed: int) -> list[dict[str, Any]]:
    return [
        {
            "rank": rank,
            "mean": result.mean(rank),
            "share": asdict(result.share_above(rank, _THRESHOLD, seed=seed)),
        }
        for rank in result.ranks
    ]


def _cell(part: "Mapping[str, Any]") -> str:
    """Mean correlation and share at one rank."""
    share = part["share"]
    if share["value"] is None:
        return "-"
    value, low, high = (100 * share[key] for key in ("value", "low", "high"))
    return f"{part['mean']:.3f}  {value:.1f} % ({low:.1f} to {high:.1f})"


def _text(value: float | None, style: str) -> str:
    return "-" if value is None else f"{value:{style}}"


def _layer(name: str) -> int:
    return int(name.split(".")[1])


def _read_record(folder: Path) -> dict[str, Any]:
    """What `train-sae` recorded of a finished training.

    Raises:
        FileNotFoundError: If there is no such record.
        ValueError: If the training is not finished.
    """
    if (folder / _MARKER).is_file():
        raise ValueError(
            f"folder must hold finished dictionaries, got {folder}, whose training was cut short. Give the train-sae"
            " command again: it goes on from its last checkpoint."
        )
    if not (folder / _RECORD).is_file():
        raise FileNotFoundError(f"folder must be one that train-sae wrote, got {folder}: it has no {_RECORD}.")
    return json.loads((folder / _RECORD).read_text(encoding="utf-8"))


def _hook_names(folder: Path, record: "Mapping[str, Any]", layers: list[int] | None) -> list[str]:
    """Hook names of the dictionaries of the layers asked for; of all layers by default.

    Raises:
        ValueError: If a layer has none.
    """
    by_name = {name: _layer(name) for name in record["final"]}
    known = sorted(set(by_name.values()))
    for layer in layers or []:
        if layer not in known:
            raise ValueError(
                f"layer must have dictionaries in {folder} (layers {', '.join(map(str, known))}), got {layer}."
            )
    return [name for name, layer in by_name.items() if layer in (layers or known)]


def _stage_folders(folder: Path, record: "Mapping[str, Any]", names: list[str]) -> dict[int, Path]:
    """Where the dictionaries of each number of training tokens are, the final ones last.

    Raises:
        ValueError: If no snapshots were kept.
        FileNotFoundError: If a snapshot lacks a dictionary.
    """
    kept = [one for one in (folder / _SNAPSHOTS).glob("*") if one.name.isdecimal()]
    if not kept:
        raise ValueError(
            f"folder must hold snapshots, got {folder} without one. Train with snapshots: 5 or so in the recipe."
        )
    for one in kept:
        for name in names:
            if not (one / name).is_dir():
                raise FileNotFoundError(f"every snapshot must hold {', '.join(names)}, got {one} without {name}.")
    return {int(one.name): one for one in sorted(kept, key=lambda one: int(one.name))} | {
        record["training_tokens"]: folder
    }


def _shipped_model(folder: Path, record: "Mapping[str, Any]") -> str:
    """The model of the recipe, if it is a shipped one and its weights are those trained on.

    Raises:
        ValueError: If it is not.
    """
    name = record["recipe"]["model"]
    if name in zoo.names() and record["recipe"]["model_sha256"] == zoo.model_fingerprint(name).sha256:
        return name
    raise ValueError(
        f"--model must be given for {folder}: its dictionaries were trained on {name}, which is not a shipped model"
        f" ({', '.join(zoo.names())}), or had other weights."
    )


def _load(folders: "Mapping[int, Path]", names: list[str], device: str) -> "dict[str, dict[int, Dictionary]]":
    from bilinear_circuits.dictionaries.dictionary import Dictionary

    return {
        name: {at: Dictionary.load(folder / name, device=device) for at, folder in folders.items()} for name in names
    }


def _provenance(
    arguments: Arguments,
    record: "Mapping[str, Any]",
    folders: "Mapping[int, Path]",
    names: list[str],
    corpus: Corpus,
    n_stories: int,
    seconds: float,
) -> dict[str, Any]:
    """What it takes to repeat the result: recipe, configuration, versions, commit, hashes of what was read."""
    model = str(arguments.model)
    hashes = {
        f"{at}/{name}": zoo.dictionary_fingerprint(folder / name).sha256
        for name in names
        for at, folder in folders.items()
    }
    return {
        "model": records.model_source(model),
        "recipe": record["recipe"],
        "dictionaries": hashes,
        "corpus": records.corpus_source(corpus, n_stories),
        **records.environment(),
        "config": records.shared_config(arguments),
        "seconds": round(seconds, 1),
    }


def _write(out: str, document: dict[str, Any]) -> None:
    from sae.figures import progress_page

    with common.written_whole(out, first=OUTPUTS.record) as folder:
        (folder / "progress.json").write_text(common.to_json(document), encoding="utf-8")
        (folder / "progress.html").write_text(progress_page(document), encoding="utf-8")
    print(f"written: {out}/progress.html, {out}/progress.json")
