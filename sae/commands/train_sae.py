"""Train dictionaries on both sides of the MLPs of some layers from a recipe: SAELens folders that load anywhere.

A recipe is a YAML file: model, corpus, layers, a SAELens architecture and how to train it. A run that was killed goes
on from its last checkpoint when the same command is given again.
"""

import json
import shutil
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from simple_parsing import field

from bilinear_circuits import zoo
from bilinear_circuits.command_line import common, records
from bilinear_circuits.command_line.arguments import CorpusArguments
from bilinear_circuits.command_line.changes import with_changes
from bilinear_circuits.command_line.claims import HALF_WRITTEN
from bilinear_circuits.command_line.corpus import chosen_corpus, tokenized
from bilinear_circuits.command_line.run_folder import RunFolder
from bilinear_circuits.utilities.folders import file_hash
from bilinear_circuits.zoo.configs import config_file
from sae.settings import Recipe

if TYPE_CHECKING:
    from bilinear_circuits.data.corpora import Corpus
    from bilinear_circuits.data.stories import StoryTokens
    from bilinear_circuits.dictionaries.dictionary import Dictionary
    from sae.train import TrainedDictionaries

_RECORD = "training.json"
_RELOAD = (
    "model: bilinear_circuits.load_model({model!r}), a TransformerBridge that is not in compatibility mode;"
    " dictionary: sae_lens.SAE.load_from_disk(folder) or bilinear_circuits.Dictionary.load(folder)"
)
_CHECKPOINTS = "checkpoints"
_SNAPSHOTS = "snapshots"


@dataclass(kw_only=True)
class Arguments(CorpusArguments):
    """Options of `train-sae`."""

    recipe: str = field(positional=True, metavar="RECIPE")
    """Recipe: a YAML file, or a shipped one by name: ts-nano, ts-17m-4x, ts-17m-8x, ts-17m-progress."""

    model: str | None = None
    """A shipped model, a Hugging Face model folder, or a Hub id; by default what the recipe says."""

    out: str | None = None
    """Folder of the dictionaries; by default out/NAME, with the recipe's name."""

    set: list[str] = field(default_factory=list, metavar="KEY=VALUE")  # noqa: RUF009
    """Values that replace those of the recipe, KEY=VALUE each: --set tokens=1000000 sae.k=15"""

    device: str = "cpu"
    """Where to train: cpu, cuda, cuda:1."""

    wandb: bool = False
    """Log to Weights & Biases too."""


def read_recipe(path: str, changes: Sequence[str] = ()) -> Recipe:
    """Read a recipe, given by its file or by the name of a shipped one, with some values replaced.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If it is not YAML, or a key is unknown, missing, of the wrong kind or of a value that cannot be.
    """
    content = common.read_yaml(config_file(path, "recipe", "sae"), "recipe")
    return common.from_mapping(Recipe, with_changes(content, changes), path)


def results_folder(arguments: Arguments) -> Path:
    """The folder of the dictionaries."""
    return Path(f"out/{read_recipe(arguments.recipe, arguments.set).name}" if arguments.out is None else arguments.out)


def run(arguments: Arguments) -> None:
    """Train, or go on training, and write the dictionaries."""
    started = time.perf_counter()
    out = results_folder(arguments)
    common.check_out(arguments.out)
    recipe, corpus = _chosen(arguments)
    common.check_out(str(out))
    common.check_device(arguments.device)
    zoo.model_path(recipe.model)
    resolved = _resolved(recipe)
    folder = RunFolder(out, "a training", _RECORD)
    if folder.is_over(resolved):
        _clear(folder)
        print(f"{recipe.name} was finished already: {out}")
        return
    folder.check(resolved)

    from sae.train import excluded_tokens, train_dictionaries

    model, tokens = _loaded(recipe, corpus, arguments.device)
    _start(folder, resolved)
    metadata = _metadata(recipe, resolved, len(tokens), type(model).__name__, excluded_tokens(tokens))

    def keep(n_tokens: int, dictionaries: "dict[str, Dictionary]") -> None:
        _write_dictionaries(
            out / _SNAPSHOTS / str(n_tokens), recipe, dictionaries, metadata | {"training_tokens": n_tokens}
        )

    common.note(f"training {', '.join(recipe.hook_names)}: {recipe.n_steps} steps of {recipe.batch_tokens} tokens")
    trained = train_dictionaries(
        model,
        tokens,
        recipe.settings,
        model_name=records.display_name(recipe.model),
        checkpoints=out / _CHECKPOINTS,
        on_snapshot=keep,
        wandb=arguments.wandb,
    )
    record = _record(resolved, tokens, trained, time.perf_counter() - started)
    _write(folder, recipe, trained, record, metadata | {"training_tokens": trained.n_tokens})
    print(table(trained))
    print(f"written: {out}")


def _chosen(arguments: Arguments) -> "tuple[Recipe, Corpus]":
    """The recipe with what the options say in its place, and its stories."""
    recipe = read_recipe(arguments.recipe, arguments.set)
    corpus = chosen_corpus(arguments, recipe.stories)
    changed = replace(
        recipe,
        model=recipe.model if arguments.model is None else arguments.model,
        corpus=recipe.corpus if arguments.corpus is None else arguments.corpus,
        separator=corpus.separator,
        column=corpus.column,
    )
    return changed, corpus


