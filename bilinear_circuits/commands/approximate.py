"""Fit bilinear or cubic layers to the MLPs of an ordinary model, such as a SwiGLU Llama, and measure what they recover.

Order 1 puts an affine function on every gate, which makes a bilinear layer: all verbs read the model of such layers
that is written, a stock Llama with hidden_act="linear". Order 2 puts a quadratic one there, three numbers a neuron.
Beside each stands the best affine map of the MLP input as a control. A run that was killed goes on with the layers that
it lacks when the same command is given again.

  bilinear-circuits approximate --model my-llama --corpus stories.txt --fit transcoder --out out/my-bilinear-llama
"""

import time
from collections.abc import Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from bilinear_circuits import zoo
from bilinear_circuits.command_line import common, records
from bilinear_circuits.command_line.arguments import CorpusArguments
from bilinear_circuits.command_line.corpus import chosen_corpus, settings_of, tokenized
from bilinear_circuits.command_line.outputs import RESULT_FILES
from bilinear_circuits.command_line.run_folder import RunFolder
from bilinear_circuits.command_line.values import check_least
from bilinear_circuits.data.corpora import Corpus
from bilinear_circuits.utilities.folders import file_hash

if TYPE_CHECKING:
    from torch import Tensor

    from bilinear_circuits.models.gated_mlp import GatedMLP
    from bilinear_circuits.runs.replacement import Replacement, ReplacementLosses

RECORD = "approximate.json"
FITS = "fits"
_METHODS = {
    "gates": "affine functions",
    "output": "affine functions, W_out solved again,",
    "transcoder": "a bilinear transcoder",
}


@dataclass(kw_only=True)
class Arguments(CorpusArguments):
    """Options of `approximate`."""

    model: str = zoo.DEFAULT_MODEL
    """A shipped model, a Hugging Face model folder, or a Hub id."""

    layers: list[int] | None = None
    """Layers to fit; by default all, which a model that is written needs."""

    order: Literal["1", "2"] = "1"
    """1 for an affine function on each gate, a bilinear layer; 2 for a quadratic one, a cubic layer."""

    fit: Literal["gates", "output", "transcoder"] = "output"
    """What is fitted with order 1: the functions on gates, W_out too, or all matrices by gradient descent."""

    n_stories: int = 300
    """Stories that layers are fitted on."""

    held_out: int = 60
    """Stories that are measured on: the first of the corpus, none of those of the fit."""

    steps: int = 2000
    """Steps of gradient descent, with --fit transcoder."""

    device: str = "cpu"
    """Where to compute: cpu, cuda, cuda:1."""

    seed: int = 0
    """Seed of gradient descent."""

    out: str
    """Folder of the model, the fits and what was measured; new or empty, or of the same run, which goes on."""

    def __post_init__(self) -> None:
        super().__post_init__()
        common.check_seed(self.seed)
        check_least(self, held_out=1, steps=1)


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
    folder.check(settings)

    from bilinear_circuits.models.gated_mlp import GatedMLP
    from bilinear_circuits.models.running import context_length, model_blocks
    from bilinear_circuits.runs.replacement import measure_replacements, mlp_inputs

    stories = corpus.read(arguments.held_out + arguments.n_stories)
    if len(stories) <= arguments.held_out:
        raise ValueError(
            f"corpus must hold more stories than the {arguments.held_out} held out, got {len(stories)}."
            " Pass a larger one or a smaller --held-out."
        )
    common.note(f"loading {arguments.model}")
    model, tokenizer = common.quietly_load(zoo.load_plain_model, arguments.model, arguments.device)
    layers = _layers(arguments, len(model_blocks(model)))
    gated = {layer: GatedMLP.from_model(model, layer) for layer in layers}
    folder.mark(settings, [FITS])
    tokens = tokenized(corpus, stories, tokenizer, context_length(model))
    held_out, fitted = tokens[: arguments.held_out], tokens[arguments.held_out :]
    inputs = mlp_inputs(model, fitted, layers, common.bar)
    fits = [_fit(arguments, gated[layer], inputs.pop(layer)) for layer in layers]
    losses = measure_replacements(model, held_out, fits, common.bar)
    print(describe(losses, fits))
    written = _write(arguments, model, fits, losses, _provenance(arguments, corpus, len(stories), started))
    folder.unmark()
    print(f"\n{time.perf_counter() - started:.0f} s. Written: {written}")


def _settings(arguments: Arguments, corpus: Corpus) -> dict[str, Any]:
    """What decides the result."""
    names = ("layers", "order", "fit", "n_stories", "held_out", "steps", "seed")
    return {
        "verb": "approximate",
        "model": records.display_name(arguments.model),
        "model_sha256": zoo.model_fingerprint(arguments.model).sha256,
        **{name: getattr(arguments, name) for name in names},
        "corpus": records.display_name(corpus.path),
        "corpus_sha256": file_hash(corpus.path),
        **settings_of(corpus),
    }


