"""How results show themselves in notebooks. What they look like is decided further out, in `report.notebook`.

An analysis must not import a report. So the classes here name it only by a text, and load it when a notebook asks.
"""

import importlib
from typing import Any

_BACKEND = "bilinear_circuits.report.notebook"


class Shown:
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
