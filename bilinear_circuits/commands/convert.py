"""Make a gated model bilinear while it is trained on: its gates become linear little by little.

A training recipe says on what and how; the model is the one given. Beside the annealed model two controls are trained
on the same rows: gates made linear at once, and the model as it is, trained on. A run that was stopped or killed goes
on when the same command is given again.

  bilinear-circuits convert ts-nano --model my-swiglu --set optim.epochs=4 --n-seeds 3 --out out/my-bilinear
"""

import json
import shutil
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from simple_parsing import field

from bilinear_circuits import zoo
from bilinear_circuits.command_line import common, records
from bilinear_circuits.command_line.arguments import CorpusArguments
from bilinear_circuits.command_line.corpus import chosen_corpus
from bilinear_circuits.command_line.recipes import Recipe, read_recipe
from bilinear_circuits.command_line.run_folder import RunFolder
from bilinear_circuits.command_line.training_data import prepare
from bilinear_circuits.command_line.values import check_least, check_most
from bilinear_circuits.commands.train import progress_bar, resolved

if TYPE_CHECKING:
    from bilinear_circuits.data.rows import StoryRows, TrainingData

RECORD = "convert.json"
_DATA, _ARMS = "data", "arms"
ARMS = ("annealed", "abrupt", "as it is")
_MEANINGS = {
    "annealed": "gates made linear little by little",
    "abrupt": "gates made linear at once",
    "as it is": "trained on with its own gates",
}


@dataclass(kw_only=True)
class Arguments(CorpusArguments):
    """Options of `convert`."""

    recipe: str = field(positional=True, metavar="RECIPE")
    """Recipe of the training: a YAML file, or a shipped one by name: ts-nano, ts-17m, ts-33m. Of its model
    the context alone counts: the shape, which must be there, is that of --model."""

    model: str
    """The model that is converted: a Llama-type one with SiLU or GELU gates."""

    out: str
    """Folder of the bilinear model and the losses."""

    set: list[str] = field(default_factory=list, metavar="KEY=VALUE")  # noqa: RUF009
    """Values that replace those of the recipe, KEY=VALUE each: --set optim.epochs=4 optim.lr=0.001"""

    anneal: float = 0.5
    """Share of the steps after which gates are linear."""

    n_seeds: int = 1
    """Seeds of data order and dropout for each of the three; two or more give intervals."""

    device: str | None = None
    """cpu to stay off a GPU; by default a GPU where there is one."""

    def __post_init__(self) -> None:
        super().__post_init__()
        check_least(self, n_seeds=1)
        check_most(self, n_seeds=100)
        if not 0 < self.anneal < 1:
            raise ValueError(f"anneal must be a share of the steps between 0 and 1, got {self.anneal}.")


def run(arguments: Arguments) -> None:
    """Train the three, or go on, print and write."""
    from transformers.utils import logging

    from bilinear_circuits.data.rows import TrainingData

    logging.set_verbosity_error()
    logging.disable_progress_bar()
    common.check_out(arguments.out)
    recipe = _recipe(arguments)
    corpus = chosen_corpus(arguments, recipe.stories)
    if arguments.device is not None:
        common.check_device(arguments.device)
    settings = resolved(recipe, corpus) | {
        "converted": records.display_name(arguments.model),
        "converted_sha256": zoo.model_fingerprint(arguments.model).sha256,
        "anneal": arguments.anneal,
        "n_seeds": arguments.n_seeds,
    }
    folder = RunFolder(arguments.out, "a conversion", RECORD)
    if folder.is_over(settings):
        _clear(folder)
        print(f"{arguments.model} was converted already: {arguments.out}")
        return
    folder.check(settings)
    _model(arguments)  # whose gates must be some that can be annealed
    save = prepare(recipe, corpus, folder.folder / _DATA)
    folder.mark(settings, [])
    save()
    data = TrainingData.load(folder.folder / _DATA)
    losses = {arm: [_trained(arguments, recipe, data, arm, seed) for seed in _seeds(arguments, recipe)] for arm in ARMS}
    start = given_loss(_model(arguments)[0], data.valid_rows)
    print(describe(start, losses))
    _finish(folder, recipe, data, settings, {"as given": start, **losses})
    print(f"written: {arguments.out}, for plain transformers, with hidden_act linear; {RECORD}")


def _recipe(arguments: Arguments) -> Recipe:
    """The recipe, for this model: its tokenizer, and a context that it has."""
    recipe = read_recipe(arguments.recipe, arguments.set)
    known = common.read_json(zoo.model_folder(arguments.model) / "config.json", "config.json of the model")
    context = min(recipe.model.context, known.get("max_position_embeddings") or recipe.model.context)
    model, optim = replace(recipe.model, context=context), replace(recipe.optim, keep="last")
    return replace(recipe, model=model, optim=optim, tokenizer=arguments.model)


def _seeds(arguments: Arguments, recipe: Recipe) -> range:
    return range(recipe.seed, recipe.seed + arguments.n_seeds)


