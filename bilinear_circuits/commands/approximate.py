"""Fit bilinear or cubic layers to the MLPs of an ordinary model, such as a SwiGLU Llama, and measure what they recover.

Order 1 puts an affine function on every gate, which makes a bilinear layer: all verbs read the model of such layers
that is written, a stock Llama with hidden_act="linear". Order 2 puts a quadratic one there, three numbers a neuron.
Beside each stands the best affine map of the MLP input as a control. A run that was killed goes on with the layers that
it lacks when the same command is given again.

  bilinear-circuits approximate --model my-llama --corpus stories.txt --fit transcoder --out out/my-bilinear-llama
"""

import math
import time
from collections.abc import Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from simple_parsing import field

from bilinear_circuits import zoo
from bilinear_circuits.command_line import common, records
from bilinear_circuits.command_line.arguments import CorpusArguments, Fit
from bilinear_circuits.command_line.corpus import chosen_corpus, settings_of, tokenized
from bilinear_circuits.command_line.run_folder import RunFolder
from bilinear_circuits.command_line.values import check_least
from bilinear_circuits.commands.approximate_models import FITS, Asked, Loaded, Streamed, Work
from bilinear_circuits.data.corpora import Corpus
from bilinear_circuits.utilities.folders import file_hash

if TYPE_CHECKING:
    from bilinear_circuits.models.approximation import Approximation
    from bilinear_circuits.runs.replacement import ReplacementLosses

RECORD, LOSSES = "approximate.json", "losses"


@dataclass(kw_only=True)
class Arguments(CorpusArguments):
    """Options of `approximate`."""

    model: str = zoo.DEFAULT_MODEL
    """A shipped model, a Hugging Face model folder, or a Hub id."""

    layers: list[int] | None = None
    """Layers to fit; by default all, which a model that is written, and --stream, need."""

    order: Literal["1", "2"] = "1"
    """1 for an affine function on each gate, a bilinear layer; 2 for a quadratic one, a cubic layer."""

    fit: Fit | None = field(default=None, metavar="{gates,output,transcoder}")  # noqa: RUF009
    """What is fitted with order 1: the functions on gates; W_out too, which is the default; or all matrices, by
    gradient descent."""

    n_stories: int = 300
    """Stories that layers are fitted on."""

    held_out: int = 60
    """Stories that are measured on: the first of the corpus, none of those of the fit."""

    context: int = 512
    """Longest row of tokens; the model's own if that is shorter."""

    steps: int = 2000
    """Steps of gradient descent, with --fit transcoder."""

    stream: bool = False
    """Read the model block by block, for models that are larger than the memory: safetensors files of a Llama, Mistral,
    Qwen2 or Qwen3. Layers are then measured together, not one by one."""

    device: str = "cpu"
    """Where to compute: cpu, cuda, cuda:1."""

    seed: int = 0
    """Seed of gradient descent."""

    out: str
    """Folder of the model, the fits and what was measured; new or empty, or of the same run, which goes on."""

    def __post_init__(self) -> None:
        super().__post_init__()
        common.check_seed(self.seed)
        check_least(self, held_out=1, steps=1, context=2)
        for layer in self.layers or ():
            if layer < 0:
                raise ValueError(f"layers must be 0 or more, got {layer}.")
        if self.n_stories < 2:
            raise ValueError(f"n_stories must be at least 2, to fit on and to measure on, got {self.n_stories}.")
        if self.order == "2" and self.fit is not None:
            raise ValueError("fit must be left out with order 2: functions on gates are what is fitted.")
        self.fit = self.fit or "output"
        if self.stream and self.layers is not None:
            raise ValueError("layers must be left out with stream: all blocks are read, one after the other.")


