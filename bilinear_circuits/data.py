"""Stories from a text file or the Hugging Face Hub, and their tokens."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Bool, Int
from torch import Tensor

STORY_END = "<|endoftext|>"
_FILE_SUFFIXES = (".txt", ".json", ".jsonl", ".parquet", ".csv", ".gz")


def read_stories(corpus: str | Path, limit: int | None = None) -> list[str]:
    """Stories of a text file, each ended by a line `<|endoftext|>`, or of the training split of a Hub dataset.

    Args:
        corpus: Path of a text file, or a Hub id such as "roneneldan/TinyStories", read with `datasets`.
        limit: Read at most this many.

    Raises:
        FileNotFoundError: If the corpus is no file, and is not written like a Hub id (owner/name).
        ValueError: If it holds no story, or `limit` is not positive.
    """
    if limit is not None and limit < 1:
        raise ValueError(f"limit must be at least 1, got {limit}.")
    path = Path(corpus)
    if path.is_file():
        pieces = (piece.strip() for piece in path.read_text(encoding="utf-8").split(STORY_END))
        stories = [piece for piece in pieces if piece][:limit]
    elif len(path.parts) == 2 and not path.is_absolute() and path.suffix not in _FILE_SUFFIXES:
        from datasets import load_dataset

        split = "train" if limit is None else f"train[:{limit}]"
        stories = list(load_dataset(str(corpus), split=split)["text"])
    else:
        raise FileNotFoundError(f"corpus must be a text file or a Hub id (owner/name), got {corpus}: no such file.")
    if not stories:
        raise ValueError(f"corpus must hold at least one story, got none in {corpus}.")
    return stories


@dataclass(frozen=True, eq=False)
class StoryTokens:
    """One story a row, [BOS] first, cut at the context length, padded on the right.

    Attributes:
        ids: Token ids.
        mask: True on the story's own tokens: not on padding, not on [BOS].
    """

    ids: Int[Tensor, "story pos"]
    mask: Bool[Tensor, "story pos"]

    def __len__(self) -> int:
        return len(self.ids)

    def __getitem__(self, index: slice | Tensor) -> "StoryTokens":
        """Select rows."""
        return StoryTokens(self.ids[index], self.mask[index])


def tokenize_stories(stories: Sequence[str], tokenizer: Any, context: int) -> StoryTokens:
    """Tokens of stories, one row each. The tokenizer's own [BOS] is used, or put in front where it adds none.

    Raises:
        ValueError: If there is no story, or the tokenizer has neither a [BOS] nor an [EOS] token.
    """
    if not stories:
        raise ValueError("stories must hold at least one text, got none.")
    bos = tokenizer.bos_token_id if tokenizer.bos_token_id is not None else tokenizer.eos_token_id
    if bos is None:
        raise ValueError("tokenizer must have a bos_token or an eos_token to start rows with.")
    rows = tokenizer(list(stories), add_special_tokens=False, truncation=True, max_length=context - 1)["input_ids"]
    width = max(len(row) for row in rows) + 1
    pad = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else bos
    ids = torch.full((len(rows), width), pad, dtype=torch.long)
    mask = torch.zeros(len(rows), width, dtype=torch.bool)
    for index, row in enumerate(rows):
        ids[index, 0] = bos
        ids[index, 1 : len(row) + 1] = torch.tensor(row, dtype=torch.long)
        mask[index, 1 : len(row) + 1] = True
    return StoryTokens(ids, mask)
