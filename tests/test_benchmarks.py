"""What the benchmarks measure with: areas and precisions by their definitions, and labels of what was planted."""

import importlib.util
import sys
from pathlib import Path

import pytest
import torch

from bilinear_circuits.discovery import DiscoverySettings, PlantedSettings, discover, plant

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"


def load(name):
    """A benchmark as a module; it is no package."""
    spec = importlib.util.spec_from_file_location(f"benchmark_{name}", BENCHMARKS / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def planted():
    return load("planted")


@pytest.mark.parametrize("seed", range(4))
def test_auc_counts_pairs_in_the_right_order_and_ties_half(planted, seed):
    generator = torch.Generator().manual_seed(seed)
    scores = torch.randint(0, 6, (40,), generator=generator).double()
    labels = (torch.rand(40, generator=generator) < 0.3).double()
    wins = [
        float(p > n) + 0.5 * float(p == n) for p in scores[labels == 1].tolist() for n in scores[labels == 0].tolist()
    ]
    assert planted.auc(scores, labels) == pytest.approx(sum(wins) / len(wins))


def test_average_precision_is_the_mean_precision_at_the_hits(planted):
    scores, labels = torch.tensor([0.9, 0.8, 0.7, 0.6, 0.5]), torch.tensor([1.0, 0, 1, 0, 1])
    assert planted.average_precision(scores, labels) == pytest.approx((1 + 2 / 3 + 3 / 5) / 3)


def test_labels_are_the_edges_of_the_neurons(planted):
    layer = plant(PlantedSettings(d_model=48, circuits=2, noise=0.0, tokens=200))
    labels = planted.edge_labels(layer)
    assert labels.equal(labels.mT)
    named = {one.output: one for one in layer.circuits if one.meets}
    assert set(labels.flatten(1).amax(1).nonzero().flatten().tolist()) == set(named)
    for output, one in named.items():
        sizes = [len(group) for group in one.groups]
        expected = {
            "and": lambda s: 2 * s[0] * s[1],
            "suppression": lambda s: 2 * s[0] * s[1],
            "flip": lambda s: 2 * s[0] * (s[1] + s[2]),
            "contrast": lambda s: s[0] ** 2 + s[1] ** 2,
            "xor": lambda s: (s[0] + s[1]) ** 2,
            "square": lambda s: s[0] ** 2,
        }[one.motif](sizes)
        assert labels[output].sum() == expected


def test_every_ranking_scores_every_edge(planted):
    layer = plant(PlantedSettings(d_model=48, circuits=2, tokens=2000))
    search = discover([layer.interactions], [layer.activity], DiscoverySettings(replicates=1, fdr=0.5))
    scores = planted.edge_scores(layer, search)
    assert set(scores) == set(planted.RANKINGS)
    T = torch.stack([layer.interactions.matrix(f).to_dense() for f in range(layer.interactions.sae_out.d_sae)])
    torch.testing.assert_close(scores["raw weight"], T.abs())
    token, value = layer.activity.outputs[3]
    a, b = 5, 11
    z = {f: torch.zeros(2000).index_put((layer.activity.inputs[f][0],), layer.activity.inputs[f][1]) for f in (a, b)}
    together = (z[a][token] * z[b][token] * value).sum() / 2000
    torch.testing.assert_close(scores["co-activation"][3, a, b], together)
    for one in search.discoveries:
        block = one.blocks[0]
        assert scores["search"][one.feature, block.first[0], block.second[0]] > 1e-5


@pytest.mark.slow
def test_the_benchmark_of_paths_measures_what_it_names():
    from argparse import Namespace

    paths = load("paths")
    model, tokenizer = paths.load("ts-17m")
    asked = Namespace(corpus="ts-17m", prompts=2)
    rows = [row for task in (paths.effects, paths.pairs, paths.pruning) for row in task(model, tokenizer, asked)]
    found = dict(rows)
    assert found["pruned to 90 %, with sources: arg max kept"].endswith("of 2")
    assert found["heads and MLPs: n, r, slope of all"].startswith("84 ")
