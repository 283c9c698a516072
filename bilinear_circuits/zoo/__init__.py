"""The shipped model, its dictionaries and its stories; loading of models and dictionaries by name, path or Hub id."""

import difflib
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from bilinear_circuits.dictionaries import Dictionary

FOLDER = Path(__file__).parent
DEFAULT_MODEL = "ts-17m"


def names() -> list[str]:
    """Names of the shipped models."""
    return sorted(folder.name for folder in FOLDER.iterdir() if (folder / "config.json").is_file())


def model_path(name_or_path: str | Path) -> str:
    """Folder of a shipped model or of one on disk; a Hub id (owner/name) is passed through.

    Raises:
        FileNotFoundError: If it is none of the three.
    """
    path = Path(name_or_path)
    if str(name_or_path) in names():
        return str(FOLDER / str(name_or_path))
    if path.is_dir():
        if not (path / "config.json").is_file():
            raise FileNotFoundError(f"model must be a Hugging Face model folder, but {path} has no config.json.")
        return str(path)
    if len(path.parts) == 2 and not path.is_absolute() and not path.parts[0].startswith("."):
        return str(name_or_path)
    close = difflib.get_close_matches(str(name_or_path), names(), n=1)
    hint = f" Did you mean {close[0]}?" if close else ""
    raise FileNotFoundError(
        f"model must be a shipped one ({', '.join(names())}), a folder or a Hub id (owner/name),"
        f" got {name_or_path}.{hint}"
    )


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
        ValueError: If tensors of the model are missing from its files.
    """
    from transformer_lens.model_bridge import TransformerBridge

    path = model_path(name_or_path)
    _check_complete(path)
    return TransformerBridge.boot_transformers(path, device=device).eval()


def _check_complete(path: str) -> None:
    """Refuse files that lack tensors of the model: transformers would fill them with random numbers."""
    from transformers import AutoModelForCausalLM

    # On the meta device no weights are read: this takes milliseconds, also of sharded and of tied weights.
    _, found = AutoModelForCausalLM.from_pretrained(path, device_map="meta", output_loading_info=True)
    if missing := sorted(found["missing_keys"]):
        some = ", ".join(missing[:3]) + (f" and {len(missing) - 3} more" if len(missing) > 3 else "")
        raise ValueError(
            f"model must hold all of its tensors, but {path} lacks {len(missing)}: {some}. Save or download it again."
        )


def dictionaries_path(name_or_path: str | Path) -> Path:
    """Folder of dictionaries: that of a shipped model by the model's name, or one on disk.

    Raises:
        FileNotFoundError: If there is none.
    """
    if str(name_or_path) in names():
        return FOLDER / f"{name_or_path}-saes"
    path = Path(name_or_path)
    if not path.is_dir():
        raise FileNotFoundError(
            f"saes must be the name of a shipped model ({', '.join(names())}) or a folder that holds SAELens folders"
            f" named blocks.L.mlp.hook_in and blocks.L.mlp.hook_out, got {name_or_path}: no such folder."
        )
    return path


def dictionary_layers(name_or_path: str | Path) -> list[int]:
    """Layers that have a dictionary on either side of their MLP.

    Raises:
        FileNotFoundError: If the folder is missing, or holds no such pair.
    """
    folder = dictionaries_path(name_or_path)
    layers = [
        int(one.name.split(".")[1])
        for one in folder.glob("blocks.*.mlp.hook_in")
        if one.name.split(".")[1].isdecimal() and (folder / one.name.replace("hook_in", "hook_out")).is_dir()
    ]
    if not layers:
        raise FileNotFoundError(
            f"saes must hold pairs of SAELens folders blocks.L.mlp.hook_in and blocks.L.mlp.hook_out, got {folder}"
            " without one."
        )
    return sorted(layers)


def load_dictionaries(
    layer: int, name_or_path: str | Path = DEFAULT_MODEL, device: str = "cpu"
) -> tuple["Dictionary", "Dictionary"]:
    """Load the dictionaries on the input and output of one MLP.

    Args:
        layer: Layer of the MLP.
        name_or_path: Name of a shipped model, or a folder of SAELens folders blocks.L.mlp.hook_in and hook_out.
        device: Where to put them.

    Raises:
        FileNotFoundError: If there is no such folder, or none for this layer.
    """
    from bilinear_circuits.dictionaries import Dictionary

    layers = dictionary_layers(name_or_path)
    if layer not in layers:
        raise FileNotFoundError(f"layer must have dictionaries in {name_or_path}, layers {layers}, got {layer}.")
    folder = dictionaries_path(name_or_path)
    sae_in, sae_out = (
        Dictionary.load(folder / f"blocks.{layer}.mlp.{side}", device=device) for side in ("hook_in", "hook_out")
    )
    return sae_in, sae_out


def corpus_path(name_or_path: str | Path) -> str:
    """Stories sampled from a shipped model by the model's name; anything else is passed through."""
    return str(FOLDER / f"{name_or_path}-stories.txt" if str(name_or_path) in names() else name_or_path)
