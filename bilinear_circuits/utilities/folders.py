"""Folders of models and dictionaries on disk: fetched, checked before anything is loaded, and hashed.

A hash covers every file that decides what a folder computes, so that no result is resumed, edited or explained on
other weights or another configuration than it was made of.
"""

import contextlib
import functools
import hashlib
import json
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

WEIGHTS = ("*.safetensors", "*.safetensors.index.json", "*.bin", "*.bin.index.json")
TOKENIZER = (
    *("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json"),
    *("vocab.json", "vocab.txt", "merges.txt", "*.model"),
)
_VOCABULARIES = ("tokenizer.json", "vocab.json", "vocab.txt", "*.model")
MODEL_FILES = ("config.json", *WEIGHTS, *TOKENIZER)
DICTIONARY_FILES = ("cfg.json", "sae_weights.safetensors")
_REASON = 240  # characters
_ADAPTERS = ("adapter_config.json", "adapter_model.safetensors", "adapter_model.bin")


@dataclass(frozen=True)
class Fingerprint:
    """What decides what a model or a dictionary computes, as hashes.

    Attributes:
        files: SHA-256 of each file by its name; empty where there is no folder on disk.
    """

    files: Mapping[str, str]

    @property
    def sha256(self) -> str | None:
        """One SHA-256 for all files; None where there are none."""
        if not self.files:
            return None
        return hashlib.sha256(json.dumps(sorted(self.files.items())).encode()).hexdigest()

    def differences(self, other: "Fingerprint") -> list[str]:
        """Names of the files that are missing on one side or differ."""
        return sorted(name for name in {*self.files, *other.files} if self.files.get(name) != other.files.get(name))


def fingerprint(folder: str | Path, patterns: Sequence[str]) -> Fingerprint:
    """Hash the files of a folder that match one of some patterns."""
    files = {file for pattern in patterns for file in Path(folder).glob(pattern) if file.is_file()}
    return Fingerprint({file.name: str(file_hash(file)) for file in sorted(files)})


def ordinary_mode(files: Iterable[Path]) -> None:
    """Give files the mode of any new file: safetensors makes its own readable by their owner alone."""
    mask = os.umask(0)
    os.umask(mask)
    for file in files:
        file.chmod(0o666 & ~mask)


def file_hash(path: str | Path) -> str | None:
    """Hash a file by SHA-256; None where there is no such file on disk, as for a Hub id."""
    file = Path(path)
    if not file.is_file():
        return None
    status = file.stat()
    return _file_hash(file.resolve(), status.st_size, status.st_mtime_ns, status.st_ino)


@functools.lru_cache(maxsize=4096)
def _file_hash(file: Path, size: int, time: int, inode: int) -> str:
    """Hash a file once for as long as its size, time and inode stay: models are gigabytes."""
    with file.open("rb") as content:
        return hashlib.file_digest(content, "sha256").hexdigest()


def read_json(path: Path, what: str) -> dict[str, Any]:
    """Read a JSON object.

    Raises:
        ValueError: If the file cannot be read as one.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8-sig"))
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{what} must be a JSON file, got {path}: {error or 'nested too deeply'}.") from error
    if not isinstance(content, dict):
        raise ValueError(f"{what} must be a JSON object, got {path}, which holds {content!r:.60}.")
    return content


def reason_of(error: BaseException) -> str:
    """Say in one line what a library said, and what kind of error it is where that is no refusal."""
    text = " ".join(str(error).split())
    if not isinstance(error, OSError | ValueError) or not text:
        text = f"{type(error).__name__}: {text}".rstrip(": ")
    return text if len(text) <= _REASON else f"{text[:_REASON]}..."


@contextlib.contextmanager
def by_library(what: str, folder: str | Path) -> Iterator[None]:
    """Let another library read a folder: whatever it raises is one refusal that names the folder.

    A folder fails in as many ways as there are libraries, and their errors are of every kind.

    Raises:
        ValueError: If the library cannot read it.
    """
    try:
        yield
    except MemoryError:
        raise
    except Exception as error:
        raise ValueError(f"{what}, got {folder}: {reason_of(error)}") from error


def download(repository: str, what: str, allowed: Sequence[str], ignored: list[str] | None = None) -> Path:
    """Fetch files of a Hub repository, or find them in the cache; the folder of its commit.

    Raises:
        OSError: If they cannot be fetched.
    """
    from huggingface_hub import snapshot_download

    try:
        return Path(snapshot_download(repository, allow_patterns=list(allowed), ignore_patterns=ignored))
    except (OSError, ValueError) as error:
        raise OSError(
            f"{what} must be a folder, or a Hub id that can be fetched, got {repository}: {reason_of(error)}"
        ) from error


def download_model(repository: str) -> Path:
    """Fetch a model of the Hub: its safetensors, or where it has none its pytorch_model files.

    Raises:
        OSError: If it cannot be fetched.
    """
    plain = [pattern for pattern in MODEL_FILES if ".bin" not in pattern]
    folder = download(repository, "model", [*plain, *_ADAPTERS], ["*/*"])
    if not any(folder.glob("*.safetensors")):
        folder = download(repository, "model", MODEL_FILES, ["*/*"])
    return folder


def check_model_folder(folder: Path) -> None:
    """Refuse a model folder whose files are damaged, or which is more or something else than one stock model.

    Raises:
        ValueError: If it is.
    """
    for file in sorted({*folder.glob("*config.json"), *folder.glob("tokenizer*.json"), *folder.glob("*.index.json")}):
        read_json(file, file.name)
    config = read_json(folder / "config.json", "config.json")
    refuse_adapter(folder)
    if "n_layer" in config and "hidden_act" not in config and "bilinear" in config:
        raise ValueError(
            f"model must be a stock Hugging Face model, got {folder}, in the format of published bilinear models:"
            " bilinear-circuits import makes a stock Llama of it."
        )
    if config.get("quantization_config"):
        raise ValueError(
            f"model must have weights that are not quantized, got {folder}: its config.json has a quantization_config."
        )
    for file in folder.glob("*.safetensors"):
        check_safetensors(file)


def refuse_adapter(folder: Path) -> None:
    """Refuse a model folder with an adapter, alone or beside a model.

    Raises:
        ValueError: If it has one.
    """
    for name in _ADAPTERS:
        if (folder / name).is_file():
            alone = not (folder / "config.json").is_file()
            way = "an adapter without its model" if alone else "an adapter beside it"
            raise ValueError(
                f"model must be a whole model, got {folder} with {way} ({name}): merge the adapter into the weights"
                f" (peft's merge_and_unload) and save the result{'' if alone else ', or remove it'}."
            )


def check_tokenizer(folder: Path) -> None:
    """Refuse a model folder without a tokenizer.

    Raises:
        ValueError: If it holds none.
    """
    if not any(file.is_file() for pattern in _VOCABULARIES for file in folder.glob(pattern)):
        raise ValueError(
            f"model must have a tokenizer, got {folder} without tokenizer.json: save it there with"
            " tokenizer.save_pretrained."
        )


def check_safetensors(file: Path) -> None:
    """Refuse a safetensors file that is cut short or whose header is damaged.

    Raises:
        ValueError: If it is.
    """
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(file, framework="pt") as content:
            content.keys()
    except (SafetensorError, OSError) as error:
        raise ValueError(
            f"{file.name} must be a whole safetensors file, got {file}, which is damaged: {error}."
        ) from error
