"""Remove, scale or invert circuits in the weights, and write the edited model with a report on it.

CIRCUIT.json is what `bilinear-circuits circuits` writes. The low-rank form of each feature becomes extra neurons, so
the result is a stock Llama that plain transformers load. What is reported is measured in the model read back from disk:
the behaviour before and after, on stories that played no part in the ranking, cross-entropy, divergence, and controls.
"""

import contextlib
import json
import math
import os
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from simple_parsing import field

from bilinear_circuits import zoo
from bilinear_circuits.command_line import common, records
from bilinear_circuits.command_line.circuit_file import CircuitFile, read_circuit_file, read_ranking
from bilinear_circuits.command_line.claims import OLD, half_written
from bilinear_circuits.command_line.corpus import tokenized
from bilinear_circuits.command_line.values import check_least
from bilinear_circuits.commands.edit_report import KIND, described, edit_card, edit_payload, summary
from bilinear_circuits.data.corpora import Corpus
from bilinear_circuits.utilities.feature import Feature
from bilinear_circuits.utilities.folders import file_hash

if TYPE_CHECKING:
    from torch import nn

    from bilinear_circuits.data.stories import StoryTokens
    from bilinear_circuits.interactions.feature_interactions import FeatureInteractions
    from bilinear_circuits.surgery import EditReport, FormEdit

_LARGEST_FACTOR = 1_000_000
_POLES = {"positive": 1, "negative": -1}


@dataclass(kw_only=True)
class Arguments(common.CommonArguments):
    """Options of `edit`."""

    circuit: str = field(positional=True, metavar="CIRCUIT.json")
    """Circuits, as `bilinear-circuits circuits` writes them."""

    out: str
    """Folder for the edited model and its report; new, empty, or an earlier edit, which is replaced."""

    pole: Literal["best", "positive", "negative"] = "best"
    """Edit the circuits that push to this pole; "best" is that of the best circuit."""

    factor: float = 0.0
    """What the forms of these circuits are multiplied by: 0 removes, -1 inverts, 2 doubles."""

    opposite: float = 1.0
    """The same for the circuits of the other pole; 1 leaves them. With 2, all push away from the pole removed."""

    features: list[str] | None = None
    """Edit only these features of the ranking, as 4/143, instead of the circuits proved."""

    n_features: int | None = None
    """Edit the n best of the ranking of each pole, instead of the circuits proved."""

    rank: int = 2
    """Rank of the forms."""

    n_stories: int | None = None
    """Stories read from the corpus; by default as many as the search read."""

    prediction_stories: int = 200
    """Stories for cross-entropy and divergence, not used for the ranking."""

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("factor", "opposite"):
            if not math.isfinite(value := getattr(self, name)):
                raise ValueError(f"{name} must be a finite number, got {value}.")
            if abs(value) > _LARGEST_FACTOR:
                raise ValueError(
                    f"{name} must be between -{_LARGEST_FACTOR:,} and {_LARGEST_FACTOR:,}, got {value:g}: the weights"
                    " would leave the range of their numbers."
                )
        check_least(self, rank=1, n_features=1, n_stories=1, prediction_stories=1)
        if self.features is not None and self.n_features is not None:
            raise ValueError("features and n_features must not be given together: one names features, one counts them.")


def run(arguments: Arguments) -> None:
    """Edit, save, read back, measure, write."""
    started = time.perf_counter()
    _check_out(arguments)
    asked = read_circuit_file(arguments.circuit)
    factors = factors_of(arguments, asked, read_ranking(arguments.circuit))
    asked.check_source(arguments)
    layers = common.check_layers(sorted({name.layer for name in factors}), common.saes_of(arguments))
    corpus = asked.corpus_of(arguments)
    common.check_ranks("rank", [arguments.rank], arguments.model)

    from bilinear_circuits.models.running import context_length
    from bilinear_circuits.report.pages import edit_page
    from bilinear_circuits.surgery import edit_model

    stories = corpus.read(asked.n_stories if arguments.n_stories is None else arguments.n_stories)
    if not asked.is_corpus(corpus) or len(stories) != asked.n_stories:
        common.note("other stories than those of the search: some may have been used for its ranking")
    model, interactions = common.load_interactions(arguments, layers)
    tokens = tokenized(corpus, stories, model.tokenizer, min(asked.settings.context, context_length(model)))
    edits = _edits(interactions, factors, arguments.rank)
    with replaced_whole(arguments.out) as folder:
        edit_model(model, edits).save_pretrained(folder)
        # Not the tokenizer of the bridge, which puts [BOS] in front.
        zoo.load_tokenizer(arguments.model).save_pretrained(folder)
        report = _measure(arguments, asked, model, edits, interactions, tokens, folder)
        seconds = time.perf_counter() - started
        source = _provenance(arguments, interactions, corpus, len(stories), seconds, folder)
        _write(folder, report, asked, source, records.display_name(arguments.model))
    common.write_page(arguments.out, lambda: edit_page(report, asked.query, described(report.edits), source))
    print(summary(report, asked.query.name))
    print(
        f"\n{time.perf_counter() - started:.0f} s. Written: {arguments.out}, a Llama for plain transformers;", end=" "
    )
    print("report.html, edit.json")


