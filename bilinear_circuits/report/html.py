"""Pages: text, tables, figures and the code that draws them. A page loads nothing from any network.

Most pages are one self-contained file, with plotly packed into it. The pages of a large report share one plotly.min.js
beside them instead (`plotly_asset`).
"""

import base64
import gzip
import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from functools import lru_cache
from importlib.resources import files
from typing import Any, Literal

from jinja2 import ChoiceLoader, Environment, PackageLoader, StrictUndefined
from markupsafe import Markup
from plotly.offline import get_plotlyjs

from bilinear_circuits.circuits.search import CircuitSearch
from bilinear_circuits.interactions.profiles import FeatureProfile
from bilinear_circuits.report import columns, figures, text
from bilinear_circuits.report.figures import Spec
from bilinear_circuits.report.glossary import GLOSSARY
from bilinear_circuits.report.payload import profile_payload, search_payload

PLOTLY_ASSET = "plotly.min.js"
_OWN = "bilinear_circuits.report"
_FILTERS: tuple[Callable[..., Any], ...] = (
    text.visible, text.visible_label, text.number, text.signed, text.interval, text.largest, text.share, text.flatten,
)  # fmt: skip
_WORDS = (
    "AND shape",
    "Circuit",
    "Completeness",
    "Controls",
    "Form",
    "Outlier",
    "Pole",
    "Rank-2 form",
    "Site",
    "Trigger",
)
_FEATURE_WORDS = ("AND shape", "Completeness", "Form", "Null", "Rank-2 form")
_UNSAFE_IN_SCRIPT = {ord(character): f"\\u{ord(character):04x}" for character in "<>&\u2028\u2029"}


def circuits_page(search: CircuitSearch, provenance: Mapping[str, Any]) -> str:
    """The answer to a query as a page: summary and verdicts, causal effects, ranking, one section per circuit.

    Args:
        search: The answer.
        provenance: What it was computed with; shown as a table.
    """
    document = search_payload(search, provenance)
    drawn = figures.search_figures(search)
    return render("circuits.html.j2", figures=drawn, document=document, links=_links(search), words=_WORDS)


def _links(search: CircuitSearch) -> list[tuple[str, str]]:
    """List the parts of the report of a search: where each is, and what it is called."""
    names = [circuit.evidence.name for circuit in search.circuits]
    return [
        *(("summary", "Summary"), ("effects", "Effects"), ("cosine", "Decoder cosine"), ("ranking", "Ranking")),
        *((f"circuit-{name.replace('/', '-')}", f"Circuit {name}") for name in names),
        *(("limits", "Limits"), ("provenance", "Provenance"), ("glossary", "Glossary")),
    ]


def feature_page(profile: FeatureProfile, provenance: Mapping[str, Any]) -> str:
    """One output feature as a page: what it computes, without the causal part.

    Args:
        profile: The feature.
        provenance: What it was computed with; shown as a table.
    """
    document = profile_payload(profile, provenance)
    return render("feature.html.j2", figures=figures.feature_figures(profile), document=document, words=_FEATURE_WORDS)


def render(
    template: str,
    *,
    figures: Mapping[str, Spec] | None = None,
    data: Mapping[str, Any] | None = None,
    scripts: Sequence[str] = (),
    plotly: Literal["inline", "asset"] | None = "inline",
    asset_root: str = "",
    live: bool = False,
    packages: Sequence[str] = (),
    **context: Any,
) -> str:
    """A template that extends page.html.j2, filled.

    Args:
        template: Its name.
        figures: By name; page.js draws each where the template has `parts.plot(name, ...)`.
        data: JSON values that scripts read with `page.data(name)`.
        scripts: Further scripts of the templates folders, run in this order after page.js; no Jinja inside.
        plotly: Whether plotly is packed into the page, loaded from a file beside it, or not needed.
        asset_root: Where that file lies, seen from the page: "" or "../".
        live: Allow requests to the server the page came from.
        packages: Packages with templates of their own, looked up before those of this one.
        context: What the template reads.
    """
    loaded = [_source(name, tuple(packages)) for name in ("page.js", *scripts)]
    return _environment(tuple(packages)).get_template(template).render(
        **context,
        blocks={
            **{f"figure-{name}": script_json(spec) for name, spec in (figures or {}).items()},
            **{name: script_json(value) for name, value in (data or {}).items()},
        },
        scripts=[Markup(script) for script in loaded],
        plotly_bundle=Markup(packed_plotly()) if plotly == "inline" else None,
        plotly_asset=asset_root + PLOTLY_ASSET if plotly == "asset" else None,
        policy=Markup(_policy(loaded, plotly, live)),  # quotes, and hashes in base64
        columns=columns,
        colours=_COLOURS,
        definitions=GLOSSARY,
    )  # fmt: skip


def script_json(value: Any) -> Markup:
    """JSON that can stand inside a script element: no character in it can end the element or open a comment."""
    return Markup(json.dumps(value, allow_nan=False, separators=(",", ":")).translate(_UNSAFE_IN_SCRIPT))


@lru_cache
def plotly_asset() -> str:
    """Plotly's own JavaScript, to be written as `PLOTLY_ASSET` where many pages share it."""
    return str(get_plotlyjs())


@lru_cache
def packed_plotly() -> str:
    """Pack Plotly as gzip in base64, into equal bytes every time."""
    return base64.b64encode(gzip.compress(plotly_asset().encode(), mtime=0)).decode()


_COLOURS = {"positive": figures.POSITIVE, "negative": figures.NEGATIVE, "activation": figures.ACTIVATION}


def _policy(scripts: Sequence[str], plotly: str | None, live: bool) -> str:
    """Content security policy: only these scripts may run, should a token ever get past the escaping."""
    allowed = [f"'{_hash(script)}'" for script in scripts]
    if plotly == "inline":
        allowed.append(f"'{_plotly_hash()}'")
    if plotly == "asset":
        allowed += ["'self'", "file:"]
    connect = "; connect-src 'self'" if live else ""
    # Plotly writes style elements and draws images of its own from data.
    return (
        f"default-src 'none'; style-src 'unsafe-inline'; img-src data: blob:; script-src {' '.join(allowed)}{connect}"
        "; base-uri 'none'; form-action 'none'"
    )


def _hash(script: str) -> str:
    return "sha256-" + base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()


@lru_cache
def _plotly_hash() -> str:
    return _hash(plotly_asset())


@lru_cache
def _source(name: str, packages: tuple[str, ...]) -> str:
    """A script as it stands in the templates folder of the first package that has it."""
    for package in (*packages, _OWN):
        file = files(package) / "templates" / name
        if file.is_file():
            return file.read_text(encoding="utf-8")
    raise FileNotFoundError(f"scripts must be files of a templates folder, got {name}.")


@lru_cache
def _environment(packages: tuple[str, ...]) -> Environment:
    environment = Environment(
        loader=ChoiceLoader([PackageLoader(package, "templates") for package in (*packages, _OWN)]),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    for function in _FILTERS:
        environment.filters[function.__name__] = function
    return environment
