"""Recipes of language models: a YAML file that says what to train on, which model and how."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from bilinear_circuits import zoo
from bilinear_circuits.command_line import common
from bilinear_circuits.command_line.arguments import check_seed
from bilinear_circuits.command_line.changes import with_changes
from bilinear_circuits.data.corpora import Corpus
from bilinear_circuits.zoo.configs import config_file

if TYPE_CHECKING:
    from bilinear_circuits.models.llama import ModelSettings
    from bilinear_circuits.training.language_model import OptimSettings


@dataclass(frozen=True)
class Recipe:
    """A recipe file.

    Attributes:
        name: Name of the model.
        corpus: File, Hub id, or a shipped model's name for the stories sampled from it.
        model: Shape of the model.
        optim: How to train it.
        n_stories: Stories read from the corpus; all by default.
        separator: How the stories of its text are separated; `<|endoftext|>` by default.
        column: Column of its records that holds the stories; text by default.
        valid: Corpus for validation, whose stories are left out of training; a share of the corpus by default.
        valid_separator: How its stories are separated.
        valid_column: Column that holds them.
        valid_share: That share.
        vocab_size: Size of the tokenizer trained on the training stories.
        tokenizer: A tokenizer folder or shipped model to use instead.
        seed: Seed of weights, data order and dropout.
    """

    name: str
    corpus: str
    model: "ModelSettings"
    optim: "OptimSettings"
    n_stories: int | None = None
    separator: str | None = None
    column: str | None = None
    valid: str | None = None
    valid_separator: str | None = None
    valid_column: str | None = None
    valid_share: float = 0.03
    vocab_size: int = 4096
    tokenizer: str | None = None
    seed: int = 0

    @property
    def stories(self) -> Corpus:
        """Stories to train on."""
        return Corpus(self.corpus, self.separator, self.column)

    @property
    def valid_stories(self) -> Corpus | None:
        """Stories to validate with, if they are no share of the corpus."""
        if self.valid is None:
            return None
        return Corpus(zoo.corpus_path(self.valid), self.valid_separator, self.valid_column)


def read_recipe(path: str, changes: Sequence[str] = ()) -> Recipe:
    """Read a recipe, given by its file or by the name of a shipped one, with some values replaced.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If it is not YAML, or a key is unknown, missing or of the wrong kind.
    """
    from bilinear_circuits.models.llama import ModelSettings
    from bilinear_circuits.training.language_model import OptimSettings

    content = with_changes(common.read_yaml(config_file(path, "recipe", "train"), "recipe"), changes)
    for key, kind in (("model", ModelSettings), ("optim", OptimSettings)):
        if not isinstance(content.get(key), dict):
            raise ValueError(f"{key} of {path} must be a mapping, got {content.get(key)!r}.")
        content[key] = common.from_mapping(kind, content[key], f"{key} of {path}")
    recipe = common.from_mapping(Recipe, content, path)
    for name in ("n_stories", "vocab_size"):
        if (value := getattr(recipe, name)) is not None and value < 1:
            raise ValueError(f"{name} of {path} must be at least 1, got {value}.")
    if not 0 < recipe.valid_share < 1:
        raise ValueError(f"valid_share of {path} must be between 0 and 1, got {recipe.valid_share}.")
    check_seed(recipe.seed)
    return recipe