def factors_of(arguments: Arguments, asked: CircuitFile, ranking: Mapping[Feature, int]) -> dict[Feature, float]:
    """The features to edit, and what the form of each is multiplied by.

    Raises:
        ValueError: If a feature is not in the ranking, or nothing is left to edit.
    """
    chosen = {target.key: target.sign for target in asked.targets}
    if arguments.features is not None:
        named = [Feature.parse(name) for name in arguments.features]
        for name in named:
            if name not in ranking:
                known = f"{', '.join(map(str, list(ranking)[:6]))} and {max(0, len(ranking) - 6)} more"
                raise ValueError(f"features must be of the ranking of {arguments.circuit} ({known}), got {name}.")
        chosen = {name: ranking[name] for name in named}
    elif arguments.n_features is not None:
        best = [[name for name in ranking if ranking[name] == sign] for sign in (1, -1)]
        chosen = {name: ranking[name] for names in best for name in names[: arguments.n_features]}
    if arguments.features is not None and arguments.pole == "best":
        factors = dict.fromkeys(chosen, arguments.factor)
    else:
        pole = _POLES.get(arguments.pole) or _best_sign(asked, ranking)
        factors = {name: arguments.factor if sign == pole else arguments.opposite for name, sign in chosen.items()}
    if edited := {name: factor for name, factor in factors.items() if factor != 1}:
        return edited
    raise ValueError(
        f"factor must change a form of {', '.join(map(str, chosen)) or arguments.circuit}, got factor"
        f" {arguments.factor:g} for pole {arguments.pole} and {arguments.opposite:g} for the other."
    )


def _best_sign(asked: CircuitFile, ranking: Mapping[Feature, int]) -> int:
    """The pole of the circuit that stands first in the ranking."""
    return min(asked.targets, key=lambda one: list(ranking).index(one.key) if one.key in ranking else math.inf).sign


def _check_out(arguments: Arguments) -> None:
    common.check_out(arguments.out)
    out = Path(arguments.out)
    if not out.is_dir() or not any(out.iterdir()):
        return
    kind = None
    with contextlib.suppress(OSError, ValueError):
        content = json.loads((out / "edit.json").read_text(encoding="utf-8"))
        kind = content.get("kind") if isinstance(content, dict) else None
    if kind != KIND:
        raise ValueError(f"out must be new, empty or an earlier edit, got {arguments.out}, which holds other files.")


def _edits(interactions: "list[FeatureInteractions]", factors: Mapping[Feature, float], rank: int) -> "list[FormEdit]":
    from bilinear_circuits.surgery import FormEdit

    by_layer = {layer.mlp.layer: layer for layer in interactions}
    edits = []
    for name, factor in factors.items():
        edits.append(FormEdit.of(by_layer[name.layer], name.number, rank, factor))
    return edits


def _measure(
    arguments: Arguments,
    asked: CircuitFile,
    model: "nn.Module",
    edits: "list[FormEdit]",
    interactions: "list[FeatureInteractions]",
    stories: "StoryTokens",
    folder: Path,
) -> "EditReport":
    """The report on the model as it stands on disk."""
    import torch

    from bilinear_circuits.circuits.query import QueryTokens
    from bilinear_circuits.circuits.search import story_parts
    from bilinear_circuits.data.stories import StoryTokens
    from bilinear_circuits.interactions.activity import collect_activity
    from bilinear_circuits.runs import Runs
    from bilinear_circuits.surgery import measure_edit

    edited, _ = zoo.load_plain_model(folder, arguments.device)
    tokens, settings = QueryTokens.resolve(asked.query, model.tokenizer), asked.settings
    ranking, losses, proofs = story_parts(stories, model.tokenizer, settings, stories.ids.shape[1], asked.seed)
    sites = tokens.sites(proofs, settings.sites, settings.site_position)
    if len(sites) == 0:
        raise ValueError(f"stories must hold triggers ({', '.join(asked.query.triggers)}), got none. Use more stories.")
    width = losses.ids.shape[1]
    parts = [torch.cat([getattr(one, name)[:, :width] for one in (losses, proofs)]) for name in ("ids", "mask")]
    held_out = StoryTokens(*(part[: arguments.prediction_stories] for part in parts))
    activity = collect_activity(model, interactions, ranking, common.bar)
    runs = Runs(model, min(edit.layer for edit in edits), sites, tokens)
    return measure_edit(runs, edited, edits, activity, held_out, settings.controls, arguments.seed, common.bar)


def _write(folder: Path, report: "EditReport", asked: CircuitFile, source: dict[str, Any], model: str) -> None:
    """Write the report beside the edited model: as tensors, JSON and the model's card."""
    from bilinear_circuits.utilities.saving import save_result

    save_result(report, folder / "result", source)
    texts = {
        "edit.json": common.to_json(edit_payload(report, asked.query, source)),
        "README.md": edit_card(report, asked.query, model),
    }
    for name, text in texts.items():
        (folder / name).write_text(text, encoding="utf-8")


def _provenance(
    arguments: Arguments,
    interactions: "list[FeatureInteractions]",
    corpus: Corpus,
    n_stories: int,
    seconds: float,
    folder: Path,
) -> dict[str, Any]:
    """What it takes to repeat the edit: besides the usual, the circuits and the weights written."""
    circuit, weights = Path(arguments.circuit), folder / "model.safetensors"
    resolved = replace(
        arguments, saes=common.saes_of(arguments), corpus=records.display_name(corpus.path), circuit=circuit.name
    )
    return {
        **records.provenance(resolved, interactions, corpus, n_stories, seconds),
        "circuit": {"name": circuit.name, "sha256": file_hash(circuit)},
        "edited_model": {"sha256": file_hash(weights)},
    }


@contextlib.contextmanager
def replaced_whole(folder: str | Path) -> Iterator[Path]:
    """A temporary folder that takes the place of `folder` at the end; after an error everything is as it was."""
    target = Path(folder).resolve()
    target.parent.mkdir(parents=True, exist_ok=True)
    with half_written(target) as temporary:
        new, old = Path(temporary) / "new", Path(temporary) / OLD
        new.mkdir()
        yield new
        if target.exists():
            os.replace(target, old)
        try:
            os.replace(new, target)
        except OSError:
            if old.exists():
                os.replace(old, target)
            raise
