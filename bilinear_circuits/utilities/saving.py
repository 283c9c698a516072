"""Results on disk: a frozen dataclass as result.json, its tensors beside it in result.safetensors. Never pickle.

What is written can be loaded again, equal in every number: floats are kept to the last bit and tensors in their dtype.
"""

import dataclasses
import json
import math
import os
import types
import typing
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

from torch import Tensor

from bilinear_circuits.utilities.folders import ordinary_mode

T = TypeVar("T")

FORMAT_VERSION = 1
_TENSOR, _FLOAT = "$tensor", "$float"


def save_result(result: Any, folder: str | Path, provenance: Mapping[str, Any] | None = None) -> None:
    """Write a result and what it takes to repeat it.

    Both files are written under temporary names and then renamed, the JSON last: a folder with a result.json is whole.

    Args:
        result: A dataclass made of dataclasses, tensors, lists, tuples, mappings from text, and JSON types.
        folder: Where; made if needed.
        provenance: Query, seed, versions, hashes: kept as it is.

    Raises:
        TypeError: If the result is no dataclass, or holds something that cannot be written.
    """
    from safetensors.torch import save_file

    if not dataclasses.is_dataclass(result) or isinstance(result, type):
        raise TypeError(f"result must be a dataclass, got a {type(result).__name__}.")
    tensors: dict[str, Tensor] = {}
    document = {
        "format_version": FORMAT_VERSION,
        "kind": type(result).__name__,
        "provenance": dict(provenance or {}),
        "result": _encoded(result, type(result).__name__, tensors),
    }
    text = json.dumps(document, indent=1, ensure_ascii=False, allow_nan=False) + "\n"
    target = Path(folder)
    target.mkdir(parents=True, exist_ok=True)
    save_file(tensors, target / ".result.safetensors")
    ordinary_mode([target / ".result.safetensors"])
    (target / ".result.json").write_text(text, encoding="utf-8")
    (target / "result.json").unlink(missing_ok=True)  # an old one is not of the new tensors
    for name in ("result.safetensors", "result.json"):
        os.replace(target / f".{name}", target / name)


def load_result(cls: type[T], folder: str | Path) -> T:
    """Read a result that `save_result` wrote.

    Args:
        cls: The class of the result.
        folder: Where it was written.

    Raises:
        FileNotFoundError: If one of the two files is missing.
        ValueError: If they hold something else than a result of this class, or a damaged one.
    """
    from safetensors.torch import load_file

    source = Path(folder)
    for name in ("result.json", "result.safetensors"):
        if not (source / name).is_file():
            raise FileNotFoundError(f"folder must hold {name}, got {source} without it.")
    try:
        document = json.loads((source / "result.json").read_text(encoding="utf-8"))
        kind, version = document["kind"], document["format_version"]
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"folder must hold a result.json that save_result wrote, got {source}: {error!r}.") from error
    if kind != cls.__name__ or version != FORMAT_VERSION:
        raise ValueError(
            f"folder must hold a {cls.__name__} of format {FORMAT_VERSION}, got {source} with a {kind} of {version}."
        )
    try:
        return _decoded(cls, document["result"], load_file(source / "result.safetensors"))
    except (KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"folder must hold a whole {cls.__name__}, got {source}: {error!r}.") from error


def _encoded(value: Any, path: str, tensors: dict[str, Tensor]) -> Any:
    """A value in JSON's own types; tensors move to the side and are named by where they stand."""
    if isinstance(value, Tensor):
        tensors[path] = value.detach().cpu().contiguous().clone()
        return {_TENSOR: path}
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        fields = [field.name for field in dataclasses.fields(value) if field.init]
        return {name: _encoded(getattr(value, name), f"{path}.{name}", tensors) for name in fields}
    if isinstance(value, Mapping):
        return {_text(key, path): _encoded(one, f"{path}.{key}", tensors) for key, one in value.items()}
    if isinstance(value, Sequence) and not isinstance(value, str | bytes):
        return [_encoded(one, f"{path}.{index}", tensors) for index, one in enumerate(value)]
    if isinstance(value, float) and not math.isfinite(value):
        return {_FLOAT: str(value)}
    if value is None or isinstance(value, bool | int | float | str):
        return value
    raise TypeError(f"{path} must be made of dataclasses, tensors and JSON types, got a {type(value).__name__}.")


def _text(key: Any, path: str) -> str:
    if not isinstance(key, str):
        raise TypeError(f"keys of {path} must be text, got {key!r}.")
    return key


def _decoded(hint: Any, value: Any, tensors: Mapping[str, Tensor]) -> Any:
    """The value a field of type `hint` held."""
    if isinstance(value, dict) and set(value) == {_TENSOR}:
        return tensors[value[_TENSOR]]
    if isinstance(value, dict) and set(value) == {_FLOAT}:
        return float(value[_FLOAT])
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin in (typing.Union, types.UnionType):
        return None if value is None else _decoded(next(a for a in arguments if a is not type(None)), value, tensors)
    if dataclasses.is_dataclass(hint):
        hints = typing.get_type_hints(hint)
        return hint(**{name: _decoded(hints[name], one, tensors) for name, one in value.items()})  # type: ignore[operator]
    if isinstance(value, list):
        if origin is tuple and not (len(arguments) == 2 and arguments[1] is Ellipsis):
            return tuple(_decoded(argument, item, tensors) for argument, item in zip(arguments, value, strict=True))
        items = [_decoded(arguments[0] if arguments else Any, one, tensors) for one in value]
        if isinstance(hint, type) and hasattr(hint, "_fields"):  # a NamedTuple, such as a feature's name
            return hint(*items)
        return items if origin is list else tuple(items)
    if isinstance(value, dict):
        return {key: _decoded(arguments[1] if arguments else Any, one, tensors) for key, one in value.items()}
    return value
