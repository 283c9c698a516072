"""What the motif search finds of circuits that were planted, and how other rankings do.

    python benchmarks/planted.py --out out/planted

Layers with known circuits (and, flip, xor, contrast, square, suppression) and decoys (pairs that never meet, random
forms) are compiled at several degrees of superposition and noise. For the search: recall, the share of false
discoveries, and whether the groups are right. For each ranking the area under the ROC curve, of output features (with
a circuit or not) and of single edges (planted or not): raw weight |T_ab|, co-activation E[z_a z_b z_f], gradient
attribution |z_a dp/dz_a| |z_b dp/dz_b|, and the search.
"""

import argparse
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import mean
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from bilinear_circuits.discovery import (
    DiscoverySearch,
    DiscoverySettings,
    PlantedCircuit,
    PlantedLayer,
    PlantedSettings,
    discover,
    plant,
)

RANKINGS = ("search", "raw weight", "co-activation", "gradient attribution")
BASE = {"features": 2.0, "noise": 0.5, "d_model": 128}
SERIES: dict[str, Sequence[float]] = {
    "noise": (0.0, 0.5, 1.0, 2.0, 4.0),
    "features": (1.0, 2.0, 4.0),
    "d_model": (64, 128),
}


def found_of(planted: PlantedLayer, search: DiscoverySearch) -> dict[str, float]:
    """Recall, false discoveries and right groups of a search."""
    truth = {one.output: one for one in planted.circuits if one.meets}
    right = [one for one in search.discoveries if (c := truth.get(one.feature)) is not None and c.motif == one.motif]
    n_found = len(search.discoveries)
    return {
        "recall": len(right) / len(truth),
        "false": (n_found - len(right)) / max(1, n_found),
        "n_found": n_found,
        "groups": mean([_overlap(truth[one.feature], one.blocks) for one in right] or [0.0]),
    }


def _overlap(circuit: PlantedCircuit, blocks: Sequence[Any]) -> float:
    """Jaccard index of the input features planted and found."""
    planted = {feature for group in circuit.groups for feature in group}
    found = {feature for block in blocks for feature in (*block.first, *block.second)}
    return len(planted & found) / len(planted | found)


def edge_labels(planted: PlantedLayer) -> Float[Tensor, "output first second"]:
    """1 for planted edges, symmetric. Pairs that never meet are none."""
    n = planted.interactions.sae_in.d_sae
    labels = torch.zeros(planted.interactions.sae_out.d_sae, n, n)
    for one in planted.circuits:
        if not one.meets:
            continue
        first, *others = [torch.tensor(group) for group in one.groups]
        if one.motif in ("and", "suppression", "flip"):
            blocks = [(first, other) for other in others]
        else:
            sides = [first, *others]
            blocks = [(side, side) for side in sides] + ([(first, others[0])] if one.motif == "xor" else [])
        for rows, columns in blocks:
            labels[one.output, rows[:, None], columns] = 1
            labels[one.output, columns[:, None], rows] = 1
    return labels


def edge_scores(planted: PlantedLayer, search: DiscoverySearch) -> dict[str, Float[Tensor, "output first second"]]:
    """Every ranking of every edge."""
    interactions, activity = planted.interactions, planted.activity
    n, n_tokens = interactions.sae_in.d_sae, len(activity.x)
    T = torch.stack([interactions.matrix(f).to_dense() for f in range(interactions.sae_out.d_sae)])
    z = torch.zeros(n_tokens, n)
    for feature in range(n):
        token, value = activity.inputs[feature]
        z[token, feature] = value
    together, attribution = torch.zeros_like(T), torch.zeros_like(T)
    for feature in range(len(T)):
        token, value = activity.outputs[feature]
        mine = z[token]
        together[feature] = (mine * value[:, None]).T @ mine / n_tokens
        gradient = (mine * (2 * mine @ T[feature])).abs().mean(0)
        attribution[feature] = torch.outer(gradient, gradient)
    motif = torch.zeros_like(T)
    for one in search.discoveries:
        for block in one.blocks:
            mass = torch.outer(torch.tensor(block.first_weights), torch.tensor(block.second_weights)) * one.score
            rows, columns = torch.tensor(block.first)[:, None], torch.tensor(block.second)
            motif[one.feature, rows, columns] = torch.maximum(motif[one.feature, rows, columns], mass)
    motif = torch.maximum(motif, motif.mT)
    # Where the search says nothing, the raw weight decides, far below everything it found.
    motif += 1e-6 * T.abs() / T.abs().max()
    return {"search": motif, "raw weight": T.abs(), "co-activation": together, "gradient attribution": attribution}


def auc(scores: Float[Tensor, " n"], labels: Float[Tensor, " n"]) -> float:
    """Area under the ROC curve, ties counted half (Mann and Whitney)."""
    _, inverse, counts = scores.double().unique(return_inverse=True, return_counts=True)
    rank = (counts.cumsum(0) - (counts - 1) / 2).double()[inverse]
    positive = labels.bool()
    n_positive, n_negative = int(positive.sum()), int((~positive).sum())
    return ((rank[positive].sum() - n_positive * (n_positive + 1) / 2) / (n_positive * n_negative)).item()


