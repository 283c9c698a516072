"""What a verb writes to a folder it shares with others: never over files that something else wrote there."""

import contextlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bilinear_circuits import zoo
from bilinear_circuits.command_line.values import why_no_name

RESULT_FILES = ("result.json", "result.safetensors")  # of `utilities.saving.save_result`

# Options that name what a verb reads.
_READ = {"model": "the model", "models": "a model", "saes": "the dictionaries", "folder": "the dictionaries"}


def check_apart(arguments: Any, out: Path) -> None:
    """Refuse results in the folder of the model or of a dictionary they are made of: they would make it another.

    Args:
        arguments: Arguments of a verb.
        out: The folder it writes.

    Raises:
        ValueError: If it is one of them.
    """
    if why_no_name(str(out)):
        return  # which is said where it is made
    read = {option: getattr(arguments, option, None) for option in _READ}
    if hasattr(arguments, "saes") and read["saes"] is None:
        read["saes"] = read["model"]  # those shipped with it
    for option, given in read.items():
        for name in given if isinstance(given, list) else [given]:
            if name is None:
                continue
            of_dictionaries = option in ("saes", "folder")
            shipped = zoo.FOLDER / (f"{name}-saes" if of_dictionaries else name)
            folder = shipped if name in zoo.names() else Path(name)
            own = [folder, *(folder.glob("blocks.*") if of_dictionaries else ())]
            if folder.is_dir() and any(one.resolve() == out.resolve() for one in own):
                raise ValueError(f"out must be another folder than {_READ[option]}, got {out} for both.")


@dataclass(frozen=True)
class Outputs:
    """The files of a verb's result.

    Attributes:
        record: The JSON file by which an earlier result of the verb is known.
        kind: Its `kind`.
        others: The files beside it.
    """

    record: str
    kind: str
    others: tuple[str, ...] = ()

    def check(self, out: Path, folders: Sequence[str] = ()) -> None:
        """Refuse a folder where this result would take the place of files that are not one of its kind.

        Args:
            out: The folder; other files in it are left alone.
            folders: Folders written within it.

        Raises:
            ValueError: If one of the files is there without an earlier result.
        """
        there = [name for name in (self.record, *self.others, *folders) if (out / name).exists()]
        if there and self._kind_of(out / self.record) != self.kind:
            raise ValueError(
                f"out must be a folder without files of the same names, or with an earlier {self.kind} to replace, got"
                f" {out}, which holds another {there[0]}. Name another --out."
            )

    def listed(self, out: str | Path) -> str:
        """List the files in a folder as text, one on each line."""
        return "\n".join(f"  {Path(out) / name}" for name in (self.record, *self.others))

    @staticmethod
    def _kind_of(record: Path) -> str | None:
        with contextlib.suppress(OSError, ValueError, RecursionError):
            content = json.loads(record.read_text(encoding="utf-8"))
            return content.get("kind") if isinstance(content, dict) else None
        return None
