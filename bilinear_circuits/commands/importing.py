"""Import a published bilinear model or dictionary as a stock Llama or SAELens folder.

Published are the models tdooms/ts-medium, tdooms/fw-small and tdooms/fw-medium, and dictionaries of the first and the
last, each in a folder of its own, such as tdooms/ts-medium-scope with --subfolder 4-mlp-out-x4-k30. The result is
used by its path wherever a shipped model or its dictionaries are used by name; an import.json in it says where it comes
from. Nothing of the source is executed, and what is not understood is refused by name.
"""

import dataclasses
import pickle
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

from simple_parsing import field

from bilinear_circuits.command_line import common, records
from bilinear_circuits.utilities.folders import TOKENIZER, download, file_hash, read_json

if TYPE_CHECKING:
    from torch import Tensor

_SAFETENSORS = "model.safetensors"
_WEIGHTS = ("*.safetensors", "*.safetensors.index.json", "pytorch_model.bin")
_OF_DICTIONARIES = ("layer", "model", "b_dec_on_output_only", "fold_normalize")
_TOKENIZERS = {
    "ts-4096": "tdooms/ts-tokenizer-4096",
    "mistral": "mistral-community/Mixtral-8x22B-v0.1",
    "gpt2": "openai-community/gpt2",
}  # what the publishing code reads for the names in its config.json
_PROBE_ROWS = 1024


@dataclasses.dataclass(kw_only=True)
class Arguments:
    """Options of `import`."""

    source: str = field(positional=True, metavar="FOLDER_OR_HUB_ID")
    """Folder, or Hub id (owner/name), with config.json and *.safetensors or pytorch_model.bin."""

    out: str
    """New folder to write; blocks.L.mlp.hook_in or blocks.L.mlp.hook_out is the name --saes expects of a dictionary."""

    subfolder: str | None = None
    """Folder inside the source, where that holds several dictionaries, such as 4-mlp-out-x4-k30."""

    tokenizer: str | None = None
    """Folder or Hub id with the tokenizer.json of a model; by default the source, if it has one."""

    layer: int | None = None
    """Layer of a dictionary, where its config.json does not say it."""

    model: str | None = None
    """Name of the model a dictionary was trained on, for its metadata; by default the source without -scope."""

    b_dec_on_output_only: bool = False
    """Leave b_dec out of a dictionary's input, where the publishing code subtracts it."""

    fold_normalize: bool = False
    """Apply the `normalize` of a dictionary's config.json, which the publishing code stores and never applies."""


def run(arguments: Arguments) -> None:
    """Read, convert, write."""
    common.check_out(arguments.out)
    out = Path(arguments.out)
    if out.is_dir() and any(out.iterdir()):
        raise ValueError(f"out must be a new or empty folder, got {arguments.out}, which holds files.")
    folder, revision = fetch(arguments.source, "source", arguments.subfolder)
    config, tensors, files = read_published(folder)
    write = _write_model if _check_kind(arguments, config) else _write_dictionary
    with common.written_whole(out) as temporary:
        summary = write(config, tensors, arguments, folder, temporary)
        origin = {
            "schema_version": 1,
            "source": records.display_name(arguments.source),
            "revision": revision,
            "source_files": {file.name: file_hash(file) for file in files},
            "source_config": config,
            "files": {file.name: file_hash(file) for file in sorted(temporary.iterdir())},
            "summary": summary.splitlines(),
            **records.environment(),
            "config": records.shared_config(arguments),
        }
        (temporary / "import.json").write_text(common.to_json(origin), encoding="utf-8")
    print(f"{summary}\nwritten: {out}")


def fetch(source: str, what: str, subfolder: str | None = None) -> tuple[Path, str | None]:
    """Folder of a source, and its commit where it is on the Hub.

    Raises:
        FileNotFoundError: If it is neither a folder nor a Hub id, or there is no such subfolder.
        OSError: If a Hub id cannot be fetched.
    """
    root, revision = Path(source), None
    if not root.is_dir():
        if not re.fullmatch(r"\w[\w.-]*/\w[\w.-]*", source) or root.exists():
            raise FileNotFoundError(f"{what} must be a folder or a Hub id (owner/name), got {source}: no such folder.")
        root = _download(source, what, subfolder)
        revision = root.name
    folder = root / (subfolder or "")
    if not folder.is_dir():
        raise FileNotFoundError(f"subfolder must be a folder of {source}, got {subfolder}.")
    return folder, revision


