"""The shipped model, its dictionaries and its stories; loading of models and dictionaries by name, path or Hub id."""

import difflib
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bilinear_circuits.dictionaries.places import SIDES, fetched, folders_in, load_pair
from bilinear_circuits.utilities.folders import (
    DICTIONARY_FILES,
    MODEL_FILES,
    Fingerprint,
    by_library,
    check_model_folder,
    check_tokenizer,
    download_model,
    fingerprint,
    read_json,
    refuse_adapter,
)

if TYPE_CHECKING:
    from bilinear_circuits.dictionaries.dictionary import Dictionary

FOLDER = Path(__file__).parent
DEFAULT_MODEL = "ts-17m"
_LOADS = "model must be one that transformers and TransformerLens can load"


def names() -> list[str]:
    """Names of the shipped models."""
    return sorted(folder.name for folder in FOLDER.iterdir() if (folder / "config.json").is_file())


def refuse_missing(model: str, missing: Mapping[str, str]) -> None:
    """Refuse a model that is not shipped where what is shipped with others is not given.

    Args:
        model: The model asked for.
        missing: What is not given: the names of arguments, and what they are.

    Raises:
        ValueError: If something is missing and the model is not a shipped one.
    """
    if missing and model not in names():
        given, what = " and ".join(missing), " and ".join(missing.values())
        raise ValueError(f"{given} must be given for {model}: {what} are shipped for {', '.join(names())}.")


def model_path(name_or_path: str | Path) -> str:
    """Folder of a shipped model or of one on disk; a Hub id (owner/name) is passed through.

    Raises:
        FileNotFoundError: If it is none of the three.
    """
    path = Path(name_or_path)
    if str(name_or_path) in names():
        return str(FOLDER / str(name_or_path))
    if str(name_or_path) and path.is_dir():
        refuse_adapter(path)
        if not (path / "config.json").is_file():
            raise FileNotFoundError(f"model must be a Hugging Face model folder, but {path} has no config.json.")
        return str(path)
    if len(path.parts) == 2 and not path.is_absolute() and not path.parts[0].startswith("."):
        return str(name_or_path)
    close = difflib.get_close_matches(str(name_or_path), names(), n=1)
    hint = f" Did you mean {close[0]}?" if close else ""
    raise FileNotFoundError(
        f"model must be a shipped one ({', '.join(names())}), a folder or a Hub id (owner/name),"
        f" got {name_or_path or repr('')}.{hint}"
    )


def model_folder(name_or_path: str | Path) -> Path:
    """Find the folder of a model on disk; a Hub id is fetched, or found in the cache.

    Raises:
        FileNotFoundError: If there is no such model.
        OSError: If it is a Hub id that cannot be fetched.
    """
    path = Path(model_path(name_or_path))
    return path if path.is_dir() else download_model(str(name_or_path))


def model_fingerprint(name_or_path: str | Path) -> Fingerprint:
    """Hash all that decides what a model computes: every shard of its weights, config.json and the tokenizer.

    Raises:
        FileNotFoundError: If there is no such model.
        OSError: If it is a Hub id that cannot be fetched.
    """
    return fingerprint(model_folder(name_or_path), MODEL_FILES)


def load_model(name_or_path: str | Path = DEFAULT_MODEL, device: str = "cpu") -> Any:
    """Load a model as a TransformerBridge in float32, in the mode that leaves its MLPs as they are.

    Compatibility mode is not entered: it would turn a bilinear MLP into SwiGLU.

    Args:
        name_or_path: Name of a shipped model, a Hugging Face model folder, or a Hub id.
        device: Where to put it.

    Returns:
        A TransformerBridge with its tokenizer.

    Raises:
        FileNotFoundError: If there is no such model.
        OSError: If it is a Hub id that cannot be fetched.
        ValueError: If its files are damaged, lack tensors or hold others, or hold numbers that are not finite; if an
            adapter lies beside it, or it is no stock model.
    """
    from transformer_lens.model_bridge import TransformerBridge

    from bilinear_circuits.models.checks import finite

    folder = checked_folder(name_or_path)
    check_tokenizer(folder)
    with by_library(_LOADS, folder):
        model = TransformerBridge.boot_transformers(str(folder), device=device, hf_config_overrides=_pad_id(folder))
    return finite(model.eval(), folder)


def load_plain_model(name_or_path: str | Path = DEFAULT_MODEL, device: str = "cpu") -> tuple[Any, Any]:
    """Load a model as Hugging Face has it, in float32, and its tokenizer; otherwise as `load_model`."""
    from transformers import AutoModelForCausalLM

    from bilinear_circuits.models.checks import finite

    folder = checked_folder(name_or_path)
    with by_library(_LOADS, folder):
        model = AutoModelForCausalLM.from_pretrained(folder, dtype="float32", **_pad_id(folder)).to(device).eval()
    return finite(model, folder), load_tokenizer(folder)


def load_tokenizer(name_or_path: str | Path = DEFAULT_MODEL) -> Any:
    """Load the tokenizer of a model, or one in a folder of its own, as transformers has it.

    Raises:
        FileNotFoundError: If there is no such folder.
        OSError: If it is a Hub id that cannot be fetched.
        ValueError: If transformers cannot load it.
    """
    from transformers import AutoTokenizer

    folder = model_folder(name_or_path)
    check_tokenizer(folder)
    with by_library("tokenizer must be one that transformers can load", folder):
        tokenizer = AutoTokenizer.from_pretrained(folder)
    for key in ("is_local", "local_files_only"):  # of this loading, and not to be saved with it
        tokenizer.init_kwargs.pop(key, None)
    return tokenizer


