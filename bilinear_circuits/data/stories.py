"""Stories: cleaned, split into training and validation, and tokenized.

1. `clean_stories` normalises what `corpora.read_stories` read, drops corrupt ones and duplicates, and counts both.
2. `split_stories` sends a story to training or validation by a hash of its text alone; `stories_not_in` takes those of
   another corpus out.
3. `tokenize_stories` makes rows for analyses, one story each. Rows for training are in `bilinear_circuits.data.rows`.
"""

import hashlib
import re
import unicodedata
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Bool, Int
from torch import Tensor

from bilinear_circuits.utilities.display import Brief
from bilinear_circuits.utilities.progress import Progress, silent

PLAIN_SIGNS: Mapping[str, str] = {'"': "“”„«»", "'": "‘’`´", "-": "–—", "...": "…"}
"""Signs as the models know them, and the typographic ones each stands for."""

_TO_PLAIN = str.maketrans({sign: plain for plain, signs in PLAIN_SIGNS.items() for sign in signs})
_INVISIBLE = ("Mn", "Mc", "Me", "Cf")  # Unicode categories: accents and other marks, and format characters
# UTF-8 read as Latin-1 or Windows-1252 gives the first two; the rest no text holds: control characters except white
# space, halves of surrogate pairs, the replacement character.
_MOJIBAKE = re.compile("â€|[ÂÃ][\xa0-\xbf]|[\x00-\x08\x0e-\x1b\x7f-\x84\x86-\x9f\ud800-\udfff\ufffd]")
_HALF = re.compile("[\ud800-\udfff]")


def normalise(text: str) -> str:
    r"""Plain quotes, dashes and dots, no accents or invisible characters, single spaces; case is kept.

    Compatibility forms are made plain (NFKD), marks dropped, the rest composed again (NFC).

    Examples:
        >>> normalise("“Café…”  she\n said")
        '"Cafe..." she said'
    """
    text = text.translate(_TO_PLAIN)  # first: NFKD would take an acute accent used as an apostrophe apart
    if not text.isascii():
        letters = unicodedata.normalize("NFKD", text)
        visible = "".join(letter for letter in letters if unicodedata.category(letter) not in _INVISIBLE)
        text = unicodedata.normalize("NFC", visible.translate(_TO_PLAIN))  # again: NFKD makes dashes of small dashes
    return " ".join(text.split())


@dataclass(frozen=True, eq=False, repr=False)
class CleanStories(Brief):
    """Normalised stories without corrupt ones and duplicates, and how many of each there were.

    Attributes:
        stories: Kept stories, normalised, in the order read.
        n_read: Stories given.
        n_corrupt: Left out as corrupt.
        n_duplicates: Left out because an earlier story is the same.
    """

    stories: list[str]
    n_read: int
    n_corrupt: int
    n_duplicates: int

    @property
    def n_kept(self) -> int:
        """Stories left: read less corrupt less duplicates."""
        return len(self.stories)


def clean_stories(stories: Sequence[str], min_words: int = 10, progress: Progress = silent) -> CleanStories:
    """Normalise stories, and drop the corrupt ones and all but the first of those that are the same.

    A story is corrupt if it has fewer than `min_words` words, holds replacement or control characters or UTF-8 read as
    another encoding ("â€™"), or if less than half of it is letters. An end without punctuation does not make it so.
    Stories are the same if they are equal once normalised, case aside: the models' tokens have no case.

    Args:
        stories: Texts.
        min_words: Fewest words of a story.
        progress: Wraps the stories.

    Raises:
        ValueError: If `min_words` is not positive.
    """
    if min_words < 1:
        raise ValueError(f"min_words must be at least 1, got {min_words}.")
    kept: dict[bytes, str] = {}
    n_corrupt = 0
    for raw in progress(stories, "clean"):
        story = normalise(raw)
        letters = sum(map(str.isalpha, story))
        if _MOJIBAKE.search(raw) or len(story.split()) < min_words or 2 * letters < len(story):
            n_corrupt += 1
        else:
            kept.setdefault(_digest(story), story)
    return CleanStories(list(kept.values()), len(stories), n_corrupt, len(stories) - n_corrupt - len(kept))


def stories_not_in(held_out: Iterable[str], stories: Iterable[str]) -> list[str]:
    """The stories, in the order given, without those held out: without any that is equal once normalised, case aside.

    Args:
        held_out: Texts to leave out, for instance those for validation.
        stories: Texts to choose from.
    """
    seen = {_digest(normalise(story)) for story in held_out}
    return [story for story in stories if _digest(normalise(story)) not in seen]


