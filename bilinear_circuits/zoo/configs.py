"""Shipped queries and recipes, found by name where a file can be given."""

import difflib
from pathlib import Path
from typing import Literal

FOLDER = Path(__file__).parents[1] / "configs"
Kind = Literal["circuits", "train", "sae"]


def names(kind: Kind) -> list[str]:
    """Names of the shipped queries ("circuits") or of the recipes of models ("train") or dictionaries ("sae")."""
    return sorted(file.stem for file in (FOLDER / kind).glob("*.yaml"))


def config_file(path_or_name: str, what: str, kind: Kind) -> str:
    """Path of a query or recipe: a file, which goes first, or one that is shipped, by its name.

    Raises:
        FileNotFoundError: If it is neither.
    """
    if Path(path_or_name).is_file():
        return path_or_name
    known = names(kind)
    if path_or_name in known:
        return str(FOLDER / kind / f"{path_or_name}.yaml")
    close = difflib.get_close_matches(Path(path_or_name).stem, known, n=1)
    hint = f" Did you mean {close[0]}?" if close else ""
    raise FileNotFoundError(
        f"{what} must be a YAML file or a shipped one's name ({', '.join(known)}), got {path_or_name}: no such file."
        + hint
    )
