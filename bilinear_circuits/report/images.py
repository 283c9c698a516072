"""Figures as PNG and SVG files, from the same descriptions as pages and notebooks.

Plotly draws them in a headless browser (kaleido). Nothing is loaded from a network: plotly's JavaScript is installed,
and MathJax, which kaleido would fetch, is left out.
"""

import importlib.util
import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from bilinear_circuits.report.figures import Spec

FORMATS = ("png", "svg")
_INK, _WIDTH, _PIXELS_PER_POINT = "#303030", 900, 2
_PAGE = {"paper_bgcolor": "#ffffff", "plot_bgcolor": "#ffffff"}


def check_images(formats: Sequence[str] = FORMATS) -> None:
    """Refuse what cannot be written, before any work is done.

    Raises:
        ValueError: If a format is unknown, or kaleido is not installed.
        FileNotFoundError: If there is no browser.
    """
    _check_formats(formats)
    if not formats:
        return
    if importlib.util.find_spec("kaleido") is None:
        raise ValueError("images need kaleido, which is not installed: pip install 'bilinear-circuits[images]'.")
    from choreographer.browsers import Chromium

    browser = Chromium.find_browser(skip_local=False)
    if not browser or not Path(browser).is_file():
        found = f"{browser}, which is no file" if browser else "none"
        raise FileNotFoundError(
            f"images need a Chrome or Chromium browser, got {found}. Install one, or name it in BROWSER_PATH."
        )


def write_images(figures: Mapping[str, Spec], folder: str | Path, formats: Sequence[str] = FORMATS) -> list[Path]:
    """Write every figure in every format, on a white page, in one start of the browser.

    Args:
        figures: Descriptions by name, as `feature_figures`, `search_figures` and `figures_of` give them.
        folder: Where NAME.png and NAME.svg go; made if needed. Files appear there once all are drawn.
        formats: "png" (two pixels to a point), "svg".

    Returns:
        The files, figure by figure.

    Raises:
        ValueError: If a format is unknown, a name is no file name, kaleido is not installed, or a figure cannot be
            drawn.
        FileNotFoundError: If there is no browser.
        OSError: If the browser does not start.
    """
    _check_formats(formats)
    target = Path(folder)
    for name in figures:
        if not re.fullmatch(r"\w[\w.-]*", name):
            raise ValueError(f"figures must have names of letters, digits, dots and dashes, got {name!r}.")
    files = {f"{name}.{kind}": on_white(spec) for name, spec in figures.items() for kind in formats}
    if not files:
        return []
    check_images(formats)
    target.mkdir(parents=True, exist_ok=True)
    hidden = {name: target / f".{name}" for name in files}
    try:
        _draw([_order(spec, hidden[name], Path(name).suffix[1:]) for name, spec in files.items()])
        for name, temporary in hidden.items():
            os.replace(temporary, target / name)
    finally:
        for temporary in hidden.values():
            temporary.unlink(missing_ok=True)
    return [target / name for name in files]


def _check_formats(formats: Sequence[str]) -> None:
    if unknown := [one for one in formats if one not in FORMATS]:
        raise ValueError(f"images must be among {', '.join(FORMATS)}, got {', '.join(unknown)}.")


def on_white(spec: Spec) -> Spec:
    """A figure for paper: a white page and dark text; what the page around it would set otherwise."""
    layout = spec["layout"]
    font = {**layout.get("font", {}), "color": _INK}
    return {**spec, "layout": {**layout, **_PAGE, "font": font}}


def _order(spec: Spec, path: Path, kind: str) -> dict[str, Any]:
    """One image as kaleido takes it."""
    size = {"width": _WIDTH, "height": spec["layout"].get("height", 480), "scale": _PIXELS_PER_POINT}
    return {"fig": spec, "path": path, "opts": {"format": kind, **size}}


def _draw(orders: Sequence[dict[str, Any]]) -> None:
    import kaleido
    from kaleido.errors import BrowserClosedError, BrowserFailedError, JavascriptError, KaleidoError

    try:
        kaleido.write_fig_from_object_sync(list(orders), kopts={"mathjax": False}, cancel_on_error=True)
    except (BrowserFailedError, BrowserClosedError) as error:
        raise OSError(f"the browser that draws images must start, got {error}") from error
    except (KaleidoError, JavascriptError) as error:
        raise ValueError(f"figures must be ones that plotly can draw, got {error}") from error
