"""Train a bilinear language model from a recipe: a stock Llama folder that loads anywhere.

A recipe is a YAML file: a name, a corpus, the shape of the model and how to train it. A run that was stopped or killed
continues from its last checkpoint when the same command is given again. Several devices train one model, in the same
batches as one, by torchrun --nproc-per-node N -m bilinear_circuits.cli train RECIPE.
"""

import shutil
import sys
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from simple_parsing import field

from bilinear_circuits import zoo
from bilinear_circuits.command_line import common, records
from bilinear_circuits.command_line.arguments import CorpusArguments
from bilinear_circuits.command_line.corpus import chosen_corpus, settings_of
from bilinear_circuits.command_line.recipes import Recipe, read_recipe
from bilinear_circuits.command_line.run_folder import RunFolder
from bilinear_circuits.command_line.training_data import prepare
from bilinear_circuits.data.corpora import Corpus
from bilinear_circuits.utilities import processes
from bilinear_circuits.utilities.folders import TOKENIZER, file_hash, fingerprint

if TYPE_CHECKING:
    from bilinear_circuits.data.rows import TrainingData
    from bilinear_circuits.training.language_model import TrainingResult


DISTRIBUTED = True
_RECORD = "training.json"
_DATA, _CHECKPOINTS = "data", "checkpoints"


@dataclass(kw_only=True)
class Arguments(CorpusArguments):
    """Options of `train`."""

    recipe: str = field(positional=True, metavar="RECIPE")
    """Recipe: a YAML file, or a shipped one by name: ts-nano, ts-17m, ts-33m."""

    out: str | None = None
    """Folder of the model; by default out/NAME, with the recipe's name."""

    set: list[str] = field(default_factory=list, metavar="KEY=VALUE")  # noqa: RUF009
    """Values that replace those of the recipe, KEY=VALUE each: --set optim.epochs=1 model.n_layer=2"""

    device: str | None = None
    """cpu to stay off a GPU; by default a GPU where there is one."""

    wandb: bool = False
    """Log to Weights & Biases too."""

    keep_checkpoints: bool = False
    """Keep the checkpoints of a finished run."""


def run(arguments: Arguments) -> None:
    """Train, or go on training, and write the model."""
    from transformers.utils import logging

    from bilinear_circuits.data.rows import TrainingData
    from bilinear_circuits.models.llama import build_model
    from bilinear_circuits.training.language_model import train_model

    logging.set_verbosity_error()
    logging.disable_progress_bar()
    recipe, corpus, out = _asked(arguments)
    folder, settings = _run_folder(out), resolved(recipe, corpus)
    if folder.is_over(settings):
        _clear(folder, arguments.keep_checkpoints)
        print(f"{recipe.name} was finished already: {out}")
        return
    processes.join(arguments.device)
    if processes.is_first():
        _start(arguments, recipe, corpus, folder, settings)
    processes.wait()
    data = TrainingData.load(out / _DATA)
    model = build_model(recipe.model, data.tokenizer, recipe.seed)
    if processes.is_first():
        common.note(f"training {recipe.name}: {model.num_parameters() / 1e6:.1f} M parameters, {len(data.rows)} rows")
    result = train_model(
        model,
        data.rows,
        data.valid_rows,
        recipe.optim,
        out,
        seed=recipe.seed,
        device=arguments.device,
        report_to="wandb" if arguments.wandb else "none",
        callbacks=[progress_bar()] if processes.is_first() else [],
    )
    processes.leave()  # by now all have read the best checkpoint
    _finish(folder, model, record(settings, data, result), arguments.keep_checkpoints)
    print(
        f"{recipe.name}: validation loss {result.valid_loss:.4f} nats per token at step {result.best_step} of"
        f" {result.steps}, {result.tokens / 1e6:.1f} M tokens, {result.seconds:.0f} s\nwritten: {out}"
    )


def results_folder(arguments: Arguments) -> Path:
    """The folder of the run."""
    common.check_out(arguments.out)
    return Path(f"out/{read_recipe(arguments.recipe, arguments.set).name}" if arguments.out is None else arguments.out)


