"""From the corpora of a training recipe to the tokenizer and the token rows that all processes of a run read."""

from collections.abc import Callable, Sequence
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from bilinear_circuits import zoo
from bilinear_circuits.command_line import common, records
from bilinear_circuits.command_line.corpus import check_known, note_cut, settings_of
from bilinear_circuits.data.corpora import Corpus

if TYPE_CHECKING:
    from bilinear_circuits.command_line.recipes import Recipe


def prepare(recipe: "Recipe", corpus: Corpus, folder: Path) -> Callable[[], None]:
    """Make the tokenizer and the token rows of a recipe, unless a run that was killed has saved the same ones.

    Returns:
        What saves them.

    Raises:
        FileNotFoundError: If a corpus or a tokenizer is missing.
        ValueError: If there is nothing to train on, or to validate with.
    """
    from bilinear_circuits.data.rows import TrainingData, data_key, tokenize_rows
    from bilinear_circuits.data.tokenization import train_tokenizer

    stories = corpus.read(recipe.n_stories)
    valid = [] if recipe.valid_stories is None else recipe.valid_stories.read()
    tokenizer = None if recipe.tokenizer is None else zoo.load_tokenizer(recipe.tokenizer)
    made_by = {
        "recipe": asdict(recipe) | settings_of(corpus),
        "tokenizer": None if tokenizer is None else tokenizer.backend_tokenizer.to_str(),
        "versions": records.environment()["versions"],
    }
    key = data_key(made_by, stories, valid)
    if TrainingData.is_saved(folder, key):
        common.note("the stories are tokenized already")
        return lambda: None
    train, held_out, counts = divide(recipe, corpus.path, stories, valid)
    if tokenizer is None:
        tokenizer = train_tokenizer(train, recipe.vocab_size, recipe.model.context, common.bar)
    rows, valid_rows = (
        tokenize_rows(texts, tokenizer, recipe.model.context, common.bar) for texts in (train, held_out)
    )
    unknown = tokenizer.unk_token_id
    check_known(corpus, rows.n_story_tokens, 0 if unknown is None else int((rows.stream == unknown).sum()))
    note_cut(corpus, rows.n_cut, len(rows), rows.context)
    return partial(TrainingData(tokenizer, rows, valid_rows, counts).save, folder, key)


def divide(
    recipe: "Recipe", corpus: str, stories: Sequence[str], valid: Sequence[str]
) -> tuple[list[str], list[str], dict[str, int]]:
    """Stories for training and for validation, cleaned, and how many were read and left out.

    No story is on both sides: those of a corpus for validation are left out of training.

    Args:
        recipe: The recipe.
        corpus: Name of its corpus.
        stories: What that holds.
        valid: What its corpus for validation holds, if it names one.

    Raises:
        ValueError: If one side is left without a story.
    """
    from bilinear_circuits.data.stories import clean_stories, split_stories, stories_not_in

    cleaned = clean_stories(stories, progress=common.bar)
    if not cleaned.stories:
        raise ValueError(
            f"corpus must hold stories of ten words or more, got {corpus}, of whose {cleaned.n_read:,} none is left"
            " without corrupt ones: name one that does, or say how they are separated."
        )
    text = f"{cleaned.n_read} stories: {cleaned.n_duplicates} duplicates and {cleaned.n_corrupt} corrupt ones left out"
    if recipe.valid is None:
        train, held_out = split_stories(cleaned.stories, valid_share=recipe.valid_share, seed=recipe.seed)
        n_crossing = 0
    else:
        held_out = clean_stories(valid, progress=common.bar).stories
        train = stories_not_in(held_out, cleaned.stories)
        n_crossing = cleaned.n_kept - len(train)
        text += f", and {n_crossing} that are in {recipe.valid}"
    if not train or not held_out:
        raise ValueError(
            f"valid must hold other stories than the corpus, got {recipe.valid}: without corrupt stories and"
            f" duplicates {len(train)} are left to train on and {len(held_out)} to validate with."
        )
    common.note(text)
    counts = {
        "read": cleaned.n_read,
        "duplicates": cleaned.n_duplicates,
        "corrupt": cleaned.n_corrupt,
        "in_validation": n_crossing,
        "training": len(train),
        "validation": len(held_out),
    }
    return train, held_out, counts
