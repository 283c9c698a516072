"""How results show themselves: one line each, and in notebooks as `report.notebook` decides, further out.

An analysis must not import a report. So the classes here name it only by a text, and load it when a notebook asks.
"""

import dataclasses
import importlib
import reprlib
from collections.abc import Collection
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pandas import DataFrame

_BACKEND = "bilinear_circuits.report.notebook"


class Brief:
    """A dataclass of tensors that is one short line as text: sizes in place of numbers."""

    __slots__ = ()

    def __repr__(self) -> str:
        values = {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}  # type: ignore[arg-type]
        return f"{type(self).__name__}({', '.join(f'{name}={_brief(value)}' for name, value in values.items())})"


def _brief(value: Any) -> str:
    """A value in a few characters, on one line."""
    if hasattr(value, "dtype") and hasattr(value, "shape"):  # a tensor or an array; nothing heavy is imported to ask
        return f"{str(value.dtype).removeprefix('torch.')}[{' x '.join(map(str, value.shape))}]"
    if isinstance(value, float):
        return f"{value:.4g}"
    if dataclasses.is_dataclass(value):
        return type(value).__name__
    if isinstance(value, Collection) and not isinstance(value, str):
        return f"{type(value).__name__}[{len(value)}]"
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
