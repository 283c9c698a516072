"""Which table, which columns and which figures belong to a result, by its class."""

from functools import singledispatch
from typing import Any

from markupsafe import Markup

from bilinear_circuits.report.figures import Spec


@singledispatch
def shown(result: Any) -> Markup:
    """The table of a result. Classes register theirs with `shown.register`."""
    raise TypeError(f"result must be of a class with a table, got a {type(result).__name__}.")


@singledispatch
def drawn(result: Any) -> dict[str, Spec]:
    """The figures of a result by name, the one shown first in front. Classes register theirs with `drawn.register`."""
    raise TypeError(f"result must be of a class with figures, got a {type(result).__name__}.")


@singledispatch
def columns_of(result: Any) -> dict[str, list[Any]]:
    """The table of a result as columns, for files and frames. Classes register theirs with `columns_of.register`."""
    raise TypeError(f"result must be of a class with columns, got a {type(result).__name__}.")


def html_of(result: Any) -> str:
    """A result as a fragment of HTML: no scripts, every text escaped, colours of the page around it.

    Raises:
        TypeError: If the class of the result has no table.
    """
    return str(shown(result))


def frame_of(result: Any) -> Any:
    """A result as a pandas frame.

    Raises:
        TypeError: If the class of the result has no columns.
    """
    import pandas

    return pandas.DataFrame(columns_of(result))


def figures_of(result: Any) -> dict[str, Spec]:
    """Every figure of a result by name, as `report.images.write_images` takes them.

    Raises:
        TypeError: If the class of the result has no figures.
        ValueError: If there is nothing to draw.
    """
    return drawn(result)


def figure_of(result: Any, kind: str | None = None) -> Any:
    """One figure of a result as a plotly object.

    Args:
        result: The result.
        kind: Name of the figure; the first by default.

    Raises:
        TypeError: If the class of the result has no figures.
        ValueError: If there is no such figure, or nothing to draw.
    """
    import plotly.graph_objects as go

    figures = figures_of(result)
    if kind is not None and kind not in figures:
        raise ValueError(f"kind must be one of {', '.join(figures)}, got {kind!r}.")
    return go.Figure(figures[next(iter(figures)) if kind is None else kind])
