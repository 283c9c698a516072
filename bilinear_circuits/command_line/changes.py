"""Recipes changed on the command line: `--set KEY=VALUE`."""

from collections.abc import Mapping, Sequence
from typing import Any


def with_changes(recipe: Mapping[str, Any], changes: Sequence[str]) -> dict[str, Any]:
    """A recipe with some of its values replaced.

    Args:
        recipe: What the file holds.
        changes: KEY=VALUE each; a dot leads into a nested mapping, and the value is YAML: `optim.lr=1.0e-3`.

    Raises:
        ValueError: If a change is no KEY=VALUE, its value is not YAML, or its key leads through something that is no
            mapping. Whether the key exists is checked with the recipe.
    """
    import yaml

    changed = dict(recipe)
    for change in changes:
        path, equals, text = change.partition("=")
        if not equals or not all(path.split(".")):
            raise ValueError(f"--set must be KEY=VALUE, got {change!r}. For instance --set tokens=1000000.")
        try:
            value = yaml.safe_load(text)
        except yaml.YAMLError as error:
            raise ValueError(f"--set must give {path} a YAML value, got {text!r}: {error}") from error
        *parents, key = path.split(".")
        inner = changed
        for parent in parents:
            nested = inner.get(parent, {})
            if not isinstance(nested, Mapping):
                raise ValueError(f"--set must lead through mappings, got {path}, where {parent} is {nested!r}.")
            inner[parent] = inner = dict(nested)
        inner[key] = value
    return changed