def read_published(folder: Path) -> "tuple[dict[str, Any], dict[str, Tensor], list[Path]]":
    """Read config.json and the weights of a folder, without running anything in them; the files read come third.

    Raises:
        FileNotFoundError: If a file is missing.
        ValueError: If a file cannot be read as what it should be.
    """
    path = folder / "config.json"
    if not path.is_file() and (folder / "cfg.json").is_file():
        raise ValueError(
            f"source must be a published folder, got {folder}, which is a SAELens folder already: use --saes."
        )
    if not path.is_file():
        inside = sorted(one.parent.relative_to(folder).as_posix() for one in folder.glob("*/**/config.json"))
        hint = f" --subfolder can be one of {', '.join(inside[:6])}{', ...' * (len(inside) > 6)}." if inside else ""
        raise FileNotFoundError(f"source must hold a config.json, got {folder} without.{hint}")
    config = read_json(path, "config.json")
    files = _weight_files(folder)
    tensors: dict[str, Tensor] = {}
    for file in files:
        for key, tensor in _load(file).items():
            if key in tensors:
                raise ValueError(f"weights must hold each name once, got {key} again in {file.name}.")
            tensors[key] = tensor
    return config, tensors, [path, *files]


def _download(source: str, what: str, subfolder: str | None) -> Path:
    prefix = f"{subfolder.strip('/')}/" if subfolder else ""
    # A * also matches folders: without a subfolder, every config.json is fetched to name them, and no weights of them.
    allowed = [prefix + name for name in ("*config.json", *_WEIGHTS, *TOKENIZER)]
    return download(source, what, allowed, None if prefix else ["*/*.safetensors", "*/*.bin"])


def _weight_files(folder: Path) -> list[Path]:
    """All shards of an index, or model.safetensors, or the only *.safetensors, or else pytorch_model.bin."""
    for index in sorted(folder.glob("*.safetensors.index.json")):
        shards = sorted(set(read_json(index, index.name).get("weight_map", {}).values()))
        if missing := [name for name in shards if not (folder / name).is_file()]:
            raise FileNotFoundError(f"source must hold all shards of {index}, got none named {missing[0]}.")
        return [folder / name for name in shards]
    if (folder / _SAFETENSORS).is_file():
        return [folder / _SAFETENSORS]
    files = sorted(folder.glob("*.safetensors"))
    if len(files) > 1:
        raise ValueError(
            f"source must hold {_SAFETENSORS} or an index of its shards, got {folder} with"
            f" {', '.join(file.name for file in files)}: which are the weights is not known."
        )
    if not files and (folder / "pytorch_model.bin").is_file():
        return [folder / "pytorch_model.bin"]
    if not files:
        raise FileNotFoundError(f"source must hold {_SAFETENSORS} or pytorch_model.bin, got {folder} without.")
    return files


def _load(file: Path) -> "dict[str, Tensor]":
    import torch
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        if file.suffix == ".safetensors":
            return load_file(file)
        content = torch.load(file, map_location="cpu", weights_only=True)
    except (SafetensorError, pickle.UnpicklingError, RuntimeError, EOFError, ValueError, KeyError) as error:
        raise ValueError(
            f"weights must be plain tensors, got {file}, which is damaged or holds other objects. Those are never"
            " unpickled, because that can run code of the file: convert it to safetensors where you trust it."
        ) from error
    if not isinstance(content, dict) or not all(isinstance(value, torch.Tensor) for value in content.values()):
        raise ValueError(f"weights must be a dictionary of tensors by name, got another object in {file}.")
    return content


def _check_kind(arguments: Arguments, config: dict[str, Any]) -> bool:
    """Whether it is a model, or else a dictionary; options of the other kind are refused."""
    is_model = "n_layer" in config
    if is_model == ("point" in config):
        if "hidden_act" in config:
            raise ValueError(_not_published(arguments.source, config["hidden_act"]))
        raise ValueError(
            "source must be a published bilinear model (config.json has n_layer) or dictionary (it has point), got"
            f" config.json with: {', '.join(config) or 'nothing'}."
        )
    for name in _OF_DICTIONARIES if is_model else ("tokenizer",):
        value = getattr(arguments, name)
        if value is not None and value is not False:
            kind = "model" if is_model else "dictionary"
            raise ValueError(f"--{name.replace('_', '-')} must be left out for a {kind}, got {value}.")
    return is_model


