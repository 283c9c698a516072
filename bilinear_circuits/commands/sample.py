"""Sample stories from a model into a text file: the way the shipped corpus was made."""

import hashlib
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bilinear_circuits import zoo
from bilinear_circuits.command_line import common, records
from bilinear_circuits.command_line.claims import HALF_WRITTEN
from bilinear_circuits.command_line.values import check_most, short, why_no_name
from bilinear_circuits.data.text_files import STORY_END, file_kind
from bilinear_circuits.utilities.folders import file_hash, read_json

_KIND = "sampled stories"
_MOST = 10_000_000
_LONGEST = 255  # tokens, the length of the shipped stories


@dataclass(kw_only=True)
class Arguments:
    """Options of `sample`."""

    out: str
    """Text file to write, each story ended by a line <|endoftext|>; its settings go to OUT.json. A file that sample did
    not write, or that was changed since, is not overwritten."""

    model: str = zoo.DEFAULT_MODEL
    """A shipped model, a Hugging Face model folder, or a Hub id."""

    n: int = 2000
    """Number of stories."""

    temperature: float = 0.9
    """Softmax temperature."""

    max_tokens: int | None = None
    """Longest story in tokens; by default 255, or as many as the model's context takes."""

    batch_size: int = 128
    """Stories sampled at once; part of what makes a sample repeatable."""

    device: str = "cpu"
    """Where to compute: cpu, cuda, cuda:1."""

    seed: int = 0
    """Seed of the samples."""


def results_folder(arguments: Arguments) -> Path:
    """The folder beside the file in which it is made ready: a sample is no folder, but one run at a time makes it."""
    return _ready(_checked_out(arguments.out))


def run(arguments: Arguments) -> None:
    """Sample and write."""
    for name in ("n", "temperature", "batch_size"):
        if not 0 < getattr(arguments, name) < float("inf"):
            raise ValueError(f"{name} must be positive and finite, got {getattr(arguments, name)}.")
    check_most(arguments, n=_MOST)
    common.check_seed(arguments.seed)
    path = _checked_out(arguments.out)
    max_tokens = _max_tokens(arguments)
    common.check_device(arguments.device)

    from bilinear_circuits.training.sampling import sample_stories

    model, tokenizer = common.quietly_load(zoo.load_plain_model, arguments.model, arguments.device)
    stories = sample_stories(
        model,
        tokenizer,
        arguments.n,
        temperature=arguments.temperature,
        seed=arguments.seed,
        batch_size=arguments.batch_size,
        max_tokens=max_tokens,
        progress=common.bar,
    )
    text = "".join(f"{story}\n{STORY_END}\n" for story in stories)
    _write(
        path,
        text,
        {
            "n_stories": len(stories),
            "config": records.shared_config(arguments),
            "max_tokens": max_tokens,
            "model": records.model_source(arguments.model),
        },
    )
    print(f"{len(stories)} stories written to {path}")


def _checked_out(out: str) -> Path:
    """The file to write, which is new, or as an earlier run wrote it.

    Raises:
        ValueError: If it is anything else.
    """
    if not out.strip():
        raise ValueError(f"out must be the name of a file, got {out!r}.")
    if reason := why_no_name(out, new=True):
        raise ValueError(f"out must be the name of a file, got {short(out)}: {reason}.")
    path = Path(out).resolve()
    record = _record_of(path)
    if path.exists() and not path.is_file():
        raise ValueError(f"out must be a file, got {out}: a folder or a device.")
    if file_kind(path) != "text" or path.suffix == ".gz":
        raise ValueError(f"out must be a file of text, got {out}, a name of something else. Name it stories.txt.")
    common.check_out(str(path.parent))
    written: dict[str, Any] = {}
    if record.exists():
        written = read_json(record, record.name) if record.is_file() else {}
        if written.get("kind") != _KIND:
            raise ValueError(f"out must leave {record.name} free for its settings, got {out} beside such a file.")
    # After a kill between the two files the text is still what the new record says it replaces.
    if path.exists() and file_hash(path) not in (written.get("sha256", ""), written.get("replaced", "")):
        raise ValueError(
            f"out must be a new file, or one that sample wrote and nobody changed, got {out}. Name another --out."
        )
    return path


def _ready(path: Path) -> Path:
    return path.with_name(f".{path.name}{HALF_WRITTEN}")


def _record_of(path: Path) -> Path:
    return path.with_name(f"{path.name}.json")


def _max_tokens(arguments: Arguments) -> int:
    """The longest story, refused before the model is loaded if its context does not take it."""
    folder = zoo.model_folder(arguments.model)
    context = read_json(folder / "config.json", "config.json").get("max_position_embeddings")
    asked = arguments.max_tokens
    if not isinstance(context, int):
        return _LONGEST if asked is None else asked  # checked again with the model
    if asked is None:
        return max(1, min(_LONGEST, context - 1))
    if not 1 <= asked < context:
        raise ValueError(
            f"max_tokens must be between 1 and {context - 1}, which with [BOS] fill the model's context, got {asked}."
        )
    return asked


def _write(path: Path, text: str, settings: dict[str, Any]) -> None:
    """The record, then the text: a kill in between leaves what the same command goes on from."""
    record = {"schema_version": 1, "kind": _KIND, "sha256": hashlib.sha256(text.encode()).hexdigest()}
    record |= {"replaced": file_hash(path), **settings, **records.environment()}
    ready = _ready(path)
    ready.mkdir(parents=True, exist_ok=True)
    contents = {_record_of(path): common.to_json(record), path: text}
    for file, content in contents.items():
        (ready / file.name).write_text(content, encoding="utf-8")
    for file in contents:
        os.replace(ready / file.name, file)
    ready.rmdir()