def _layers(arguments: Arguments, n_layers: int) -> list[int]:
    """Layers asked for.

    Raises:
        ValueError: If there is no such layer.
    """
    chosen = list(dict.fromkeys(arguments.layers or range(n_layers)))
    for layer in chosen:
        if not 0 <= layer < n_layers:
            raise ValueError(f"layers must be between 0 and {n_layers - 1}, those of {arguments.model}, got {layer}.")
    return chosen


def _fit(arguments: Arguments, gated: "GatedMLP", inputs: "Tensor") -> "Replacement":
    """Fit one layer, or read what a run that was killed has fitted."""
    from safetensors.torch import load_file, save_file

    from bilinear_circuits.algebra.layer_fits import TranscoderSettings
    from bilinear_circuits.algebra.tensor import InteractionTensor

    name = f"layer-{gated.layer}.safetensors"
    file = Path(arguments.out) / FITS / name
    if arguments.order == "2":
        cubic = gated.cubic(inputs)
        values = {"coefficients": cubic.tensor.coefficients}
        fit: Replacement = cubic
    elif file.is_file():
        tensor = InteractionTensor(**load_file(file, device=str(inputs.device)))
        return gated.approximated_by(tensor, inputs, _METHODS[arguments.fit])
    else:
        settings = TranscoderSettings(steps=arguments.steps, seed=arguments.seed)
        fit = gated.bilinear(
            inputs, solve_output=arguments.fit != "gates",
            transcoder=settings if arguments.fit == "transcoder" else None, progress=common.bar,
        )  # fmt: skip
        found = {field.name: getattr(fit.tensor, field.name) for field in fields(fit.tensor)}
        values = {key: value.contiguous() for key, value in found.items() if value is not None}
    with common.written_whole(file.parent) as whole:
        save_file(values, whole / name)
    return fit


def describe(losses: "ReplacementLosses", fits: "list[Replacement]") -> str:
    """What the layers recover, as a table."""
    lines = [
        f"{fits[0].approximation.method} in place of {fits[0].approximation.original.gate} gates"  # type: ignore[union-attr]
        f", fitted on {fits[0].approximation.n_fitted:,} tokens",  # type: ignore[union-attr]
        f"cross-entropy {losses.base:.3f}, without these MLPs {losses.without[-1].item():.3f} (stories held out)",
        "layer  cross-entropy  recovered  affine map  FVU of the output",
    ]
    columns = losses.table()
    for layer, change, share, linear, fvu in zip(
        *(columns[name] for name in ("layer", "change", "recovered", "linear recovered", "fvu")), strict=True
    ):
        unexplained = "" if fvu != fvu else f"{fvu:.4f}"
        lines.append(f"{layer:>5}  {change:>+13.4f}  {share:>9.1%}  {linear:>10.1%}  {unexplained:>17}".rstrip())
    return "\n".join(lines)


def _provenance(arguments: Arguments, corpus: Corpus, n_stories: int, started: float) -> dict[str, Any]:
    source = records.prompt_provenance(arguments, [], time.perf_counter() - started)
    return source | {"corpus": records.corpus_source(corpus, n_stories)}


def _write(
    arguments: Arguments,
    model: Any,
    fits: "list[Replacement]",
    losses: "ReplacementLosses",
    provenance: Mapping[str, Any],
) -> str:
    """The model, where all layers are bilinear, and what was measured; a line that says so."""
    from bilinear_circuits.models.bilinear_mlp import BilinearMLP
    from bilinear_circuits.report.payload import plain
    from bilinear_circuits.surgery.bilinear_llama import bilinear_llama
    from bilinear_circuits.utilities.saving import save_result

    document = {"schema_version": 1, "kind": "approximation", "provenance": provenance, **losses.table()}
    document |= {"base": losses.base, "fits": {str(one.layer): str(one.approximation) for one in fits}}
    layers = {one.layer: one for one in fits if isinstance(one, BilinearMLP)}
    whole = arguments.order == "1" and arguments.layers is None
    with common.written_whole(arguments.out, last=RECORD) as folder:
        if whole:
            bilinear_llama(model, layers).save_pretrained(folder)
            zoo.load_tokenizer(arguments.model).save_pretrained(folder)
        save_result(losses, folder, dict(provenance))
        (folder / RECORD).write_text(common.to_json(plain(document)), encoding="utf-8")
    what = "a Llama for plain transformers, which all verbs read; " if whole else ""
    return f"{arguments.out}, {what}{FITS}/, {RECORD}, {', '.join(RESULT_FILES)}"