def _loaded(recipe: Recipe, corpus: "Corpus", device: str) -> "tuple[Any, StoryTokens]":
    """The model and the tokens of the stories, checked against the recipe."""
    from sae.checks import check_model, check_options, check_tokens

    check_options(recipe)
    stories = corpus.read(recipe.n_stories)
    common.note(f"loading {recipe.model}")
    model = common.quietly_load_model(recipe.model, device)
    check_model(model, recipe)
    tokens = tokenized(corpus, stories, model.tokenizer, recipe.context)
    check_tokens(tokens, recipe)
    return model, tokens


def table(trained: "TrainedDictionaries") -> str:
    """The last training batch of each dictionary, as text."""
    lines = [f"last batch of {trained.n_tokens} tokens", f"{'dictionary':<24}{'features':>9}{'FVU':>8}{'L0':>8}"]
    for name, dictionary in trained.dictionaries.items():
        last = trained.curve[name][-1]
        lines.append(f"{name:<24}{dictionary.d_sae:>9}{last['fvu']:>8.4f}{last['l0']:>8.1f}")
    return "\n".join(lines)


def _resolved(recipe: Recipe) -> dict[str, Any]:
    """A recipe as plain data, every default filled in, and the weights and text it was run on."""
    named = {"model": records.display_name(recipe.model), "corpus": records.display_name(recipe.corpus)}
    hashes = {
        "model_sha256": zoo.model_fingerprint(recipe.model).sha256,
        "corpus_sha256": file_hash(zoo.corpus_path(recipe.corpus)),
    }
    return json.loads(json.dumps(asdict(recipe) | named | hashes))


def _start(folder: RunFolder, resolved: dict[str, Any]) -> None:
    """Mark the folder as this run's; take away dictionaries that a kill left without their record."""
    folder.mark(resolved, [_SNAPSHOTS])
    for path in (*folder.folder.glob("blocks.*.mlp.hook_*"), *(folder.folder / _SNAPSHOTS).glob(f".*{HALF_WRITTEN}")):
        shutil.rmtree(path)
    if any(folder.folder.glob(f"{_CHECKPOINTS}/*")):
        common.note(f"going on from the last checkpoint in {folder.folder / _CHECKPOINTS}")


def _record(
    resolved: dict[str, Any], tokens: "StoryTokens", trained: "TrainedDictionaries", seconds: float
) -> dict[str, Any]:
    """What is saved beside the dictionaries: recipe, versions, commit, data, and how the training went."""
    return {
        "schema_version": 1,
        "recipe": resolved,
        **records.environment(),
        "n_stories": len(tokens),
        "unique_tokens": int(tokens.mask.sum()),
        "training_tokens": trained.n_tokens,
        "resumed_at": trained.resumed_at,
        "final": {name: points[-1] for name, points in trained.curve.items()},
        "curve": trained.curve,
        "seconds": round(seconds, 1),
    }


def _metadata(
    recipe: Recipe, resolved: dict[str, Any], n_stories: int, model_class: str, excluded: list[int]
) -> dict[str, Any]:
    """What SAELens keeps of where a dictionary comes from; the hook and SAELens' version are added when written."""
    return {
        "model_name": resolved["model"],
        "model_class_name": model_class,
        "context_size": recipe.context,
        "prepend_bos": True,
        "exclude_special_tokens": excluded,
        "dataset_path": f"{resolved['corpus']} ({n_stories} stories)",
        "training_architecture": recipe.architecture,
        "sae_lens_training_version": records.environment()["versions"]["sae-lens"],
        "reload": _RELOAD.format(model=resolved["model"]),
    }


def _write(
    folder: RunFolder, recipe: Recipe, trained: "TrainedDictionaries", record: dict[str, Any], metadata: dict[str, Any]
) -> None:
    """The dictionaries, then their record, then the checkpoints go: a kill in between leaves a run to go on with."""
    _write_dictionaries(folder.folder, recipe, trained.dictionaries, metadata)
    with common.written_whole(folder.folder) as whole:
        (whole / _RECORD).write_text(common.to_json(record), encoding="utf-8")
    _clear(folder)


def _clear(folder: RunFolder) -> None:
    """Remove what only a run under way needs; its marker goes last."""
    shutil.rmtree(folder.folder / _CHECKPOINTS, ignore_errors=True)
    folder.unmark()


def _write_dictionaries(
    out: Path, recipe: Recipe, dictionaries: "dict[str, Dictionary]", metadata: dict[str, Any]
) -> None:
    """Each dictionary's folder, whole or not at all, in place of one of the same name."""
    import torch

    with common.written_whole(out) as folder:
        for name, dictionary in dictionaries.items():
            shutil.rmtree(out / name, ignore_errors=True)
            dictionary.save(folder / name, metadata, getattr(torch, recipe.save_dtype))
