"""Rows of tokens for training, full to the last token, and the folder in which they wait for a run to be resumed.

1. `tokenize_rows` makes `StoryRows` of stories.
2. `TrainingData` is what a run trains on. It is saved once, and every process and every resumed run reads it back.
"""

import hashlib
import json
import os
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Int, Integer
from torch import Tensor
from torch.utils.data import Dataset

from bilinear_circuits.utilities.display import Brief
from bilinear_circuits.utilities.progress import Progress, silent

_BATCH = 1000  # texts tokenized at once
TOKENIZER = "tokenizer"  # folder of the tokenizer in that of the data
_SUMMARY = "data.json"
_SIDES = ("train", "valid")


@dataclass(frozen=True, eq=False, repr=False)
class StoryRows(Brief, Dataset[dict[str, Tensor]]):
    """Rows of exactly `context` tokens for training, one starting at each story.

    The stream is [BOS] story [EOS] [BOS] story [EOS] ... Row i is the `context` tokens from the [BOS] of story i: it
    runs on into the stories that follow, and from the last into the first, so that every story has a full row. An item
    is {"input_ids", "labels"}, both the same tokens, as Hugging Face models shift the labels themselves.

    Attributes:
        stream: Token ids of all stories, 2 bytes each, or 4 where the vocabulary needs them.
        starts: Position of each story's [BOS].
        context: Tokens per row.
    """

    stream: Integer[np.ndarray, " n_tokens"]
    starts: Int[np.ndarray, " n_stories"]
    context: int

    def __len__(self) -> int:
        return len(self.starts)

    def __getitem__(self, index: int) -> dict[str, Int[Tensor, " context"]]:
        """One row; a negative index counts from the end."""
        positions = np.arange(self.context) + self.starts[index]
        row = torch.from_numpy(self.stream.take(positions, mode="wrap").astype(np.int64))
        return {"input_ids": row, "labels": row.clone()}

    @property
    def n_story_tokens(self) -> int:
        """Tokens of the stories, without [BOS] and [EOS]."""
        return len(self.stream) - 2 * len(self.starts)

    @property
    def n_cut(self) -> int:
        """Stories that are longer than a row, of which the rest is trained on in none."""
        return int((np.diff(self.starts, append=len(self.stream)) > self.context + 1).sum())

    @cached_property
    def data_hash(self) -> str:
        """SHA-256 of the stream and the context, to record which data a model saw."""
        digest = hashlib.sha256(self.stream.data)
        digest.update(str(self.context).encode())
        return digest.hexdigest()


def tokenize_rows(stories: Sequence[str], tokenizer: Any, context: int, progress: Progress = silent) -> StoryRows:
    """Rows for training from stories, which are tokenized in batches.

    Args:
        stories: Texts.
        tokenizer: A fast tokenizer.
        context: Tokens per row.
        progress: Wraps the batches.

    Raises:
        ValueError: If there is no story, `context` is below 2, or the tokenizer lacks a [BOS] or [EOS] token.
    """
    bos, eos = tokenizer.bos_token_id, tokenizer.eos_token_id
    if context < 2:
        raise ValueError(f"context must be at least 2, got {context}. A row predicts each token but its first.")
    if bos is None or eos is None:
        raise ValueError(f"tokenizer must have a bos_token and an eos_token, got ids {bos} and {eos}.")
    if not stories:
        raise ValueError("stories must hold at least one text, got none.")
    dtype = "<u2" if len(tokenizer) <= 2**16 else "<i4"  # little-endian, so that hashes agree on any machine
    batches, lengths = [], [0]
    for start in progress(range(0, len(stories), _BATCH), "tokenize"):
        batch = list(stories[start : start + _BATCH])
        rows = tokenizer(batch, add_special_tokens=False, return_attention_mask=False, verbose=False)["input_ids"]
        batches.append(np.array([token for row in rows for token in (bos, *row, eos)], dtype))
        lengths += [len(row) + 2 for row in rows]
    return StoryRows(np.concatenate(batches), np.cumsum(lengths)[:-1], context)


@dataclass(frozen=True, eq=False, repr=False)
class TrainingData(Brief):
    """What a run trains on.

    Attributes:
        tokenizer: The tokenizer.
        rows: Rows for training.
        valid_rows: Rows for validation.
        counts: How many stories were read and left out.
    """

    tokenizer: Any
    rows: StoryRows
    valid_rows: StoryRows
    counts: Mapping[str, int]

    def save(self, folder: Path, key: str) -> None:
        """Write it, whole or not at all, in place of what the folder held.

        Args:
            folder: Folder of its own.
            key: What it was made of, as `data_key` says.
        """
        partial = folder.with_name(f"{folder.name}.partial")  # one name, so that a killed process leaves but one
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir(parents=True)
        self.tokenizer.save_pretrained(partial / TOKENIZER)
        for side, rows in zip(_SIDES, (self.rows, self.valid_rows), strict=True):
            np.save(partial / f"{side}.stream.npy", rows.stream, allow_pickle=False)
            np.save(partial / f"{side}.starts.npy", rows.starts, allow_pickle=False)
        summary = {"key": key, "context": self.rows.context, "counts": dict(self.counts)}
        (partial / _SUMMARY).write_text(json.dumps(summary), encoding="utf-8")
        shutil.rmtree(folder, ignore_errors=True)
        os.replace(partial, folder)

    @classmethod
    def load(cls, folder: Path) -> "TrainingData":
        """Read it back; the tokens stay on disk and are shared by all processes that map them."""
        from transformers import AutoTokenizer

        summary = json.loads((folder / _SUMMARY).read_text(encoding="utf-8"))
        rows, valid_rows = (
            StoryRows(
                _mapped(folder / f"{side}.stream.npy"), _mapped(folder / f"{side}.starts.npy"), summary["context"]
            )
            for side in _SIDES
        )
        return cls(AutoTokenizer.from_pretrained(folder / TOKENIZER), rows, valid_rows, summary["counts"])

    @staticmethod
    def is_saved(folder: Path, key: str) -> bool:
        """Compare the folder's record with the data asked for."""
        summary = folder / _SUMMARY
        return summary.is_file() and json.loads(summary.read_text(encoding="utf-8"))["key"] == key


def data_key(settings: Mapping[str, Any], *corpora: Sequence[str]) -> str:
    """SHA-256 of settings and of every story of some corpora, to know whether data was made of the same."""
    digest = hashlib.sha256(json.dumps(settings, sort_keys=True).encode())
    for stories in corpora:
        digest.update(f"\n{len(stories)} stories".encode())
        for story in stories:
            text = story.encode("utf-8", "surrogatepass")
            digest.update(f"\n{len(text)} ".encode() + text)  # with its length, so that no two lists are the same text
    return digest.hexdigest()


def _mapped(path: Path) -> np.ndarray:
    return np.load(path, mmap_mode="r", allow_pickle=False)
