"""How results show themselves: one line each, and in notebooks as `report.notebook` decides, further out.

An analysis must not import a report. So the classes here name it only by a text, and load it when a notebook asks.
"""

import dataclasses
import importlib
import reprlib
from collections.abc import Collection, Mapping
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

if TYPE_CHECKING:
    from pandas import DataFrame

_BACKEND = "bilinear_circuits.report.notebook"
_SAVING = "bilinear_circuits.utilities.saving"  # loads torch
_N_NAMES = 4
R = TypeVar("R", bound="Result")


class Brief:
    """A dataclass of tensors that is one short line as text: sizes in place of numbers; its own name first."""

    __slots__ = ()

    def __repr__(self) -> str:
        shown = [field.name for field in dataclasses.fields(self) if field.repr]  # type: ignore[arg-type]
        values = [f"{name}={_brief(getattr(self, name))}" for name in shown]
        if "name" not in shown and (name := _name(self)):
            values = [name, *values]
        return f"{type(self).__name__}({', '.join(values)})"


def _name(value: Any) -> str | None:
    """The name of something that has one, such as 4/143 of a circuit, on one line."""
    name = getattr(value, "name", None)
    return repr(name)[1:-1] if isinstance(name, str) else None


def _brief(value: Any) -> str:
    """A value in a few characters, on one line."""
    if hasattr(value, "dtype") and hasattr(value, "shape"):  # a tensor or an array; nothing heavy is imported to ask
        return f"{str(value.dtype).removeprefix('torch.')}[{' x '.join(map(str, value.shape))}]"
    if isinstance(value, float):
        return f"{value:.4g}"
    if dataclasses.is_dataclass(value):
        return f"{type(value).__name__} {name}" if (name := _name(value)) else type(value).__name__
    if isinstance(value, Collection) and not isinstance(value, str):
        names = [name for one in islice(value, _N_NAMES) if dataclasses.is_dataclass(one) and (name := _name(one))]
        more = ", ..." if len(value) > len(names) else ""
        return f"{type(value).__name__}[{len(value)}{': ' + ', '.join(names) + more if names else ''}]"
    return " ".join(reprlib.repr(value).split())


class Shown(Brief):
    """A result that a notebook shows as a small table."""

    __slots__ = ()

    def _repr_html_(self) -> str:
        return importlib.import_module(_BACKEND).html_of(self)


class Drawn(Shown):
    """A result that can be drawn, too."""

    __slots__ = ()

    def plot(self, kind: str | None = None) -> Any:
        """Draw the result.

        Args:
            kind: Which of its figures, where there are several; the first by default.

        Returns:
            A `plotly.graph_objects.Figure`, made of the same description as the report's.

        Raises:
            ValueError: If there is no such figure, or nothing to draw.
        """
        return importlib.import_module(_BACKEND).figure_of(self, kind)


class Tabled:
    """A result that is a table."""

    __slots__ = ()

    def to_pandas(self) -> "DataFrame":
        """Make a pandas frame of the result, one row for each feature or interaction, in its order."""
        return importlib.import_module(_BACKEND).frame_of(self)


class Result(Drawn, Tabled):
    """What an analysis found as a whole: a table and figures in notebooks, a frame, and files."""

    __slots__ = ()

    def save(self, folder: str | Path, provenance: Mapping[str, Any] | None = None) -> None:
        """Write result.json and result.safetensors, equal in every number when read again.

        Args:
            folder: Where; made if needed.
            provenance: What it takes to repeat it, such as `Workspace.provenance`: kept as it is.
        """
        importlib.import_module(_SAVING).save_result(self, folder, provenance)

    @classmethod
    def load(cls: type[R], folder: str | Path) -> R:
        """Read what `save` wrote.

        Raises:
            FileNotFoundError: If one of the two files is missing.
            ValueError: If they hold something else, or a damaged result.
        """
        result: R = importlib.import_module(_SAVING).load_result(cls, folder)
        return result
