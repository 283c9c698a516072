"""Names of features given on the command line: they go before those stored with the dictionaries."""

import sys
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from bilinear_circuits.dictionaries.names import checked_names
from bilinear_circuits.utilities.yaml_files import read_yaml

if TYPE_CHECKING:
    from bilinear_circuits.dictionaries.dictionary import Dictionary
    from bilinear_circuits.interactions.activity import Side

_SIDES: "tuple[Side, ...]" = ("in", "out")
Labels = Mapping[tuple[int, str], Mapping[int, str]]


def read_labels(path: str | None, layers: Sequence[int], side: "Side | None" = None) -> "Labels":
    """Read a file of names, by layer and side.

    Args:
        path: The file; none gives no names.
        layers: Layers of the run; names of others are left out.
        side: The side that a file without the keys in and out is of.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If it is no mapping of features to names below in and out.
    """
    content = {} if path is None else read_yaml(path, "labels")
    if not set(content) <= set(_SIDES):
        if side is None:
            raise ValueError(
                f"labels must hold the keys in and out, got {', '.join(map(str, content))[:60]} in {path}."
            )
        content = {side: content}
    labels: dict[tuple[int, str], dict[Any, Any]] = {(layer, one): {} for layer in layers for one in _SIDES}
    for one in _SIDES:
        names = content.get(one) or {}
        if not isinstance(names, dict):
            raise ValueError(f"labels must map features to names, got {names!r:.60} in {path}.")
        for key, name in names.items():
            layer, feature = _split(key, layers, path)
            if str(feature) in map(str, labels.get((layer, one), {})):
                raise ValueError(f"labels must name each feature once, got {layer}/{feature} twice in {path}.")
            if (layer, one) in labels:
                labels[layer, one][feature] = name
    # How many features there are is known once the dictionaries are loaded.
    return {at: checked_names(names, sys.maxsize, str(path)) for at, names in labels.items()}


def _split(key: Any, layers: Sequence[int], path: str | None) -> tuple[int, Any]:
    """Layer and feature that a name is of."""
    layer, slash, feature = str(key).partition("/")
    if slash and layer.isdecimal():
        return int(layer), feature
    if slash or len(layers) > 1:
        raise ValueError(f"labels must be of layer/feature, such as {layers[0]}/12, got {key!r:.40} in {path}.")
    return layers[0], key


def named(dictionary: "Dictionary", given: Mapping[int, str], where: str) -> "Dictionary":
    """A dictionary with names that go before those stored with it.

    Raises:
        ValueError: If a name is of no feature.
    """
    return replace(dictionary, names={**dictionary.names, **checked_names(given, dictionary.d_sae, where)})
