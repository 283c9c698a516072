"""A feature as a page: records in, HTML out."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch

from bilinear_circuits.interactions.activity import Side
from bilinear_circuits.interactions.profiles import FeatureProfile
from bilinear_circuits.report.figures import Spec
from bilinear_circuits.report.html import render
from bilinear_circuits.report.text import number
from sae.report.figures import activation_histogram, form_figures
from sae.report.results import FeatureSummary, InputReading, InputUse, OutputReading, Pair

SIDE_NAMES = {"in": "input", "out": "output"}
_PACKAGES = ("sae.report",)
_TO_ROOT = "../../"


def side_folder(layer: int, side: Side) -> str:
    """Folder of one dictionary within a report."""
    return f"layer-{layer}-{side}"


@dataclass(frozen=True)
class DictionaryReport:
    """What all pages of one dictionary share.

    Attributes:
        layer: Layer of the MLP.
        side: Input or output dictionary.
        features: Features that have a page, in rising order.
        labels: Names of all features of this dictionary.
        other_labels: Names of all features of the dictionary on the other side.
        other_features: Those of them that have a page in the same report.
        source: Model and corpus in a few words.
        fit: What the layer is where it is a fit to another, and what it recovers; else empty.
    """

    layer: int
    side: Side
    features: tuple[int, ...]
    labels: tuple[str, ...]
    other_labels: tuple[str, ...]
    other_features: frozenset[int]
    source: str
    fit: str = ""

    @property
    def other_side(self) -> Side:
        """The other one of the two."""
        return "in" if self.side == "out" else "out"

    def own(self, feature: int) -> dict[str, Any]:
        """A feature of this dictionary as a link."""
        here = feature in self._with_page
        return {"feature": feature, "label": self.labels[feature], "href": f"{feature}.html" if here else None}

    def other(self, feature: int) -> dict[str, Any]:
        """A feature of the other dictionary as a link."""
        href = f"{_TO_ROOT}{side_folder(self.layer, self.other_side)}/features/{feature}.html"
        linked = href if feature in self.other_features else None
        return {"feature": feature, "label": self.other_labels[feature], "href": linked}

    @cached_property
    def _with_page(self) -> frozenset[int]:
        return frozenset(self.features)


def feature_page(shared: DictionaryReport, summary: FeatureSummary, reading: OutputReading | InputReading) -> str:
    """One feature as a page.

    Args:
        shared: Its dictionary.
        summary: What is said of any feature.
        reading: What it computes, or is used for.
    """
    place = shared.features.index(summary.feature)
    around = {"previous": place - 1, "next": place + 1}
    figures: dict[str, Spec] = {}
    if summary.n_active:
        figures["histogram"] = activation_histogram(summary.histogram)
    context: dict[str, Any] = {"output": None, "uses": None}
    if isinstance(reading, OutputReading):
        context["output"] = _output(shared, reading)
        if reading.profile is not None:
            figures |= form_figures(reading.profile)
    else:
        context["uses"] = {
            "by_activity": [_use(shared, one) for one in reading.by_activity],
            "by_weight": [_use(shared, one) for one in reading.by_weight],
        }
    return render(
        "dictionary_feature.html.j2",
        figures=figures,
        scripts=("dictionary_feature.js",),
        plotly="asset" if figures else None,
        asset_root=_TO_ROOT,
        packages=_PACKAGES,
        shared=shared,
        side_name=SIDE_NAMES[shared.side],
        summary=summary,
        near=[{**shared.own(one), "cosine": cosine} for one, cosine in summary.neighbours],
        around={
            name: shared.own(shared.features[at]) if 0 <= at < len(shared.features) else None
            for name, at in around.items()
        },
        histogram_text=_histogram_text(summary),
        **context,
    )


def _output(shared: DictionaryReport, reading: OutputReading) -> dict[str, Any]:
    shown: dict[str, Any] = {
        "by_weight": [_pair(shared, one) for one in reading.by_weight],
        "by_activity": [_pair(shared, one) for one in reading.by_activity],
        "profile": None,
    }
    return shown if reading.profile is None else shown | _form(shared, reading.profile, reading.outlier)


def _form(shared: DictionaryReport, profile: FeatureProfile, outlier: float | None) -> dict[str, Any]:
    spectrum = profile.spectrum
    members = torch.cat([profile.shape.first, profile.shape.second]).tolist()
    named = [
        {**shared.other(member), "usage": usage}
        for member, usage in zip(members, profile.shape.usage.tolist(), strict=True)
    ]  # fmt: skip
    n_first = len(profile.shape.first)
    eigenvectors = [
        {"value": value, "members": [{**shared.other(one), "projection": at} for one, _, at in column]}
        for value, column in zip(spectrum.eigenvalues[:2].tolist(), profile.eigenvector_labels, strict=False)
    ]
    return {
        "profile": profile,
        "outlier": outlier,
        "groups": (named[:n_first], named[n_first:]),
        "eigenvectors": eigenvectors,
        "n_outliers": int(spectrum.outliers()),
        "edge": spectrum.semicircle_edge().item(),
        "effective_rank": spectrum.effective_rank().item(),
        "eigenvalues": spectrum.eigenvalues[:8].tolist(),
    }


def _pair(shared: DictionaryReport, pair: Pair) -> dict[str, Any]:
    members = [shared.other(one) for one in dict.fromkeys((pair.first, pair.second))]
    return {"members": members, "weight": pair.weight, "added": pair.added}


def _use(shared: DictionaryReport, use: InputUse) -> dict[str, Any]:
    return {
        "output": shared.other(use.output),
        "partner": shared.own(use.partner),
        "weight": use.weight,
        "added": use.added,
    }


def _histogram_text(summary: FeatureSummary) -> str:
    """The histogram in words."""
    least = min((band.least for band in summary.bands), default=summary.histogram.low)
    most = max((band.most for band in summary.bands), default=summary.histogram.high)
    between = f"between {number(least)} and {number(most)}"
    return f"Histogram of {number(summary.n_active)} activations {between}, mean {number(summary.mean)}"


def front_page(sides: Sequence[Mapping[str, Any]]) -> str:
    """The first page of a report: the dictionaries in it.

    Args:
        sides: Of each: href, title, and a sentence.
    """
    return render("dictionary_front.html.j2", plotly=None, packages=_PACKAGES, sides=sides)