def _model(arguments: Arguments) -> tuple[Any, Any]:
    """The model anew, and its gates."""
    from bilinear_circuits.training.annealing import annealed_gates

    model, _ = common.quietly_load(zoo.load_plain_model, arguments.model, "cpu")
    return model, annealed_gates(model)


def _trained(arguments: Arguments, recipe: Recipe, data: "TrainingData", arm: str, seed: int) -> float:
    """Validation loss of one of the three, from its record if it has been trained."""
    from bilinear_circuits.training.annealing import Annealing, make_linear
    from bilinear_circuits.training.language_model import train_model

    folder = Path(arguments.out) / _ARMS / f"{arm.replace(' ', '-')}-{seed}"
    record = folder / "loss.json"
    if record.is_file():
        return float(json.loads(record.read_text(encoding="utf-8"))["valid_loss"])
    common.note(f"{arm}, seed {seed}: {_MEANINGS[arm]}")
    model, gates = _model(arguments)
    share = {"annealed": arguments.anneal, "abrupt": 0.0}.get(arm)
    callbacks = [progress_bar(), *([] if share is None else [Annealing(gates, share)])]
    folder.mkdir(parents=True, exist_ok=True)
    result = train_model(
        model, data.rows, data.valid_rows, recipe.optim, folder, seed, arguments.device, callbacks=callbacks
    )
    with common.written_whole(folder, last=record.name) as whole:
        if arm == "annealed":
            make_linear(model)
        if arm == "annealed" and seed == recipe.seed:
            model.save_pretrained(whole)
            _prove(whole)
        (whole / record.name).write_text(common.to_json(asdict(result)), encoding="utf-8")
    shutil.rmtree(folder / "checkpoints", ignore_errors=True)
    return result.valid_loss


def _prove(folder: Path) -> None:
    """Read a model that was written, and prove every layer of it bilinear.

    Raises:
        NotBilinearError: If one is not.
    """
    from transformers import AutoModelForCausalLM

    from bilinear_circuits.models.bilinear_mlp import BilinearMLP
    from bilinear_circuits.models.running import model_blocks

    written = AutoModelForCausalLM.from_pretrained(folder, dtype="float32").eval()
    for layer in range(len(model_blocks(written))):
        BilinearMLP.from_model(written, layer)


def given_loss(model: Any, rows: "StoryRows") -> float:
    """Mean cross-entropy of a model over rows, per token."""
    import torch

    total = 0.0
    with torch.no_grad():
        for start in range(0, len(rows), 16):
            ids = torch.stack([rows[index]["input_ids"] for index in range(start, min(start + 16, len(rows)))])
            total += model(ids, labels=ids).loss.item() * len(ids)
    return total / len(rows)


def describe(start: float, losses: Mapping[str, Sequence[float]]) -> str:
    """Losses of the three, and how far each is from the model that was trained on."""
    n = len(losses["annealed"])
    lines = [
        "validation loss, nats per token" + (f", mean of {n} seeds" if n > 1 else ""),
        f"  {'as given':<10} {start:.4f}",
    ]
    for arm in reversed(ARMS):
        line = f"  {arm:<10} {statistics.mean(losses[arm]):.4f}"
        if arm != "as it is":
            apart = [one - other for one, other in zip(losses[arm], losses["as it is"], strict=True)]
            line += f"  {statistics.mean(apart):+.4f}{_interval(apart)} against the model trained on"
        lines.append(f"{line}  ({_MEANINGS[arm]})")
    return "\n".join(lines)


def _interval(values: Sequence[float]) -> str:
    """The 95 % interval of a mean over seeds, by Student's t; nothing for one."""
    from scipy.stats import t

    if len(values) < 2:
        return ""
    half = t.ppf(0.975, len(values) - 1) * statistics.stdev(values) / len(values) ** 0.5
    mean = statistics.mean(values)
    return f" [{mean - half:+.4f}, {mean + half:+.4f}]"


def _finish(
    folder: RunFolder, recipe: Recipe, data: "TrainingData", settings: Mapping[str, Any], losses: Mapping[str, Any]
) -> None:
    """Write the model, its tokenizer and the losses, and remove what only a run under way needs."""
    from bilinear_circuits.data.rows import TOKENIZER

    document = {
        "schema_version": 1,
        "kind": "conversion",
        "recipe": settings,
        "data_sha256": data.rows.data_hash,
        **records.environment(),
        "losses": losses,
    }
    made = folder.folder / _ARMS / f"annealed-{recipe.seed}"
    with common.written_whole(folder.folder, last=RECORD) as whole:
        for file in (*made.glob("*.safetensors*"), *made.glob("*config.json")):
            shutil.copy(file, whole)
        shutil.copytree(folder.folder / _DATA / TOKENIZER, whole, dirs_exist_ok=True)
        (whole / RECORD).write_text(common.to_json(document), encoding="utf-8")
    _clear(folder)


def _clear(folder: RunFolder) -> None:
    """Remove what only a run under way needs; its marker goes last."""
    for name in (_DATA, _ARMS):
        shutil.rmtree(folder.folder / name, ignore_errors=True)
    folder.unmark()