def _digest(normalised: str, key: str = "") -> bytes:
    """Hash of a story, case aside; another key gives an unrelated hash."""
    text = f"{key}\n{normalised.casefold()}"
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).digest()[:16]


def split_stories(
    stories: Sequence[str], valid_share: float | None = None, n_valid: int | None = None, seed: int = 0
) -> tuple[list[str], list[str]]:
    """Stories for training and for validation, each in the order given.

    Validation takes the stories whose hash, of the seed and the normalised text, case aside, is lowest. So duplicates
    land on one side, and adding stories moves no other: none by share, and by number none from training to validation.

    Args:
        stories: Texts.
        valid_share: Expected share of them for validation; the share found differs by chance.
        n_valid: Number of different stories for validation, instead of a share.
        seed: Another seed gives another split.

    Raises:
        ValueError: If not one of `valid_share` and `n_valid` is given, or one side is left without a story.
    """
    if (valid_share is None) == (n_valid is None):
        raise ValueError(f"valid_share or n_valid must be given, and one alone, got {valid_share} and {n_valid}.")
    draws = [int.from_bytes(_digest(normalise(story), key=str(seed))) for story in stories]
    if n_valid is not None:
        ordered = sorted(set(draws))
        if not 0 < n_valid < len(ordered):
            raise ValueError(f"n_valid must be between 1 and {len(ordered) - 1}, to leave a story, got {n_valid}.")
        bound: float = ordered[n_valid]
    else:
        bound = (valid_share or 0) * 2**128
    sides: tuple[list[str], list[str]] = ([], [])
    for story, draw in zip(stories, draws, strict=True):
        sides[draw < bound].append(story)
    if not all(sides):
        raise ValueError(f"valid_share must leave stories on both sides, got {valid_share} of {len(stories)} stories.")
    return sides


@dataclass(frozen=True, eq=False, repr=False)
class StoryTokens(Brief):
    """One story a row, [BOS] first, cut at the context length, filled up with [BOS] on the right.

    Attributes:
        ids: Token ids.
        mask: True on the story's own tokens: not on the filling, not on the first [BOS].
        is_cut: Which stories were longer; None where none was.
    """

    ids: Int[Tensor, "story pos"]
    mask: Bool[Tensor, "story pos"]
    is_cut: Bool[Tensor, " story"] | None = None

    def __len__(self) -> int:
        return len(self.ids)

    def __getitem__(self, index: slice | Tensor) -> "StoryTokens":
        """Select rows."""
        return StoryTokens(self.ids[index], self.mask[index], None if self.is_cut is None else self.is_cut[index])

    @property
    def n_cut(self) -> int:
        """Stories that were longer than the context."""
        return 0 if self.is_cut is None else int(self.is_cut.sum())


def tokenize_stories(stories: Sequence[str], tokenizer: Any, context: int) -> StoryTokens:
    """Tokenize stories, one row each, of which the first `context` tokens are kept.

    Of the tokenizer nothing counts but what tokens it makes: rows start with its [BOS], or where it has none with its
    [EOS], and are cut at their end and filled up with the same token here, whatever sides or pad token it names.

    Raises:
        ValueError: If there is no story, or one with half a character, or the tokenizer has neither a [BOS] nor an
            [EOS] token.
    """
    if not stories:
        raise ValueError("stories must hold at least one text, got none.")
    bos = tokenizer.bos_token_id if tokenizer.bos_token_id is not None else tokenizer.eos_token_id
    if bos is None:
        raise ValueError("tokenizer must have a bos_token or an eos_token to start rows with.")
    for story in stories:
        if _HALF.search(story):
            raise ValueError(f"stories must hold whole characters, got half of a surrogate pair in {story!r:.60}.")
    whole = tokenizer(list(stories), add_special_tokens=False, padding=False, truncation=False, verbose=False)
    rows = [row[: context - 1] for row in whole["input_ids"]]
    ids = torch.full((len(rows), max(map(len, rows)) + 1), bos, dtype=torch.long)
    mask = torch.zeros(ids.shape, dtype=torch.bool)
    for index, row in enumerate(rows):
        ids[index, 1 : len(row) + 1] = torch.tensor(row, dtype=torch.long)
        mask[index, 1 : len(row) + 1] = True
    is_cut = torch.tensor([len(row) > context - 1 for row in whole["input_ids"]])
    return StoryTokens(ids, mask, is_cut if is_cut.any() else None)