def _not_published(source: str, hidden_act: Any) -> str:
    """What to do with a folder that transformers reads as it is."""
    if hidden_act == "linear":
        return (
            f"source must be a published bilinear model or dictionary, got {source}, which is a stock bilinear Llama"
            f" already: use --model {source}."
        )
    return (
        f"source must be a published bilinear model or dictionary, got {source}, an ordinary model with"
        f" hidden_act={hidden_act!r:.40}: its MLPs are not bilinear, and no import makes them so."
    )


def _write_model(
    config: dict[str, Any], tensors: "dict[str, Tensor]", arguments: Arguments, folder: Path, out: Path
) -> str:
    from safetensors.torch import save_file

    from bilinear_circuits.models.importing import to_llama

    tokenizer = _read_tokenizer(arguments.tokenizer, folder)
    llama, weights = to_llama(config, tensors, tokenizer)
    lines = [f"bilinear model: {llama.num_hidden_layers} layers, d_model {llama.hidden_size}, {llama.dtype}"]
    if tokenizer is None:
        named = config.get("tokenizer")
        known = f", for instance {_TOKENIZERS[named]}" if named in _TOKENIZERS else ""
        lines.append(f"no tokenizer in the source, which names {named}: --tokenizer takes a folder or id{known}")
    else:
        if len(tokenizer) > llama.vocab_size:
            raise ValueError(
                f"tokenizer must have at most the {llama.vocab_size} words of the model, got {len(tokenizer)}."
            )
        tokenizer.save_pretrained(out)
    llama.save_pretrained(out)
    save_file(weights, out / "model.safetensors", metadata={"format": "pt"})
    return "\n".join(lines)


def _read_tokenizer(asked: str | None, folder: Path) -> Any:
    """The fast tokenizer asked for, or that of the source; None where the source has none."""
    from transformers import PreTrainedTokenizerFast

    if asked is not None:
        folder, _ = fetch(asked, "tokenizer")
    if not (folder / "tokenizer.json").is_file():
        if asked is None:
            return None
        raise FileNotFoundError(f"tokenizer must be a folder or Hub id with a tokenizer.json, got {asked} without.")
    try:
        # AutoTokenizer would ask the published config.json for a kind of model, which it does not say.
        return PreTrainedTokenizerFast.from_pretrained(folder)
    except Exception as error:  # the tokenizers library raises no narrower kind
        raise ValueError(f"tokenizer must be one that can be read, got {folder}: {error}") from error


def _write_dictionary(
    config: dict[str, Any], tensors: "dict[str, Tensor]", arguments: Arguments, folder: Path, out: Path
) -> str:
    import torch

    from bilinear_circuits.dictionaries.dictionary import Dictionary
    from bilinear_circuits.models.importing import TOPK_RULE, clipped_share, to_saelens

    name = records.display_name(arguments.source)
    model = arguments.model or (name.removesuffix("-scope") if name.endswith("-scope") else None)
    metadata = {
        "model_name": model,
        "model_class_name": "TransformerBridge",
        "source": records.display_name(arguments.source),
        "load": "bilinear_circuits.Dictionary.load(this folder), and its model by bilinear_circuits.load_model(folder)",
    }
    known = {key: value for key, value in metadata.items() if value is not None}
    b_dec_on_input, fold_normalize = not arguments.b_dec_on_output_only, arguments.fold_normalize
    sae = to_saelens(config, tensors, arguments.layer, b_dec_on_input, fold_normalize, known)
    sae.save_model(out)
    dictionary = Dictionary.from_sae(sae)
    rows = torch.randn(_PROBE_ROWS, dictionary.d_in, generator=torch.Generator().manual_seed(0))
    scale = config.get("normalize") or 1
    share = clipped_share(dictionary, (rows * (scale if fold_normalize else 1)).to(dictionary.W_enc.dtype))
    lines = [
        f"dictionary at {sae.cfg.metadata.hook_name}: {sae.cfg.d_sae} features of width {sae.cfg.d_in}, k={sae.cfg.k}",
        f"{TOPK_RULE} (here {100 * share:.1f} % of {_PROBE_ROWS} random rows; clipped_share measures others)",
    ]
    if scale != 1:
        kept = "is folded in, as asked" if fold_normalize else "is not either (--fold-normalize folds it in)"
        lines.append(
            f"normalize={scale} of its config.json, which the publishing code stores and never applies, {kept}"
        )
    if model is None:
        lines.append("no model_name is recorded: --model gives one")
    return "\n".join(lines)
