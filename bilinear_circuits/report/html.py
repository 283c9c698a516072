"""One self-contained HTML file: text, tables, figures and the code that draws them. It loads nothing from anywhere."""

import base64
import gzip
import hashlib
import json
from collections.abc import Callable, Mapping
from functools import lru_cache
from typing import Any

import plotly.graph_objects as go
from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup
from plotly.offline import get_plotlyjs

from bilinear_circuits.circuits.search import CircuitSearch
from bilinear_circuits.profiles import FeatureProfile
from bilinear_circuits.report import columns, figures, text
from bilinear_circuits.report.payload import profile_payload, search_payload

_FILTERS: tuple[Callable[..., Any], ...] = (
    text.visible, text.visible_label, text.number, text.signed, text.interval, text.largest, text.share, text.flatten,
)  # fmt: skip
_UNSAFE_IN_SCRIPT = {ord(character): f"\\u{ord(character):04x}" for character in "<>&\u2028\u2029"}


def circuits_page(search: CircuitSearch, provenance: Mapping[str, Any]) -> str:
    """The answer to a query as a page: summary and verdicts, causal effects, ranking, one section per circuit.

    Args:
        search: The answer.
        provenance: What it was computed with; shown as a table.
    """
    drawn = {"forest": figures.effect_forest(search.circuits)}
    for circuit in search.circuits:
        drawn |= _feature_figures(circuit.profile)
    return _render("circuits.html.j2", drawn, document=search_payload(search, provenance))


def feature_page(profile: FeatureProfile, provenance: Mapping[str, Any]) -> str:
    """One output feature as a page: what it computes, without the causal part.

    Args:
        profile: The feature.
        provenance: What it was computed with; shown as a table.
    """
    return _render("feature.html.j2", _feature_figures(profile), document=profile_payload(profile, provenance))


def script_json(value: Any) -> Markup:
    """JSON that can stand inside a script element: no character in it can end the element or open a comment."""
    return Markup(json.dumps(value, allow_nan=False, separators=(",", ":")).translate(_UNSAFE_IN_SCRIPT))


@lru_cache
def packed_plotly() -> str:
    """Plotly's own JavaScript, gzip in base64; the same bytes every time."""
    return base64.b64encode(gzip.compress(get_plotlyjs().encode(), mtime=0)).decode()


def _feature_figures(profile: FeatureProfile) -> dict[str, go.Figure]:
    name = f"{profile.layer}-{profile.feature}"
    return {
        f"{name}-heatmap": figures.interaction_heatmap(profile),
        f"{name}-plane": figures.eigenvector_plane(profile),
        f"{name}-spectrum": figures.spectrum_bars(profile),
        f"{name}-scatter": figures.rank2_scatter(profile),
    }


def _render(template: str, drawn: Mapping[str, go.Figure], **context: Any) -> str:
    environment = _environment()
    page_script = environment.get_template("page.js.j2").render()
    return environment.get_template(template).render(
        **context,
        figures={name: script_json(figure.to_plotly_json()) for name, figure in drawn.items()},
        page_script=Markup(page_script),
        plotly_bundle=Markup(packed_plotly()),
        # Only these two scripts may run, should a token ever get past the escaping.
        script_hashes=[_csp_hash(page_script), _csp_hash(get_plotlyjs())],
        columns=columns,
        colours={"positive": figures.POSITIVE, "negative": figures.NEGATIVE, "activation": figures.ACTIVATION},
    )


def _csp_hash(script: str) -> str:
    return "sha256-" + base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()


@lru_cache
def _environment() -> Environment:
    environment = Environment(
        loader=PackageLoader("bilinear_circuits.report", "templates"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    for function in _FILTERS:
        environment.filters[function.__name__] = function
    return environment
