"""The circuit explorer: one page on which circuits are looked at from all sides, and followed through prompts."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from bilinear_circuits.interactions.neighbourhood import Neighbourhood
from bilinear_circuits.interactions.profiles import FeatureProfile
from bilinear_circuits.report import columns
from bilinear_circuits.report.html import render
from bilinear_circuits.report.payload import plain

SCHEMA_VERSION = 1
KIND = "circuit explorer"
MAX_BYTES = 5_000_000
SCRIPTS = (
    "explorer_base.js",
    "explorer_svg.js",
    "explorer_matrix.js",
    "explorer_network.js",
    "explorer_plane.js",
    "explorer_ledger.js",
    "explorer_prompt.js",
    "explorer.js",
)
ORDERS = ("cluster", "group", "usage", "name", "v1", "v2")
_N_EIGENVALUES = 16
_FAR, _NEAR = 300, 600  # features of the cloud: the outermost, and an even sample of the others


def explorer_document(
    profiles: Sequence[FeatureProfile],
    neighbourhoods: Sequence[Neighbourhood],
    prompts: Sequence[Mapping[str, Any]],
    provenance: Mapping[str, Any],
    proofs: Mapping[str, Mapping[str, Any]] | None = None,
) -> dict[str, Any]:
    """All that the explorer shows, as a JSON document.

    Args:
        profiles: The output features, each once.
        neighbourhoods: Their input features, in the same order.
        prompts: Prompts as `report.prompts.prompt_payload` gives them, each with "source", where it comes from.
        provenance: What it was computed with. Kept as it is.
        proofs: By name of the feature (4/143): what removing it did, as `commands.circuit_file.read_proofs` reads it.

    Raises:
        ValueError: If there is no circuit, one comes twice, or a neighbourhood is of another feature.
    """
    names = [one.name for one in profiles]
    if not names or len(set(names)) < len(names):
        raise ValueError(f"profiles must be of one circuit or more, each once, got {', '.join(names) or 'none'}.")
    if [neighbourhood.name for neighbourhood in neighbourhoods] != names:
        raise ValueError(
            f"neighbourhoods must be of the circuits {', '.join(names)}, got"
            f" {', '.join(neighbourhood.name for neighbourhood in neighbourhoods) or 'none'}."
        )
    circuits = [
        _circuit(profile, neighbourhood, (proofs or {}).get(name))
        for name, profile, neighbourhood in zip(names, profiles, neighbourhoods, strict=True)
    ]
    document = {
        "schema_version": SCHEMA_VERSION,
        "kind": KIND,
        "provenance": provenance,
        "circuits": circuits,
        "prompts": list(prompts),
        "terms": columns.TERMS,
    }
    return plain(document)


def explorer_page(document: Mapping[str, Any], live: bool = False) -> str:
    """The document as one self-contained page.

    Args:
        document: As `explorer_document` makes it.
        live: Whether the page is served by `bilinear-circuits serve`, which answers texts of the reader's own.

    Raises:
        ValueError: If the page would be larger than 5 MB.
    """
    shown = {name: value for name, value in document.items() if name != "provenance"}
    page = render(
        "explorer.html.j2",
        data={"explorer-data": {**shown, "live": live}},
        scripts=SCRIPTS,
        plotly=None,
        live=live,
        document=document,
        orders=ORDERS,
        serving=live,
    )
    size = len(page.encode())
    if size > MAX_BYTES:
        raise ValueError(
            f"the explorer must stay below {MAX_BYTES / 1e6:.0f} MB, got {size / 1e6:.1f} MB for"
            f" {len(document['circuits'])} circuits and {len(document['prompts'])} prompts. Ask for fewer of either."
        )
    return page


def _circuit(profile: FeatureProfile, around: Neighbourhood, proof: Mapping[str, Any] | None) -> dict[str, Any]:
    return {
        "name": profile.name,
        "layer": profile.layer,
        "feature": profile.feature,
        "label": profile.label,
        "summary": _summary(profile, around),
        "proof": proof,
        "members": _members(around),
        "orders": orders(around),
        "weights": around.weights,
        "everywhere": around.everywhere,
        "active": around.active,
        "cloud": _cloud(profile.projections, around.members),
    }


def _summary(profile: FeatureProfile, around: Neighbourhood) -> dict[str, Any]:
    spectrum = profile.spectrum
    return {
        "frequency": profile.frequency,
        "rank2_correlation": profile.rank2_correlation,
        "completeness": profile.completeness,
        "and_shape": profile.shape.score,
        "effective_rank": spectrum.effective_rank(),
        "outliers": spectrum.outliers(),
        "eigenvalues": spectrum.eigenvalues[:_N_EIGENVALUES],
        "semicircle_edge": spectrum.semicircle_edge(),
        "top_tokens": profile.top_tokens,
        "promoted": profile.promoted,
        "suppressed": profile.suppressed,
        # How much of the mean contribution of pairs the page accounts for.
        "pairs_shown": (around.weights * around.active).sum(),
        "pairs_mean": profile.terms["feature_feature"],
    }


def _members(around: Neighbourhood) -> list[dict[str, Any]]:
    return [
        {
            "feature": around.members[index],
            "label": label,
            "group": around.group[index],
            "side": around.side[index],
            "cluster": around.clusters.cluster[index],
            "usage": around.usage[index],
            "projection": around.projections[index],
        }
        for index, label in enumerate(around.labels)
    ]


def orders(around: Neighbourhood) -> dict[str, list[int]]:
    """Ways to order the members, by name of the order: places in `members`, first to last."""
    n = len(around.members)
    across = around.projections[:, -1].tolist()
    keys: dict[str, Any] = {
        "group": lambda index: (around.group[index].item() % 3, index),  # -1, of neither group, comes last
        "usage": lambda index: -around.usage[index].item(),
        "name": lambda index: (around.labels[index].casefold(), index),
        "v1": lambda index: -around.projections[index, 0].item(),
        "v2": lambda index: -across[index],
    }
    by_key = {name: sorted(range(n), key=key) for name, key in keys.items()}
    return {"cluster": around.clusters.order.tolist(), **by_key}


def _cloud(projections: Tensor, members: Tensor) -> list[tuple[float, float, int]]:
    """Points (v1, v2, feature) of input features that are no members: the outermost, and a sample of the others."""
    others = torch.ones(len(projections), dtype=torch.bool)
    others[members.cpu()] = False
    features = others.nonzero().squeeze(1)
    features = features[projections.cpu()[features].norm(dim=1).argsort(descending=True, stable=True)]
    inner = features[_FAR:]
    step = torch.linspace(0, max(0, len(inner) - 1), min(len(inner), _NEAR)).long()
    chosen = torch.cat([features[:_FAR], inner[step]])
    points = projections.cpu()[chosen]
    return [
        (float(f"{x:.4g}"), float(f"{y:.4g}"), feature)
        for (x, y), feature in zip(points[:, [0, -1]].tolist(), chosen.tolist(), strict=True)
    ]
