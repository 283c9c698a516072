"""Which stories a verb reads: the options that name them, and what is said of them once they are tokenized."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from bilinear_circuits import zoo
from bilinear_circuits.command_line.arguments import CommonArguments, CorpusArguments
from bilinear_circuits.command_line.terminal import note
from bilinear_circuits.data.corpora import Corpus

if TYPE_CHECKING:
    from bilinear_circuits.data.stories import StoryTokens

_MOST_UNKNOWN = 0.5  # share of [UNK], above which a text is of another language, or read in another encoding


def chosen_corpus(arguments: CorpusArguments, default: Corpus) -> Corpus:
    """The corpus asked for by options, or the default one, with what the options say of it in place of its own."""
    if arguments.corpus is not None:
        return Corpus(zoo.corpus_path(arguments.corpus), arguments.separator, arguments.column)
    return Corpus(
        zoo.corpus_path(default.path), arguments.separator or default.separator, arguments.column or default.column
    )


def corpus_of(arguments: CommonArguments, default: Corpus | None = None) -> Corpus:
    """The corpus asked for, the default, or the stories shipped with the model.

    Raises:
        ValueError: If none is given and none is shipped, or its settings do not fit its kind.
        FileNotFoundError: If there is no such file.
    """
    shipped = Corpus(arguments.model) if arguments.model in zoo.names() else None
    if arguments.corpus is None and default is None:
        zoo.refuse_missing(arguments.model, {"--corpus": "stories"})
    corpus = chosen_corpus(arguments, default or shipped or Corpus(""))
    corpus.check()
    return corpus


def settings_of(corpus: Corpus) -> dict[str, str | None]:
    """List what decides which stories a file holds, for records and for settings that a resumed run must share."""
    return {"separator": corpus.separator, "column": corpus.column}


def tokenized(corpus: Corpus, stories: Sequence[str], tokenizer: Any, context: int) -> "StoryTokens":
    """Tokenize the stories of a corpus, and say how many are cut at the context.

    Raises:
        ValueError: If no token comes of them, or most of those that do are [UNK].
    """
    from bilinear_circuits.data.stories import tokenize_stories

    tokens = tokenize_stories(stories, tokenizer, context)
    own, unknown = tokens.ids[tokens.mask], tokenizer.unk_token_id
    check_known(corpus, len(own), 0 if unknown is None else int((own == unknown).sum()))
    note_cut(corpus, tokens.n_cut, len(tokens), context)
    return tokens


def check_known(corpus: Corpus, n_tokens: int, n_unknown: int) -> None:
    """Refuse a corpus that the tokenizer can do nothing with.

    Raises:
        ValueError: If it has no token, or most of them are [UNK].
    """
    if n_tokens == 0:
        raise ValueError(
            f"corpus must hold words of the model's vocabulary, got {corpus.path}, of which no token came."
        )
    if n_unknown > _MOST_UNKNOWN * n_tokens:
        raise ValueError(
            f"corpus must be of the model's vocabulary, got {corpus.path}, of whose {n_tokens:,} tokens"
            f" {100 * n_unknown / n_tokens:.0f} % are unknown to it. Is it of another language, or another model's?"
        )


def note_cut(corpus: Corpus, n_cut: int, n_stories: int, context: int) -> None:
    """Say how many stories are longer than the context, if any."""
    if n_cut:
        note(f"{n_cut:,} of {n_stories:,} stories of {corpus.path} are cut at the context, {context} tokens with [BOS]")