def average_precision(scores: Float[Tensor, " n"], labels: Float[Tensor, " n"]) -> float:
    """Mean precision at the positives, from the highest score down."""
    hits = labels[scores.argsort(descending=True)].double()
    precision = hits.cumsum(0) / torch.arange(1, len(hits) + 1)
    return ((precision * hits).sum() / hits.sum()).item()


def measure(settings: PlantedSettings, replicates: int) -> dict[str, Any]:
    """One layer: what the search finds, and every ranking."""
    planted = plant(settings)
    search = discover([planted.interactions], [planted.activity], DiscoverySettings(replicates=replicates))
    row: dict[str, Any] = found_of(planted, search)
    labels, scores = edge_labels(planted), edge_scores(planted, search)
    upper = torch.triu_indices(labels.shape[1], labels.shape[1])
    holds = labels.flatten(1).amax(1)
    for name, score in scores.items():
        flat = score[:, upper[0], upper[1]].flatten()
        edges = labels[:, upper[0], upper[1]].flatten()
        row[f"edges: {name}"] = auc(flat, edges)
        row[f"edge precision: {name}"] = average_precision(flat, edges)
        row[f"outputs: {name}"] = auc(score.flatten(1).amax(1), holds)
    return row


def table(rows: Sequence[Mapping[str, Any]]) -> str:
    """All settings as a markdown table."""
    lines = [
        "| features / d_model | noise | d_model | recall | false discoveries | groups (Jaccard) |"
        + "".join(f" {name} |" for name in RANKINGS),
        "| --- " * (6 + len(RANKINGS)) + "|",
    ]
    for row in rows:
        areas = [
            f"{row[f'outputs: {n}']:.3f} / {row[f'edges: {n}']:.3f} / {row[f'edge precision: {n}']:.2f}"
            for n in RANKINGS
        ]
        sizes = " | ".join(f"{row[key]:g}" for key in ("features", "noise", "d_model"))
        found = f"{row['recall']:.3f} | {100 * row['false']:.1f} % | {row['groups']:.2f}"
        lines.append(f"| {sizes} | {found} | {' | '.join(areas)} |")
    return "\n".join(lines)


def figure(rows: Sequence[Mapping[str, Any]]) -> Any:
    """Recall, false discoveries and edge precision against noise and superposition."""
    from plotly.subplots import make_subplots

    titles = {"noise": "noise (norm over that of a circuit)", "features": "features per dimension"}
    page = make_subplots(1, 2, subplot_titles=list(titles.values()), shared_yaxes=True)
    lines = {"recall": "recall", "false": "false discoveries"} | {
        f"edge precision: {n}": f"edge precision, {n}" for n in RANKINGS
    }
    colours = ["#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9"]
    for column, key in enumerate(titles, 1):
        chosen = sorted((r for r in rows if all(r[k] == v for k, v in BASE.items() if k != key)), key=lambda r: r[key])
        for colour, (value, name) in zip(colours, lines.items(), strict=True):
            page.add_scatter(
                x=[r[key] for r in chosen], y=[r[value] for r in chosen], name=name, legendgroup=name,
                line={"color": colour}, showlegend=column == 1, row=1, col=column,
            )  # fmt: skip
    page.update_yaxes(range=[-0.02, 1.02])
    page.update_layout(template="plotly_white", width=1000, height=420, legend={"orientation": "h", "y": -0.2})
    return page


def main() -> None:
    """Measure every setting, print a row for each, write the table and the figure."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("out/planted"))
    parser.add_argument("--seeds", type=int, default=3, help="layers per setting")
    parser.add_argument("--replicates", type=int, default=4, help="draws of each null")
    parser.add_argument("--quick", action="store_true", help="the base setting only")
    arguments = parser.parse_args()
    settings = (
        [BASE] if arguments.quick else [{**BASE, key: value} for key, values in SERIES.items() for value in values]
    )
    rows = []
    for one in {json.dumps(one): one for one in settings}.values():
        # Four circuits of each motif fit the smallest layer.
        sizes = {"d_model": int(one["d_model"]), "circuits": 4 if one["d_model"] * one["features"] < 256 else 8}
        measured = [
            measure(
                PlantedSettings(features=one["features"], noise=one["noise"], seed=seed, **sizes), arguments.replicates
            )
            for seed in range(arguments.seeds)
        ]
        rows.append({**one, **{key: mean(m[key] for m in measured) for key in measured[0]}, "layers": len(measured)})
        print(table(rows[-1:]).splitlines()[-1], flush=True)
    arguments.out.mkdir(parents=True, exist_ok=True)
    (arguments.out / "planted.json").write_text(json.dumps(rows, indent=1) + "\n")
    (arguments.out / "planted.md").write_text(table(rows) + "\n")
    figure(rows).write_html(arguments.out / "planted.html", include_plotlyjs=True)
    print(f"written: {arguments.out}/planted.md, planted.json, planted.html")


if __name__ == "__main__":
    main()