def _asked(arguments: Arguments) -> tuple[Recipe, Corpus, Path]:
    """Recipe, corpus and folder of the run."""
    recipe = read_recipe(arguments.recipe, arguments.set)
    return recipe, chosen_corpus(arguments, recipe.stories), results_folder(arguments)


def _run_folder(out: Path) -> RunFolder:
    return RunFolder(out, "a training", _RECORD)


def _start(arguments: Arguments, recipe: Recipe, corpus: Corpus, folder: RunFolder, settings: dict[str, Any]) -> None:
    """Check what is asked, mark the folder as that of this run, and tokenize the stories."""
    from bilinear_circuits.training.language_model import rows_per_device

    if arguments.device is not None:
        common.check_device(arguments.device)
    folder.check(settings)
    rows_per_device(recipe.optim)  # refuses what the processes cannot share, before the stories are read
    # Saving comes after the mark: a corpus that cannot be read leaves nothing, a killed run only what is its own.
    save = prepare(recipe, corpus, folder.folder / _DATA)
    folder.mark(settings, [])
    save()


def resolved(recipe: Recipe, corpus: Corpus) -> dict[str, Any]:
    """A recipe as plain data, every default filled in, and the texts and the tokenizer it was run on."""
    named = {"corpus": records.display_name(corpus.path), "corpus_sha256": file_hash(corpus.path)}
    if recipe.valid is not None:
        valid = zoo.corpus_path(recipe.valid)
        named |= {"valid": records.display_name(valid), "valid_sha256": file_hash(valid)}
    if recipe.tokenizer is not None:
        files = fingerprint(zoo.model_path(recipe.tokenizer), TOKENIZER)
        named |= {"tokenizer": records.display_name(recipe.tokenizer), "tokenizer_sha256": files.sha256}
    return asdict(recipe) | named | settings_of(corpus)


def record(settings: dict[str, Any], data: "TrainingData", result: "TrainingResult") -> dict[str, Any]:
    """Gather what is saved beside the weights: recipe, versions, commit, data, and how the training went."""
    return {
        "recipe": settings,
        "data_sha256": data.rows.data_hash,
        "n_rows": len(data.rows),
        "n_stories": data.counts,
        "n_processes": processes.n_processes(),
        **records.environment(),
        "result": asdict(result),
    }


def progress_bar() -> Any:
    """A progress bar on stderr for the Trainer, with the losses of the last evaluation."""
    from tqdm import tqdm
    from transformers import TrainerCallback

    class Bar(TrainerCallback):
        def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            self.bar = tqdm(total=state.max_steps, initial=state.global_step, desc="train", file=sys.stderr)

        def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            self.bar.update(state.global_step - self.bar.n)

        def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **kwargs: Any) -> None:
            self.bar.set_postfix({k: f"{logs[k]:.4f}" for k in ("loss", "eval_loss") if k in logs})

        def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            self.bar.close()

    return Bar()


def _finish(folder: RunFolder, model: Any, training: dict[str, Any], keep_checkpoints: bool) -> None:
    """Write model, tokenizer and record, all or none of them, and remove what only a run under way needs."""
    import torch

    from bilinear_circuits.data.rows import TOKENIZER as TOKENIZER_FOLDER

    if training["recipe"]["optim"]["precision"] == "bf16":
        model = model.to(torch.bfloat16)
    with common.written_whole(folder.folder, last=_RECORD) as whole:
        model.save_pretrained(whole)
        shutil.copytree(folder.folder / _DATA / TOKENIZER_FOLDER, whole, dirs_exist_ok=True)
        (whole / _RECORD).write_text(common.to_json(training), encoding="utf-8")
    _clear(folder, keep_checkpoints)


def _clear(folder: RunFolder, keep_checkpoints: bool) -> None:
    """Remove what only a run under way needs; its marker goes last."""
    # A network disk may keep files that are still mapped.
    shutil.rmtree(folder.folder / _DATA, ignore_errors=True)
    if not keep_checkpoints:
        shutil.rmtree(folder.folder / _CHECKPOINTS, ignore_errors=True)
    folder.unmark()
