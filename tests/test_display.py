"""Results as they show themselves outside of notebooks: one line each, and tables as frames; the names under `bc`."""

import dataclasses
import importlib
import pkgutil
import subprocess
import sys
from types import SimpleNamespace

import pytest
import torch
from helpers import D_IN, D_SAE_IN, D_SAE_OUT, randn, random_interactions
from reports import make_discoveries, make_search, modules

PACKAGES = ("bilinear_circuits", "sae")


@pytest.fixture(scope="module")
def bc():
    """The modules under test, imported under the shape-checking hook."""
    from bilinear_circuits.algebra import tensor
    from bilinear_circuits.data.stories import StoryTokens
    from bilinear_circuits.interactions import activity
    from bilinear_circuits.interactions import low_rank as lowrank
    from bilinear_circuits.utilities import display

    return SimpleNamespace(activity=activity, display=display, lowrank=lowrank, tensor=tensor, StoryTokens=StoryTokens)


@pytest.fixture(scope="module")
def results(bc):
    """A result of every kind that needs no model."""
    interactions, *_ = random_interactions()
    x = randn(40, D_IN, seed=3)
    search = make_search(modules())
    return {
        "interactions": interactions,
        "mlp": interactions.mlp,
        "tensor": interactions.mlp.tensor,
        "form": interactions.form(2),
        "dictionary": interactions.sae_in,
        "activation": interactions.sae_in.activation,
        "matrix": interactions.matrix(2),
        "spectrum": interactions.spectrum(2),
        "spectra": interactions.spectra(2),
        "top": interactions.top(20),
        "ledger": interactions.ledger(x, 2),
        "pairs": interactions.pair_contributions(x[0], 2),
        "low rank": bc.lowrank.low_rank_correlation(interactions, x, ranks=[1, 2], min_active=3),
        "statistics": interactions.statistics(precision="float32"),
        "tokens": bc.StoryTokens(torch.zeros(2, 3, dtype=torch.long), torch.ones(2, 3, dtype=torch.bool)),
        "query": search.query,
        "search": search,
        "circuit": search.circuits[0],
        "profile": search.circuits[0].profile,
        "proof": search.circuits[0].proof,
        "evidence": search.circuits[0].evidence,
    }


def test_every_result_is_one_line_without_numbers_of_its_tensors(results):
    for name, result in results.items():
        line = repr(result)
        assert line.startswith(f"{type(result).__name__}("), name
        assert "\n" not in line, name
        assert "tensor(" not in line, name
        assert len(line) < 600, (name, line)


def test_the_line_says_sizes_and_kinds(results):
    assert repr(results["matrix"]) == (
        "InteractionMatrix(left=float64[11 x 7], right=float64[11 x 7], weights=float64[7])"
    )
    assert f"features {D_SAE_IN} -> {D_SAE_OUT}" in repr(results["interactions"])
    assert "ranks=tuple[3], correlation=float64[9 x 3]" in repr(results["low rank"])
    assert "certificate=Certificate" in repr(results["top"])
    assert "b_out=None" in repr(results["tensor"])


def dataclasses_of_the_packages():
    for package in map(importlib.import_module, PACKAGES):
        for found in pkgutil.walk_packages(package.__path__, f"{package.__name__}."):
            module = importlib.import_module(found.name)
            for one in vars(module).values():
                if isinstance(one, type) and dataclasses.is_dataclass(one) and one.__module__ == found.name:
                    yield one


def test_every_public_dataclass_that_holds_a_tensor_has_a_short_line(bc):
    holding = {
        one
        for one in dataclasses_of_the_packages()
        if not one.__name__.startswith("_") and any("Tensor" in str(field.type) for field in dataclasses.fields(one))
    }
    assert {bc.tensor.InteractionTensor, bc.activity.LayerActivity} <= holding
    assert {one.__qualname__ for one in holding if one.__repr__ is not bc.display.Brief.__repr__} == set()


def test_tables_are_frames_in_the_order_of_the_result(results):
    top, low = results["top"], results["low rank"]
    frame = top.to_pandas()
    assert list(frame) == ["output", "first", "second", "weight", "score"]
    assert list(zip(frame.output, frame["first"], frame.second, frame.weight, strict=True)) == list(top)
    frame = low.to_pandas()
    assert list(frame) == ["feature", "n_active", "rank_1", "rank_2", f"rank_{D_IN}"]
    torch.testing.assert_close(torch.tensor(frame.rank_2.to_numpy()), low.correlation[:, 1], equal_nan=True)
    search = results["search"]
    frame = search.to_pandas()
    assert frame["name"].tolist() == [one.name for one in search.ranking]
    assert frame["score"].tolist() == [one.score for one in search.ranking]


def test_discoveries_are_a_frame_with_what_became_of_each():
    search = make_discoveries()
    frame = search.to_pandas()
    assert len(frame) == len(search.discoveries) + len(search.echoes) + len(search.apart)
    assert frame.status.value_counts()["discovery"] == len(search.discoveries)
    assert frame.motif[0] == search.discoveries[0].motif


def test_the_package_lists_its_names_alone_whatever_was_imported():
    code = (
        "import bilinear_circuits as bc, bilinear_circuits.cli, bilinear_circuits.data\n"
        "bc.load_model\n"
        "assert set(dir(bc)) == {*bc.__all__, '__version__'}, dir(bc)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