def checked_folder(name_or_path: str | Path) -> Path:
    """Folder of a model whose files were found to be whole and to hold the tensors of the model and no others."""
    from transformers import AutoModelForCausalLM
    from transformers.utils import logging

    from bilinear_circuits.models.checks import refuse_tensors

    folder = model_folder(name_or_path)
    check_model_folder(folder)
    verbosity = logging.get_verbosity()
    logging.set_verbosity_error()  # what it would report is said below
    try:
        # On the meta device no weights are read: this takes milliseconds, also of sharded and of tied weights.
        with by_library(_LOADS, folder):
            _, found = AutoModelForCausalLM.from_pretrained(
                folder, device_map="meta", output_loading_info=True, ignore_mismatched_sizes=True, **_pad_id(folder)
            )
    finally:
        logging.set_verbosity(verbosity)
    refuse_tensors(folder, sorted(found["missing_keys"]), sorted(found["unexpected_keys"]))
    for name, got, expected in found["mismatched_keys"]:
        raise ValueError(
            f"{name} must have the shape {tuple(expected)} that config.json gives, got {tuple(got)} in {folder}. The"
            " weights and config.json are of different models."
        )
    return folder


def _pad_id(folder: Path) -> dict[str, None]:
    """What leaves out the pad id of a config.json where the model has no such token: it is only ever masked."""
    config = read_json(folder / "config.json", "config.json")
    pad, size = config.get("pad_token_id"), config.get("vocab_size")
    fits = pad is None or not isinstance(size, int) or (isinstance(pad, int) and -size <= pad < size)
    return {} if fits else {"pad_token_id": None}


def dictionaries_path(name_or_path: str | Path) -> Path:
    """Folder of dictionaries: of a shipped model by its name, on disk, of the Hub, or of a SAELens release, RELEASE/ID.

    Raises:
        FileNotFoundError: If there is none.
        ValueError: If a SAELens release has no such id.
        OSError: If it cannot be fetched.
    """
    if str(name_or_path) in names():
        return FOLDER / f"{name_or_path}-saes"
    path = Path(name_or_path)
    if str(name_or_path) and path.is_dir():
        return path
    if str(name_or_path) and (folder := fetched(str(name_or_path))) is not None:
        return folder
    raise FileNotFoundError(
        f"saes must be the name of a shipped model ({', '.join(names())}), a folder that holds SAELens folders, a"
        f" SAELens release as RELEASE/ID, or a Hub id, got {name_or_path or repr('')}: no such folder."
    )


def dictionary_layers(name_or_path: str | Path) -> list[int]:
    """Layers that have a dictionary on the output of their MLP, and those on the input of them where there are some.

    Raises:
        FileNotFoundError: If the folder is missing, or holds no dictionary of an MLP output.
    """
    folder = dictionaries_path(name_or_path)
    found = folders_in(folder)
    if layers := [layer for layer, sides in found.items() if "hook_out" in sides]:
        return layers
    if found:
        lone = ", ".join(sides["hook_in"].name for sides in [*found.values()][:3])
        raise FileNotFoundError(
            f"saes must hold dictionaries of MLP outputs, blocks.L.mlp.hook_out, got {folder} with {lone} alone."
        )
    raise FileNotFoundError(
        "saes must hold SAELens folders of MLPs, such as blocks.L.mlp.hook_in and blocks.L.mlp.hook_out, or of other"
        f" names with a hook_name of an MLP in cfg.json, got {folder} without one."
    )


def dictionary_folders(name_or_path: str | Path, layer: int) -> list[Path | None]:
    """Folders of the dictionaries of a layer's MLP input and output; None for the input where it has none.

    Raises:
        FileNotFoundError: If the folder is missing.
    """
    found = folders_in(dictionaries_path(name_or_path)).get(layer, {})
    return [found.get(side) for side in SIDES]


def dictionary_folder(name_or_path: str | Path, name: str) -> Path | None:
    """Folder of a dictionary by its name; None for directions that lie in none, such as coordinates."""
    root = dictionaries_path(name_or_path)
    folder = root if name == root.name and not (root / name).is_dir() else root / name
    return folder if folder.is_dir() else None


def dictionary_fingerprint(folder: str | Path) -> Fingerprint:
    """Hash all that decides what a dictionary computes: its weights and its cfg.json."""
    return fingerprint(folder, DICTIONARY_FILES)


def load_dictionaries(
    layer: int, name_or_path: str | Path = DEFAULT_MODEL, device: str = "cpu"
) -> tuple["Dictionary", "Dictionary"]:
    """Load the dictionaries on the input and output of one MLP.

    Args:
        layer: Layer of the MLP.
        name_or_path: Name of a shipped model, a folder of SAELens folders, a SAELens release with its id
            (RELEASE/ID), or a Hub id.
        device: Where to put them.

    Returns:
        Dictionaries of the input and of the output. Where the input has none they are its coordinates.

    Raises:
        FileNotFoundError: If there is no such folder, or none for this layer.
    """
    layers = dictionary_layers(name_or_path)
    if layer not in layers:
        raise FileNotFoundError(f"layer must have dictionaries in {name_or_path}, layers {layers}, got {layer}.")
    folder = dictionaries_path(name_or_path)
    return load_pair(folders_in(folder)[layer], folder, layer, device)


def corpus_path(name_or_path: str | Path) -> str:
    """Stories sampled from a shipped model by the model's name; anything else is passed through."""
    return str(FOLDER / f"{name_or_path}-stories.txt" if str(name_or_path) in names() else name_or_path)