def run(arguments: Arguments) -> None:
    """Fit, measure, print, write."""
    started = time.perf_counter()
    common.check_out(arguments.out)
    zoo.model_path(arguments.model)
    if arguments.corpus is None:
        zoo.refuse_missing(arguments.model, {"--corpus": "stories"})
    corpus = chosen_corpus(arguments, Corpus(arguments.model if arguments.model in zoo.names() else ""))
    corpus.check()
    common.check_device(arguments.device)
    folder, settings = RunFolder(arguments.out, "a fit", RECORD), _settings(arguments, corpus)
    if folder.is_over(settings):
        folder.unmark()
        print(f"{arguments.model} was fitted already: {arguments.out}")
        return
    folder.check(settings)
    stories = corpus.read(arguments.held_out + arguments.n_stories)
    if len(stories) < arguments.held_out + 2:
        raise ValueError(
            f"corpus must hold two stories more than the {arguments.held_out} held out, got {len(stories)}."
            " Pass a larger one or a smaller --held-out."
        )
    common.note(f"loading {arguments.model}")
    asked = Asked(**{one.name: getattr(arguments, one.name) for one in fields(Asked)})
    work = (Streamed if arguments.stream else Loaded)(asked)
    writes = arguments.order == "1" and arguments.layers is None and _is_a_llama(work.config)
    if (left := len(stories) - arguments.held_out) < arguments.n_stories:
        common.note(f"{left} stories are left to fit on, fewer than the {arguments.n_stories} asked for")
    folder.mark(settings, [FITS, LOSSES])
    tokens = tokenized(corpus, stories, work.tokenizer, min(arguments.context, work.context))
    losses = work.measure(tokens[arguments.held_out :], tokens[: arguments.held_out])
    assert work.first is not None
    print(describe(losses, work.first))
    source = records.prompt_provenance(arguments, [], time.perf_counter() - started)
    source |= {"corpus": records.corpus_source(corpus, len(stories))}
    _write(arguments.out, work, writes, losses, source)
    folder.unmark()
    what = "a Llama for plain transformers, which all verbs read; " if writes else ""
    files = ", ".join((f"{FITS}/", f"{LOSSES}/", RECORD))
    print(f"\n{time.perf_counter() - started:.0f} s. Written: {arguments.out}, {what}{files}")


def _is_a_llama(config: Any) -> bool:
    """Whether the model can be written as a stock Llama; a line says why where it cannot."""
    from bilinear_circuits.surgery.bilinear_llama import check_llama

    try:
        check_llama(config)
    except ValueError as error:
        common.note(f"fits alone are written: {error}")
        return False
    return True


def _settings(arguments: Arguments, corpus: Corpus) -> dict[str, Any]:
    """What decides the result."""
    names = ("layers", "order", "fit", "n_stories", "held_out", "context", "steps", "stream", "seed")
    return {
        "verb": "approximate",
        "model": records.display_name(arguments.model),
        "model_sha256": zoo.model_fingerprint(arguments.model).sha256,
        **{name: getattr(arguments, name) for name in names},
        "corpus": records.display_name(corpus.path),
        "corpus_sha256": file_hash(corpus.path),
        **settings_of(corpus),
    }


def describe(losses: "ReplacementLosses", first: "Approximation") -> str:
    """What the layers recover, as a table; `first` is one of the fits."""
    lines = [
        f"{first.method} in place of {first.original.gate} gates, fitted on {first.n_fitted:,} tokens",
        f"cross-entropy {losses.base:.3f}, without these MLPs {losses.without[-1].item():.3f} (stories held out)",
        "recovered: share of what these MLPs do for the cross-entropy",
        "layer  cross-entropy  recovered  affine map  FVU of the output",
    ]
    columns = losses.table()
    for layer, change, share, linear, fvu in zip(
        *(columns[name] for name in ("layer", "change", "recovered", "linear recovered", "fvu")), strict=True
    ):
        cells = [f"{layer:>5}", _cell(change, "+.4f", 13), _cell(share, ".1%", 9), _cell(linear, ".1%", 10)]
        lines.append("  ".join([*cells, _cell(fvu, ".4f", 17)]).rstrip())
    return "\n".join(lines)


def _cell(value: float, form: str, width: int) -> str:
    """A number, or nothing where it was not measured."""
    return ("" if math.isnan(value) else format(value, form)).rjust(width)


def _write(out: str, work: Work, writes: bool, losses: "ReplacementLosses", provenance: Mapping[str, Any]) -> None:
    """Write the model, where it is one, and what was measured."""
    from bilinear_circuits.report.payload import plain
    from bilinear_circuits.utilities.saving import save_result

    assert work.first is not None
    document = {"schema_version": 1, "kind": "approximation", "provenance": provenance, **losses.table()}
    document |= {"base": losses.base, "method": work.first.method, "gate": work.first.original.gate}
    with common.written_whole(Path(out) / LOSSES) as folder:  # apart: what is measured is no part of the model
        save_result(losses, folder, dict(provenance))
    with common.written_whole(out, last=RECORD) as folder:
        if writes:
            work.save(folder)
            work.tokenizer.save_pretrained(folder)
        (folder / RECORD).write_text(common.to_json(plain(document)), encoding="utf-8")
